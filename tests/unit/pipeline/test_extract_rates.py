"""What a running extraction says of itself, to its own terminal and to others."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tadpipe.pipeline import store_report
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.progress import Silent
from tadpipe.store import run_progress
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.run_progress import RunProgress, rates_text
from tests.corpus import make_video

SETTINGS: dict[str, Any] = {"backbone": "videomae-tiny", "weights": "random", "device": "cpu"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate((40, 32)):
        make_video(folder / f"v{i}.mp4", frames=frames)
    return folder


def a_progress(**changes: Any) -> RunProgress:
    """Ten of 40 videos done in 100 s, the backbone at work for 80 of them."""
    now_unix_sec = time.time()
    usual = RunProgress(
        writer="w",
        fid="f",
        host="here",
        pid=1,
        began_unix_sec=now_unix_sec - 100,
        updated_unix_sec=now_unix_sec,
        ended=False,
        videos_total=40,
        done=8,
        reused=10,
        failed=2,
        frames_decoded=3000,
        clips=700,
        seconds=100.0,
        device_busy_sec=80.0,
    )
    return dataclasses.replace(usual, **changes)


def test_rates_and_time_left_follow_from_the_counts() -> None:
    progress = a_progress()
    assert progress.rates() == {
        "videos_per_hour": pytest.approx(360.0),
        "frames_per_sec": pytest.approx(30.0),
        "clips_per_sec": pytest.approx(7.0),
        "device_waited": pytest.approx(0.2),
        "left_sec": pytest.approx(200.0),  # 20 are neither there nor tried, 10 s each
    }
    assert rates_text(progress) == (
        "360.0 videos/h, 30 frames/s, 7.0 clips/s, backbone waits 20%, 0:03:20 left"
    )


@pytest.mark.parametrize("changes", [{"videos_total": None}, {"done": 0, "failed": 0}])
def test_time_left_is_not_guessed(changes: dict[str, Any]) -> None:
    assert a_progress(**changes).left_sec is None


def test_finished_run_reports_its_rates(videos: Path, tmp_path: Path) -> None:
    report = extract([videos], store=tmp_path / "s.zarr", **SETTINGS)
    rates = report.to_mapping()["rates"]
    assert rates["frames_per_sec"] > 0
    assert rates["videos_per_hour"] > 0
    assert 0 <= rates["device_waited"] < 1
    assert report.progress is not None
    assert report.progress.frames_decoded == 72
    assert report.progress.clips == report.total("rows")
    assert "clips/s" in report.text().splitlines()[-1]


def test_status_shows_a_run_that_is_at_work(videos: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Look(Silent):
        def advance(self, units: int = 1, note: str = "") -> None:
            assert "videos/h" in note
            seen.append(store_report.status(tmp_path / "s.zarr"))

    extract([videos], store=tmp_path / "s.zarr", progress=Look(), **SETTINGS)
    assert seen[0]["running"]["writers"] == 1
    assert seen[0]["writers"][0]["videos_total"] == 2
    after = store_report.status(tmp_path / "s.zarr")
    assert after["running"]["writers"] == 0
    assert [(w["state"], w["done"]) for w in after["writers"]] == [("ended", 2)]


def test_status_on_another_machine_shows_a_run_into_an_object_store(
    videos: Path, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"{s3_bucket}/s.zarr"
    seen: list[dict[str, Any]] = []

    def elsewhere() -> dict[str, Any]:
        with monkeypatch.context() as machine:
            machine.setenv("TADPIPE_WORK", str(tmp_path / "other machine"))
            return store_report.status(store)

    class Look(Silent):
        def advance(self, units: int = 1, note: str = "") -> None:
            seen.append(elsewhere())

    extract([videos], store=store, progress=Look(), **SETTINGS)
    assert seen[0]["running"]["writers"] == 1
    assert [(w["state"], w["done"]) for w in elsewhere()["writers"]] == [("ended", 2)]


def test_status_adds_up_writers_and_names_the_silent_one(videos: Path, tmp_path: Path) -> None:
    extract([videos], store=tmp_path / "s.zarr", **SETTINGS)
    folder = FeatureStore.open(tmp_path / "s.zarr").backend.work / "ledger"
    run_progress.write(folder, a_progress(writer="a"))
    run_progress.write(folder, a_progress(writer="b", videos_total=60))
    run_progress.write(folder, a_progress(writer="gone", updated_unix_sec=time.time() - 120))
    (folder / f"torn{run_progress.SUFFIX}").write_text('{"writer": "to')
    status = store_report.status(tmp_path / "s.zarr")
    assert status["running"]["writers"] == 2
    assert status["running"]["frames_per_sec"] == pytest.approx(60.0)
    assert status["running"]["left_sec"] == pytest.approx(400.0)
    text = store_report.status_text(json.loads(json.dumps(status)))
    assert "2 at work: 720.0 videos/h" in text
    assert "silent  gone: nothing heard of process 1 on here for 0:02:00" in text
