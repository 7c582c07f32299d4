"""train_e2e with videos that cannot be used, and settings that do not go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tadpipe.annotations import load_detections
from tadpipe.errors import CheckpointError, ConfigError, TadpipeError
from tadpipe.pipeline.extract import extract
from tadpipe.training.metrics import read_metrics
from tests.unit.pipeline.small_project import STEPS, SmallProject, make_project, run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return make_project(tmp_path_factory.mktemp("project"))


def test_unusable_videos_are_recorded_counted_and_left_out(
    project: SmallProject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(project.videos, folder)
    path = folder / "video 1.mp4"  # to train on
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "video 5.mp4").write_bytes(b"not a video")  # to test on
    with pytest.raises(TadpipeError, match="1 of 4, at most 5%"):
        run(project, tmp_path / "strict", videos=folder)
    result = run(project, tmp_path / "run", "e2e.most_failed=0.3", videos=folder, egs=0.3)
    assert result.failed == ("video 1", "video 5")
    assert result.exit_code == 3
    assert "2 videos could not be used: video 1, video 5" in result.text()
    assert "(1 of 4 videos so far)" in caplog.text
    lines = (tmp_path / "run" / "failed_videos.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["video 1", "video 5"]
    assert len([line for line in read_metrics(result.run) if "loss" in line]) == STEPS
    assert load_detections(result.run / "detections.json") == {"video 5": []}


@pytest.mark.parametrize(
    ("options", "sets", "words"),
    [
        ({"tune": "adapter"}, (), "no adapter to tune"),
        ({"adapter": "tia", "egs": 0.5, "representation": "frame"}, (), "see each other"),
        ({"unsampled": "store"}, (), "No features for the snippets"),
        ({"representation": "frame"}, ("e2e.frames_per_step=3",), "multiple of the frames"),
        ({"representation": "frame"}, ("model.window_len=12",), "whole clips"),
        ({"adapter": "tia", "tune": "frozen"}, (), "does not train changes nothing"),
        ({}, ("training.batch_size=9",), "Fewer training videos"),
        ({}, ("e2e.egs.ratioo=1",), "ratio"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_mistakes_are_explained_before_anything_is_written(
    project: SmallProject,
    tmp_path: Path,
    options: dict[str, Any],
    sets: tuple[str, ...],
    words: str,
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(project, tmp_path / "run", *sets, **options)
    assert not (tmp_path / "run").exists()


def test_a_bank_of_another_backbone_is_refused(project: SmallProject, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    extract(
        [project.videos],
        store=store,
        backbone="videomae-tiny",
        weights="random",
        seed=9,
        device="cpu",
    )
    with pytest.raises(ConfigError, match="weights"):
        run(project, tmp_path / "run", unsampled="store", features=store, egs=0.3)


def test_a_folder_without_a_tuned_backbone_is_no_weights(
    project: SmallProject, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no tuned backbone"):
        run(project, tmp_path / "run", weights=tmp_path)


def test_videos_with_short_actions_only_can_be_left_out(
    project: SmallProject, tmp_path: Path
) -> None:
    assert run(project, tmp_path / "run", "windows.min_action_share=0.39", dry_run=True).videos == 2
