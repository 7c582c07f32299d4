"""Extraction on a cluster: as a single process does it, however the workers behave."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster

from tadpipe.errors import CheckpointError, ConfigError, StoreError
from tadpipe.pipeline import extract_worker
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.extract_worker import Job, Sent, close_sessions, extract_group
from tadpipe.pipeline.known_weights import KnownWeights
from tadpipe.pipeline.local_workers import gpus_for
from tadpipe.pipeline.progress import Silent
from tadpipe.pipeline.video_files import VideoFile
from tadpipe.store.feature_store import FeatureStore
from tests.corpus import make_video

SETTINGS: dict[str, Any] = {"backbone": "videomae-tiny", "weights": "random", "device": "cpu"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate((52, 44, 40, 36)):
        make_video(folder / f"v{i}.mp4", frames=frames)
    return folder


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A cluster in this process, whose only worker is a thread of it."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address=None,
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def job(videos: Path, tmp_path: Path) -> Iterator[Job]:
    """A job for an empty store, as a command would send it."""
    store = tmp_path / "job.zarr"
    report = extract([videos / "v3.mp4"], store=tmp_path / "spec.zarr", **SETTINGS)
    FeatureStore.create(store)
    spec = FeatureStore.open(tmp_path / "spec.zarr").spec(report.fid)
    yield Job(str(store), spec, KnownWeights("random"), None, "cpu", None, False, "pyav", 2, 60.0)
    close_sessions()


def sent(*paths: Path) -> list[Sent]:
    return [Sent(VideoFile(path, path.stem), path.stat().st_size) for path in paths]


def test_cluster_makes_the_features_of_a_single_process(
    videos: Path, scheduler: str, tmp_path: Path
) -> None:
    alone = extract([videos], store=tmp_path / "a.zarr", **SETTINGS)
    shared = extract([videos], store=tmp_path / "b.zarr", scheduler=scheduler, **SETTINGS)
    assert shared.exit_code == 0
    assert shared.fid == alone.fid
    assert {v.name: v.rows for v in shared.videos} == {v.name: v.rows for v in alone.videos}
    first, second = FeatureStore.open(tmp_path / "a.zarr"), FeatureStore.open(tmp_path / "b.zarr")
    for name in ("v0", "v1", "v2", "v3"):
        assert np.array_equal(first[name][:], second[name][:])


def test_second_run_reuses_everything(videos: Path, scheduler: str, tmp_path: Path) -> None:
    for status in ("done", "reused"):
        report = extract([videos], store=tmp_path / "s.zarr", scheduler=scheduler, **SETTINGS)
        assert [video.status for video in report.videos] == [status] * 4


def test_workers_report_what_they_did_per_second(
    videos: Path, scheduler: str, tmp_path: Path
) -> None:
    given = [videos / "v2.mp4", videos / "v3.mp4"]
    report = extract(given, store=tmp_path / "s.zarr", scheduler=scheduler, **SETTINGS)
    assert report.shared_sec is not None
    assert 0 < report.shared_sec < report.seconds
    assert report.to_mapping()["rates"] == {
        "videos_per_hour": pytest.approx(3600 * 2 / report.shared_sec),
        "frames_per_sec": pytest.approx(76 / report.shared_sec),
        "clips_per_sec": pytest.approx(13 / report.shared_sec),
        "device_waited": None,
        "left_sec": 0.0,
    }
    assert report.text().splitlines()[-1].endswith("clips/s by all workers")


def test_copies_and_broken_files_are_told_as_by_a_single_process(
    videos: Path, scheduler: str, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(videos / "v0.mp4", folder / "a.mp4")
    shutil.copy(videos / "v0.mp4", folder / "b.mp4")
    (folder / "c.mp4").write_bytes(b"")
    report = extract(
        [folder, tmp_path / "lost.mp4"], store=tmp_path / "s.zarr", scheduler=scheduler, **SETTINGS
    )
    told = {video.name: (video.status, video.reason) for video in report.videos}
    assert told == {
        "a": ("done", ""),
        "b": ("reused", "duplicate-content"),
        "c": ("failed", "not-a-video"),
        "lost": ("failed", "not-found"),
    }
    assert report.exit_code == 3
    rows = [row for _, row in FeatureStore.open(tmp_path / "s.zarr").backend.attempts()]
    assert {(row.name, row.reason) for row in rows} == {(n, r) for n, (_, r) in told.items()}


def test_video_that_fails_its_worker_every_time_is_recorded_and_the_run_goes_on(
    videos: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fails(group: list[Sent]) -> None:
        if any(each.file.name == "v1" for each in group):
            tries.append(len(group))
            raise RuntimeError("the device is broken")

    monkeypatch.setattr(extract_worker, "_check_visible", fails)
    report = extract([videos], store=tmp_path / "s.zarr", scheduler=scheduler, **SETTINGS)
    told = {video.name: (video.status, video.reason) for video in report.videos}
    assert told.pop("v1") == ("failed", "worker-died")
    assert set(told.values()) == {("done", "")}
    assert len(tries) == 3
    assert tries[1:] == [1, 1]
    rows = [row for _, row in FeatureStore.open(tmp_path / "s.zarr").backend.attempts()]
    (row,) = [row for row in rows if row.name == "v1"]
    assert row.reason == "worker-died"
    assert "the device is broken" in row.message


def test_interrupted_run_keeps_what_was_finished(
    videos: Path, scheduler: str, tmp_path: Path
) -> None:
    class StopAtTheFirst(Silent):
        def advance(self, units: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    settings = {"store": tmp_path / "s.zarr", "scheduler": scheduler, **SETTINGS}
    with pytest.raises(KeyboardInterrupt):
        extract([videos], progress=StopAtTheFirst(), **settings)
    report = extract([videos], **settings)
    assert "reused" in [video.status for video in report.videos]
    assert len(FeatureStore.open(tmp_path / "s.zarr").videos(report.fid)) == 4


def test_address_without_scheduler_is_refused_before_anything_is_written(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tadpipe.pipeline.scheduler_client.CONNECT_SEC", 0.2)
    with pytest.raises(ConfigError, match="No Dask scheduler answers"):
        extract([videos], store=tmp_path / "s.zarr", scheduler="tcp://127.0.0.1:1", **SETTINGS)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_hdf5_store_is_refused(videos: Path, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match="one writer at a time"):
        extract([videos], store=tmp_path / f"s{suffix}", workers=2, **SETTINGS)


def test_workers_and_scheduler_together_are_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Give one of them"):
        extract([videos], store=tmp_path / "s.zarr", workers=2, scheduler="tcp://x:1", **SETTINGS)


def test_worker_loads_the_backbone_once(
    job: Job, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = extract_worker.load_exactly

    def counted(*arguments: Any, **named: Any) -> Any:
        loaded.append(arguments)
        return load(*arguments, **named)

    monkeypatch.setattr(extract_worker, "load_exactly", counted)
    for name in ("v0", "v1"):
        (outcome,) = extract_group(job, sent(videos / f"{name}.mp4"))
        assert outcome.status == "done"
    assert len(loaded) == 1


def test_group_is_visible_once_the_session_is_closed(job: Job, videos: Path) -> None:
    extract_group(job, sent(videos / "v0.mp4"))
    close_sessions()
    assert list(FeatureStore.open(job.store).videos(job.spec.fid)) == ["v0"]


def test_worker_asked_to_leave_ends_after_its_video(
    job: Job, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_worker, "_check_visible", lambda group: close_sessions())
    outcomes = extract_group(job, sent(*sorted(videos.iterdir())))
    (outcome,) = outcomes
    assert list(FeatureStore.open(job.store).videos(job.spec.fid)) == [outcome.name]


def test_worker_of_another_version_is_refused(job: Job) -> None:
    with pytest.raises(ConfigError, match="another version of tadpipe"):
        extract_group(replace(job, version="0.0"), [])


def test_worker_that_does_not_see_a_video_says_so(job: Job, tmp_path: Path) -> None:
    lost = Sent(VideoFile(tmp_path / "elsewhere.mp4", "elsewhere"), 1000)
    with pytest.raises(ConfigError, match=r"does not see a video[^$]*elsewhere.mp4"):
        extract_group(job, [lost])


def test_worker_that_does_not_see_the_store_makes_none(job: Job, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="every machine sees it"):
        extract_group(replace(job, store=str(tmp_path / "elsewhere.zarr")), [])
    assert not (tmp_path / "elsewhere.zarr").exists()


def test_worker_with_other_weights_refuses_to_work(job: Job) -> None:
    with pytest.raises(CheckpointError, match="same weights under the same path"):
        extract_group(replace(job, weights=KnownWeights("random", 1)), [])


def test_worker_without_a_compiler_says_so_and_nothing_of_weights(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here(device: Any) -> None:
        raise ConfigError("torch.compile does not work here.", todo="Install a C++ compiler.")

    monkeypatch.setattr("tadpipe.backbones.loading.require_compiler", none_here)
    with pytest.raises(ConfigError, match=r"worker on [^$]*Install a C\+\+ compiler") as raised:
        extract_group(replace(job, compile=True), [])
    assert "weights" not in str(raised.value)


def test_worker_that_cannot_have_optical_flow_is_named(job: Job, tmp_path: Path) -> None:
    assert job.spec.pixels is not None
    pixels = replace(job.spec.pixels, colour="flow-files", mean=(0.5, 0.5), std=(0.5, 0.5))
    lost = replace(job, spec=replace(job.spec, pixels=pixels), flow=tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"worker on [^$]*elsewhere"):
        extract_group(lost, [])


def test_worker_without_the_device_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"worker on [^$]*No CUDA device"):
        extract_group(replace(job, device="cuda"), [])


def test_workers_take_turns_at_the_gpus_that_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert gpus_for("cuda") == ["3", "5"]
    assert gpus_for("cpu") == []


def test_one_gpu_for_several_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match="each worker takes one GPU"):
        gpus_for("cuda:1")
