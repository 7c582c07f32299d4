"""A project folder with a few small videos and their labels, for tests of whole commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tadpipe.cli.main import run
from tests.corpus import make_video
from tests.unit.pipeline.tiny_store import SMALL

NAMES = ("run 1", "Läufe 2", "третье", "four")
FRAMES = 150


def make_project(folder: Path) -> Path:
    """Four videos of 5 s with names people give, annotations, and a project file."""
    videos = folder / "my videos"
    videos.mkdir(parents=True)
    database = {}
    for i, name in enumerate(NAMES):
        make_video(videos / f"{name}.mp4", frames=FRAMES + i, fps=30)
        subset = "training" if i < 3 else "test"
        actions = [
            {"segment": [0.5, 2.0], "label": "left"},
            {"segment": [2.5, 4.0], "label": "right"},
        ]
        database[name] = {"subset": subset, "duration": (FRAMES + i) / 30, "annotations": actions}
    (folder / "labels.json").write_text(json.dumps({"database": database}), encoding="utf-8")
    (folder / "tadpipe.toml").write_text(
        'videos = "my videos"\nannotations = "labels.json"\nstore = "store/thumos.zarr"\n'
        'backbone = "videomae-tiny"\nweights = "random"\n',
        encoding="utf-8",
    )
    return folder


def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """Run a command with --json: exit code, document, stderr."""
    capfd.readouterr()
    code = run([*arguments, "--json"])
    answer = capfd.readouterr()
    return code, json.loads(answer.out), answer.err


SMALL_MODEL = [f"--set={setting}" for setting in SMALL]
