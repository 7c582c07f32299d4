"""`tadpipe extract --workers`, with processes of its own: the features of a single process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tadpipe.pipeline.extract import extract
from tadpipe.store.feature_store import FeatureStore
from tests.unit.pipeline.small_project import make_project, run


class Shared(NamedTuple):
    """What came of a command with two workers."""

    folder: Path  # it was given in
    stored: FeatureStore
    report: dict[str, Any]
    stderr: str


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Six videos with the tuned backbone of a run, all named as seen from the folder."""
    folder = tmp_path_factory.mktemp("project")
    threads = str(torch.get_num_threads())  # as here: the last bits depend on their number
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run(make_project(folder), folder / "meine Läufe" / "erster")
        options = ["--weights", "meine Läufe/erster", "--store", "s.zarr", "--workers", "2"]
        answer = subprocess.run(
            [sys.executable, "-m", "tadpipe", "extract", "videos", *options, "--json"],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads},
        )
        assert answer.returncode == 0, answer.stderr
        stored = FeatureStore.open(folder / "s.zarr")
        yield Shared(folder, stored, json.loads(answer.stdout), answer.stderr)


def test_two_workers_share_the_videos_quietly(shared: Shared) -> None:
    done = [(video["name"], video["status"]) for video in shared.report["videos"]]
    assert done == [(f"video {i}", "done") for i in range(6)]
    assert shared.report["rates"]["frames_per_sec"] > 0
    assert shared.stderr == ""


def test_features_are_those_of_one_process_bit_for_bit(shared: Shared, tmp_path: Path) -> None:
    alone = extract(
        [shared.folder / "videos"],
        store=tmp_path / "alone.zarr",
        weights=shared.folder / "meine Läufe" / "erster",
        device="cpu",
    )
    assert alone.fid == shared.report["fid"]
    stored = FeatureStore.open(tmp_path / "alone.zarr")
    for i in range(6):
        assert stored[f"video {i}"][:].tobytes() == shared.stored[f"video {i}"][:].tobytes()
