"""Which runs a report is about, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tadpipe.errors import ConfigError
from tadpipe.pipeline.recipe import load_detector
from tadpipe.pipeline.report import write_report
from tadpipe.pipeline.report_models import level_features
from tadpipe.pipeline.report_runs import find_runs, unique_names
from tadpipe.pipeline.train_detector import train_detector
from tests.unit.pipeline.tiny_store import SMALL, make_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one detector, as `compare` lays them out."""
    folder = tmp_path_factory.mktemp("report")
    store = make_store(folder / "store.zarr")
    for seed in (0, 1):
        train_detector(
            store,
            detector="actionformer",
            sets=SMALL,
            out=folder / "runs/actionformer" / f"seed{seed}",
            seed=seed,
        )
    return folder


def page_data(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    data = text.split('id="report-data">')[1].split("</script>")[0]
    document: dict[str, Any] = json.loads(data)
    return document


def test_seeds_of_one_detector_become_one_row_with_a_spread(folder: Path) -> None:
    (system,) = write_report([folder / "runs"], out=folder / "a.html", dry_run=True).systems
    assert (system.name, system.seeds) == ("actionformer", (0, 1))
    assert system.average_map.deviation is not None


def test_dry_run_writes_nothing(folder: Path) -> None:
    write_report([folder / "runs"], out=folder / "dry.html", dry_run=True)
    assert not (folder / "dry.html").exists()


def test_page_shows_cost_and_similarity_of_the_model(folder: Path) -> None:
    page = folder / "b.html"
    write_report([folder / "runs/actionformer/seed0"], out=page)
    document = page_data(page)
    (system,) = document["systems"]
    titles = [chart["title"] for chart in document["charts"]]
    assert system["cost"]["parameters"] > 0
    assert "Similarity of features by level" in titles


def test_frame_sensitivity_of_asl_lies_in_the_action_above_the_part_of_its_class(
    folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "asl"
    train_detector(folder / "store.zarr", detector="asl", sets=SMALL, out=run, seed=0)
    (system,) = write_report([run], out=tmp_path / "a.html", dry_run=True).systems
    (shown, *_) = system.frame_sensitivity
    assert shown.start_sec <= shown.time_sec[0] < shown.time_sec[-1] <= shown.end_sec
    for whole, shared in (
        (shown.classification, shown.class_classification),
        (shown.localisation, shown.class_localisation),
    ):
        assert all(0 < h - p < 1 for h, p in zip(whole, shared, strict=True))  # q of Eq. 5


def test_level_features_are_as_long_as_the_video_is(folder: Path) -> None:
    model, _, _ = load_detector(folder / "runs/actionformer/seed0")
    levels = level_features(model, torch.zeros(4, 21))
    assert [level.shape[-1] for level in levels] == [21, 11, 6]


def test_runs_of_different_actions_are_refused(folder: Path, tmp_path: Path) -> None:
    run = folder / "runs/actionformer/seed0"
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((run / "config.json").read_text())
    config["subsets"]["test"] = "validation"
    config["stores"] = [str(folder / "store.zarr")]
    (other / "config.json").write_text(json.dumps(config))
    (other / "detections.json").write_text((run / "detections.json").read_text())
    with pytest.raises(ConfigError, match="different actions"):
        write_report([run, other], out=tmp_path / "c.html")


def test_folder_stands_for_the_runs_in_it(folder: Path) -> None:
    names = [path.name for path in find_runs([folder / "runs"])]
    assert names == ["seed0", "seed1"]


def test_run_named_twice_counts_once(folder: Path) -> None:
    run = folder / "runs/actionformer/seed0"
    assert find_runs([run, folder / "runs"]) == [run, run.with_name("seed1")]


def test_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run"):
        find_runs([tmp_path])


def test_folder_is_refused_as_the_page(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a file"):
        write_report([tmp_path], out=tmp_path)


def test_runs_of_equal_name_are_told_apart_by_their_folder() -> None:
    paths = [Path("/a/first/run.json"), Path("/a/second/run.json"), Path("/a/third.json")]
    assert unique_names(paths) == ["run (first)", "run (second)", "third"]
