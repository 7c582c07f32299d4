"""What only the HDF5 kind does: one writer, one file, read by anything that reads HDF5."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tadpipe.errors import StoreError
from tadpipe.store.feature_store import FeatureStore
from tests.unit.store.small_videos import SPEC, add, fill, rows, times


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "x.h5")


def test_second_writer_is_told_so(store: FeatureStore) -> None:
    other = FeatureStore.open(store.path, "a")
    with store.writer(SPEC):
        with pytest.raises(StoreError, match="Another process is writing"):
            other.writer(SPEC).__enter__()
        with pytest.raises(StoreError, match="Another process is writing"):
            other.set_annotations(b"{}")
    fill(other, [1])


def test_store_that_is_being_written_can_be_created_again(store: FeatureStore) -> None:
    with store.writer(SPEC):
        assert FeatureStore.create(store.path).specs() == {}


def test_open_reader_keeps_reading_what_it_opened(store: FeatureStore) -> None:
    fill(store, [1])
    reader = FeatureStore.open(store.path)
    view = reader["v1"]
    fill(store, [2, 3])
    assert np.array_equal(view[:], rows(1))
    reader.refresh()
    assert np.array_equal(reader["v3"][:], rows(3))


def test_h5py_alone_finds_a_video(store: FeatureStore) -> None:
    fill(store, [1, 2])
    row = store["v2"].row
    with h5py.File(store.path, "r") as file:
        part = file[f"features/{SPEC.fid}/parts/{row.part}"]
        assert np.array_equal(part["features"][row.first_row :], rows(2))
        assert np.array_equal(part["times"][row.first_row :], times(len(rows(2))))


@pytest.mark.parametrize("layout", [{"chunks": (16, 6)}, {"compression": "gzip"}], ids=str)
def test_part_rewritten_by_another_tool_reads_right(
    store: FeatureStore, layout: dict[str, object]
) -> None:
    fill(store, [1, 2])
    with h5py.File(store.path, "r+") as file:
        part = file[f"features/{SPEC.fid}/parts/{store['v1'].row.part}"]
        for name in ("features", "times"):
            values = part[name][:]
            del part[name]
            part.create_dataset(name, data=values, **(layout if name == "features" else {}))
    reader = FeatureStore.open(store.path)
    assert np.array_equal(reader["v2"][1:9:3], rows(2)[1:9:3])


def test_left_over_of_a_killed_writer_is_removed(store: FeatureStore) -> None:
    left_over = store.backend.work / "building-dead.h5"
    left_over.write_bytes(b"half a file")
    fill(store, [1])
    assert not left_over.exists()


def test_parts_grow_with_the_file(store: FeatureStore) -> None:
    with store.writer(SPEC, part_rows=1) as writer:
        for seed in range(16):
            add(writer, f"v{seed}", seed, rows(seed, 10))
    # Packed at 1, 1, 2, 4 and 8 videos: each time as many rows as the file has.
    assert [commit.rows for commit in store.videos(SPEC.fid).commits] == [10, 10, 20, 40, 80]
