"""Workers and scheduler killed in the middle of it: nothing is lost, torn or done again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tadpipe.errors import TadpipeError
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.progress import Silent
from tadpipe.store.feature_store import FeatureStore
from tests.faults.chaos import find_faults, make_videos
from tests.faults.worker_pool import ROOT, WorkerPool

SETTINGS: dict[str, Any] = {"backbone": "videomae-tiny", "weights": "random", "device": "cpu"}


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2) as running:
        yield running


class ActAt(Silent):
    """Does something when so many videos are told of."""

    def __init__(self, moments: dict[int, Any]) -> None:
        self.moments = moments
        self.told = 0

    def advance(self, units: int = 1, note: str = "") -> None:
        self.told += units
        if self.told in self.moments:
            self.moments.pop(self.told)()


def test_killed_workers_lose_nothing_and_nothing_is_done_again(
    pool: WorkerPool, tmp_path: Path
) -> None:
    make_videos(tmp_path / "videos", 12)
    kills = ActAt({2: lambda: pool.kill(0), 5: lambda: pool.kill(1)})
    store = tmp_path / "s.zarr"
    report = extract(
        [tmp_path / "videos"], store=store, scheduler=pool.address, progress=kills, **SETTINGS
    )
    assert not kills.moments
    assert report.exit_code == 0
    assert find_faults(store, 12).clean


def test_video_that_kills_its_workers_is_left_out(pool: WorkerPool, tmp_path: Path) -> None:
    make_videos(tmp_path / "videos", 4)
    (tmp_path / "videos" / "v000.mp4").rename(tmp_path / "videos" / "poison.mp4")
    store = tmp_path / "s.zarr"
    report = extract([tmp_path / "videos"], store=store, scheduler=pool.address, **SETTINGS)
    assert report.exit_code == 3
    told = {video.name: (video.status, video.reason) for video in report.videos}
    assert told.pop("poison") == ("failed", "worker-died")
    assert {status for status, _ in told.values()} <= {"done", "reused"}
    assert sorted(FeatureStore.open(store).videos(report.fid)) == ["v001", "v002", "v003"]
    rows = [row for _, row in FeatureStore.open(store).backend.attempts()]
    assert [row.reason for row in rows if row.name == "poison"] == ["worker-died"]


def test_lost_scheduler_costs_only_the_videos_in_flight(pool: WorkerPool, tmp_path: Path) -> None:
    make_videos(tmp_path / "videos", 12)
    store = tmp_path / "s.zarr"
    settings = {"store": store, "scheduler": pool.address, **SETTINGS}
    restart = ActAt({3: pool.restart_scheduler})
    with pytest.raises(TadpipeError, match=r"scheduler was lost[^$]*Run the same command again"):
        extract([tmp_path / "videos"], progress=restart, **settings)
    report = extract([tmp_path / "videos"], **settings)
    assert report.exit_code == 0
    assert report.count("reused") >= 3
    assert find_faults(store, 12).clean


@pytest.mark.slow
def test_eight_workers_killed_ten_times_each() -> None:
    _eight_workers_killed_ten_times_each([])


@pytest.mark.slow
def test_eight_workers_killed_ten_times_each_through_object_storage(s3_bucket: str) -> None:
    _eight_workers_killed_ten_times_each(["--store", f"{s3_bucket}/s.zarr"])


def _eight_workers_killed_ten_times_each(store: list[str]) -> None:
    words = ["--workers", "8", "--kills", "10", "--videos", "200", "--seed", "1", *store]
    answer = subprocess.run(
        [sys.executable, "-m", "tests.faults.chaos", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads(answer.stdout)
    assert (found["killed"], found["scheduler_restarts"], found["videos"]) == (80, 1, 200)
