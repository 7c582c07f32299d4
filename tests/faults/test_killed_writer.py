"""SIGKILL at any step of a writer: whatever was finished is kept, nothing half-done is visible."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.verify import verify
from tests.faults.store_writer import VIDEOS
from tests.unit.store.small_videos import SPEC, rows, times

ROOT = Path(__file__).parents[2]


def start(store: Path | str, order_seed: int, kill_at: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.store_writer", store, order_seed, kill_at]
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[int]:
    """Steps of writers that ran to their end, 0 for those that were killed."""
    told = [process.communicate() for process in processes]
    steps = []
    for process, (out, err) in zip(processes, told, strict=True):
        assert process.returncode in (0, -signal.SIGKILL), err
        steps.append(0 if process.returncode else int(out))
    return steps


def check_visible(path: Path | str) -> set[str]:
    """Everything a reader can see is whole and right; returns the names."""
    if not FeatureStore.exists(path):
        return set()
    if isinstance(path, Path) and path.is_dir() and not (path / "zarr.json").exists():
        return set()
    store = FeatureStore.open(path)
    assert verify(store, deep=True) == []
    videos = store.videos(SPEC.fid)
    for name in videos:
        seed = int(name[1:])
        view = store.features(name, fid=SPEC.fid)
        assert np.array_equal(view[:], rows(seed))
        assert np.array_equal(view.times, times(len(rows(seed))))
    return set(videos)


def check_complete(path: Path | str) -> None:
    """Every video is there, and there is nothing else."""
    assert check_visible(path) == {f"v{seed}" for seed in range(VIDEOS)}
    store = FeatureStore.open(path, "a")
    store.gc(grace_sec=0)
    assert check_visible(path) == {f"v{seed}" for seed in range(VIDEOS)}
    assert store.status().waiting_in_spool == 0
    assert store.gc(grace_sec=0).half_parts == []


def steps_to_kill_at(tmp_path: Path, suffix: str, count: int) -> list[int]:
    """Seeded steps of a writer, spread over all it does."""
    (total,) = finish(start(tmp_path / f"rehearsal{suffix}", 0))
    return sorted(random.Random(7).sample(range(1, total + 1), count))


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_writer_killed_ten_times_loses_no_finished_video(tmp_path: Path, suffix: str) -> None:
    store = tmp_path / f"x{suffix}"
    seen: set[str] = set()
    for kill_at in steps_to_kill_at(tmp_path, suffix, 10):
        finish(start(store, kill_at, kill_at))
        now = check_visible(store)
        assert seen <= now
        seen = now
    assert finish(start(store, 1)) > [0]
    check_complete(store)
    assert sum(row.rows for row in FeatureStore.open(store).videos(SPEC.fid).used_rows()) == sum(
        len(rows(seed)) for seed in range(VIDEOS)
    )


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_file_formats_hold_after_a_kill(tmp_path: Path, suffix: str) -> None:
    store = tmp_path / f"x{suffix}"
    for kill_at in steps_to_kill_at(tmp_path, suffix, 3):
        finish(start(store, kill_at, kill_at))
    if suffix == ".h5":
        with h5py.File(store, "r") as file:
            parts = [part[name] for part in _parts(file) for name in ("features", "times")]
    else:
        root = zarr.open_group(str(store), mode="r")
        parts = [part[name] for part in _parts(root) for name in ("features", "times")]
    assert len(parts) >= 2


def _parts(root: object) -> list[object]:
    group = root[f"features/{SPEC.fid}/parts"]  # type: ignore[index]
    return [group[name] for name in group]


def test_eight_writers_at_once_all_killed_then_run_again(tmp_path: Path) -> None:
    store = tmp_path / "x.zarr"
    steps = steps_to_kill_at(tmp_path, ".zarr", 8)
    finish(*[start(store, number, step) for number, step in enumerate(steps)])
    check_visible(store)
    assert all(finish(*[start(store, number) for number in range(8)]))
    check_complete(store)


@pytest.mark.slow
def test_writer_of_objects_killed_four_times_loses_no_finished_video(s3_bucket: str) -> None:
    (total,) = finish(start(f"{s3_bucket}/rehearsal.zarr", 0))
    store, seen = f"{s3_bucket}/x.zarr", set[str]()
    for kill_at in sorted(random.Random(7).sample(range(1, total + 1), 4)):
        finish(start(store, kill_at, kill_at))
        now = check_visible(store)
        assert seen <= now
        seen = now
    assert finish(start(store, 1)) > [0]
    check_complete(store)
    assert sum(row.rows for row in FeatureStore.open(store).videos(SPEC.fid).used_rows()) == sum(
        len(rows(seed)) for seed in range(VIDEOS)
    )


@pytest.mark.slow
def test_writers_of_objects_on_machines_of_their_own_all_killed_then_run_again(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, processes = f"{s3_bucket}/x.zarr", []
    for number in range(3):
        monkeypatch.setenv("TADPIPE_WORK", str(tmp_path / f"machine-{number}"))
        processes.append(start(store, number, 20 + 13 * number))
    finish(*processes)
    check_visible(store)
    processes = []
    for number in range(3):
        monkeypatch.setenv("TADPIPE_WORK", str(tmp_path / f"machine-{number}"))
        processes.append(start(store, number))
    assert all(finish(*processes))
    check_complete(store)


def test_second_hdf5_writer_is_refused_while_the_first_works(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "x.h5")
    with store.writer(SPEC):
        process = start(store.path, 0)
        _, err = process.communicate()
    assert process.returncode == 1
    assert "Another process is writing to this HDF5 store." in err
    assert finish(start(store.path, 0)) > [0]
    check_complete(store.path)
