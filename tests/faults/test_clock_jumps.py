"""Clocks that jump, of this machine or of files, decide neither what is read nor what is lost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tadpipe.store.feature_store import FeatureStore
from tests.unit.store.small_videos import SPEC, add, fill, rows

YEAR_NS = 365 * 24 * 3600 * 10**9


def set_clock(patch: pytest.MonkeyPatch, shift_ns: int) -> None:
    now_ns = time.time_ns
    patch.setattr(time, "time_ns", lambda: now_ns() + shift_ns)


def age_files(folder: Path, seconds: float) -> None:
    for path in [*folder.rglob("*"), folder]:
        when = path.lstat().st_mtime - seconds
        os.utime(path, (when, when))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "x.zarr")


@pytest.mark.parametrize("shift_ns", [-YEAR_NS, YEAR_NS])
def test_later_writer_has_the_last_word_whatever_its_clock_says(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, shift_ns: int
) -> None:
    with store.writer(SPEC) as writer:
        add(writer, "v", 1)
    with monkeypatch.context() as patch:
        set_clock(patch, shift_ns)
        with FeatureStore.open(store.path, "a").writer(SPEC) as writer:
            add(writer, "v", 2)
    store.refresh()
    assert np.array_equal(store["v"][:], rows(2))
    store.delete(SPEC.fid, "v")  # by a clock that is right again
    assert "v" not in store.videos(SPEC.fid)


def test_grace_goes_by_the_clock_of_the_files(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [1, 2])
    fill(store, [3])
    store.compact()
    with monkeypatch.context() as patch:  # this machine's clock has no say
        patch.setattr(time, "time", lambda: 4e9)
        set_clock(patch, YEAR_NS)
        assert len(store.gc(grace_sec=3600).waiting) == 2
    age_files(store.path / "features", 7200)
    assert len(store.gc(grace_sec=3600).parts) == 2


def test_files_from_the_future_are_young(store: FeatureStore) -> None:
    for seed in (1, 2):
        fill(store, [seed])
    store.compact()
    age_files(store.path / "features", -7200)
    assert len(store.gc(grace_sec=3600).waiting) == 2
    assert len(store.gc(grace_sec=0).parts) == 2


def test_old_spool_of_a_living_writer_is_left_alone(store: FeatureStore) -> None:
    with store.writer(SPEC) as writer:
        add(writer, "v1", 1)
        age_files(store.path / "features", 10 * 365 * 24 * 3600.0)
        other = FeatureStore.open(store.path, "a")
        assert other.gc(grace_sec=0).packed_videos == 0
    assert np.array_equal(store["v1"][:], rows(1))


def test_video_compacted_early_by_a_forward_jump_is_still_read(store: FeatureStore) -> None:
    for seed in (1, 2):
        fill(store, [seed])
    reader = FeatureStore.open(store.path)
    view = reader["v1"]
    store.compact()
    age_files(store.path / "features", 1e6)
    assert len(store.gc().parts) == 2
    assert np.array_equal(view[:], rows(1))
