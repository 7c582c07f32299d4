"""Mistakes users make: an error that says what, where and what to do, with the right exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.project import command

CapFd = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["extrct"], 2, ["Did you mean extract"]),
        (["extract", "--bakbone=x", "v.mp4"], 2, ["--backbone"]),
        (["extract"], 2, ["No videos given", "videos"]),
        (["extract", "v.mp4"], 2, ["No backbone given", "--backbone", "tadpipe.toml"]),
        (["extract", "v.mp4", "--backbone=videomae-x"], 2, ["Unknown backbone", "videomae-s"]),
        (["extract", ".", "--backbone=videomae-tiny"], 2, ["No videos in this folder"]),
        (["extract", "v.mp4", "--backbone=videomae-tiny"], 1, ["--weights"]),
        (
            ["extract", "v.mp4", "--backbone=videomae-tiny", "--weights=no.pth"],
            1,
            ["no.pth"],
        ),
        (
            ["extract", "v.mp4", "--backbone=videomae-tiny", "--weights=random", "--shard=3/2"],
            2,
            ["--shard 3/2"],
        ),
        (
            ["extract", "v.mp4", "--backbone=videomae-tiny", "--weights=random", "--device=gpu"],
            2,
            ["Unknown device"],
        ),
        (
            ["extract", "v.mp4", "--backbone=videomae-tiny", "--weights=random", "--pixels=mmact"],
            2,
            ["Unknown pixel recipe", "mmaction"],
        ),
        (
            ["extract", "v.mp4", "--backbone=videomae-tiny", "--weights=random", "--fps=nan"],
            2,
            ["fps must be positive"],
        ),
        (["detect", "v.mp4", "--model=file"], 1, ["file has no recipe.json"]),
        (["train-detector", "--features=none.zarr"], 1, ["does not exist", "none.zarr"]),
        (["detect", "v.mp4", "--model=runs/none"], 1, ["runs/none", "recipe.json"]),
        (["evaluate", "none.json", "--annotations=none.json"], 2, ["none.json"]),
        (["store", "info", "none.zarr"], 1, ["does not exist"]),
        (["list", "detector"], 2, ["detectors"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_explained(
    capfd: CapFd, arguments: list[str], code: int, words: list[str]
) -> None:
    Path("file").touch()
    exit_code, answer, printed = command(capfd, *arguments)
    assert exit_code == code
    for word in words:
        assert word in answer["error"]["message"]
    assert "Traceback" not in printed


def test_missing_file_is_a_failed_video_and_exit_code_3(capfd: CapFd) -> None:
    code, report, _ = command(
        capfd, "extract", "none.mp4", "--backbone=videomae-tiny", "--weights=random"
    )
    assert code == 3
    assert [(v["status"], v["reason"]) for v in report["videos"]] == [("failed", "not-found")]


def test_project_file_with_an_unknown_key_is_refused(capfd: CapFd) -> None:
    Path("tadpipe.toml").write_text('vidoes = "x"\n', encoding="utf-8")
    code, answer, _ = command(capfd, "extract")
    assert code == 2
    assert "tadpipe.toml" in answer["error"]["message"]
    assert "videos" in answer["error"]["message"]


def test_project_file_with_a_stride_of_nothing_is_refused(capfd: CapFd) -> None:
    Path("tadpipe.toml").write_text("stride = 0\n", encoding="utf-8")
    code, answer, _ = command(capfd, "extract", "v.mp4", "--backbone=videomae-tiny")
    assert code == 2
    assert "stride = 0" in answer["error"]["message"]


def test_init_writes_a_project_once(capfd: CapFd) -> None:
    code, _, _ = command(capfd, "init", "--videos", 'my "videos" \\ ü', "--dry-run")
    assert (code, Path("tadpipe.toml").exists()) == (0, False)
    code, _, _ = command(capfd, "init", "--videos", 'my "videos" \\ ü')
    assert code == 0
    from tadpipe.project import Project

    assert Project.find().videos == Path('my "videos" \\ ü')
    code, answer, _ = command(capfd, "init")
    assert code == 2
    assert "--force" in answer["error"]["message"]


def test_json_errors_are_one_document_even_as_a_program() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "tadpipe", "store", "info", "none.zarr", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    import json

    assert answer.returncode == 1
    assert json.loads(answer.stdout)["error"]["kind"] == "StoreError"
    assert answer.stderr.startswith("Error: ")
