"""Damage is found, named, and exactly it is made again."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.verify import Finding, verify
from tests.unit.store.small_videos import SPEC, add, content, fill, rows

ROW_BYTES = 6 * 2


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore.create(tmp_path / "x.zarr")
    fill(store, range(6), part_rows=100)
    return store


def file_of(store: FeatureStore, name: str, inside: str) -> Path:
    parts = store.path / "features" / SPEC.fid / "parts"
    return parts / store[name].row.part / inside


def names(findings: list[Finding]) -> set[str]:
    return {finding.name for finding in findings if finding.damaged}


def sharing_part_with(store: FeatureStore, name: str) -> set[str]:
    part = store[name].row.part
    return {other for other, row in store.videos(SPEC.fid).items() if row.part == part}


def flip(path: Path, byte: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 0xFF
    path.write_bytes(raw)


def test_flipped_byte_is_found_by_the_deep_check_and_names_one_video(store: FeatureStore) -> None:
    flip(file_of(store, "v3", "features/c.0.0"), store["v3"].row.first_row * ROW_BYTES + 5)
    assert verify(store) == []
    (finding,) = verify(store, deep=True)
    assert (finding.name, finding.kind, finding.damaged) == ("v3", "checksum", True)
    assert "v3" in str(finding)


def test_flipped_time_is_found_by_the_deep_check(store: FeatureStore) -> None:
    flip(file_of(store, "v3", "times/c.0"), store["v3"].row.first_row * 8 + 1)
    (finding,) = verify(store, deep=True)
    assert (finding.name, finding.kind) == ("v3", "times")


@pytest.mark.parametrize("inside", ["features/c.0.0", "times/c.0", "features/zarr.json"])
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_file_cut_or_gone_names_every_video_in_it(
    store: FeatureStore, inside: str, how: str
) -> None:
    path = file_of(store, "v2", inside)
    expected = sharing_part_with(store, "v2")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    assert names(verify(store)) == names(verify(store, deep=True)) == expected


def test_dropping_damaged_videos_lets_exactly_those_be_made_again(store: FeatureStore) -> None:
    path = file_of(store, "v2", "features/c.0.0")
    expected = sharing_part_with(store, "v2")
    path.write_bytes(path.read_bytes()[:-9])
    assert set(store.drop_damaged(verify(store))) == expected
    missing = {s for s in range(6) if not store.has_content(SPEC.fid, content(s))}
    assert {f"v{seed}" for seed in missing} == expected
    fill(store, missing)
    assert verify(FeatureStore.open(store.path), deep=True) == []
    assert all(np.array_equal(store[f"v{seed}"][:], rows(seed)) for seed in range(6))
    assert store.gc(grace_sec=0).parts


def test_dropping_uses_another_copy_where_there_is_one(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FeatureStore.open(store.path, "a")
    first = FeatureStore.create(store.path)
    with first.writer(SPEC) as one, other.writer(SPEC) as two:
        add(one, "twin", 50)
        add(two, "twin", 50)
        # both pack in the same moment: neither sees the other's video
        monkeypatch.setattr(first, "note_committed", lambda fid, contents=(): None)
    store.refresh()
    flip(file_of(store, "twin", "features/c.0.0"), store["twin"].row.first_row * ROW_BYTES)
    assert store.drop_damaged(verify(store, deep=True)) == []
    assert np.array_equal(store["twin"][:], rows(50))
    assert verify(store, deep=True) == []


def test_damaged_commit_is_found_and_its_videos_named(
    store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sharing_part_with(store, "v2")
    part = store["v2"].row.part
    flip(store.path / "features" / SPEC.fid / "commits" / f"{part}.json", 100)
    assert names(verify(store)) == expected  # the catalogue remembers them
    (store.path / "features" / SPEC.fid / "catalogue.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        (finding,) = verify(store)
    assert (finding.name, finding.part, finding.kind) == ("", part, "commit")
    assert "not present" in caplog.text
    store.drop_damaged([finding])
    fill(store, range(6))
    assert verify(FeatureStore.open(store.path), deep=True) == []


def test_damaged_catalogue_is_made_again_from_the_commits(store: FeatureStore) -> None:
    catalogue = store.path / "features" / SPEC.fid / "catalogue.jsonl"
    flip(catalogue, 50)
    reader = FeatureStore.open(store.path)
    assert set(reader.videos(SPEC.fid)) == {f"v{seed}" for seed in range(6)}
    fill(store, [7])
    assert len(catalogue.read_bytes().splitlines()) == len(reader.backend.commit_ids(SPEC.fid))


def test_every_name_of_a_damaged_video_is_reported(store: FeatureStore) -> None:
    with store.writer(SPEC) as writer:
        writer.alias("again", content(3))
    flip(file_of(store, "v3", "features/c.0.0"), store["v3"].row.first_row * ROW_BYTES)
    assert names(verify(store, deep=True)) == {"v3", "again"}


def test_spec_that_is_not_its_id_is_noted(store: FeatureStore) -> None:
    file = store.path / "features" / SPEC.fid / "zarr.json"
    file.write_text(file.read_text().replace('"tiny"', '"other"'))
    (finding,) = verify(store)
    assert (finding.kind, finding.damaged) == ("spec", False)


def test_damaged_rows_of_an_hdf5_store_are_found(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "x.h5")
    fill(store, range(6), part_rows=100)
    row = store["v3"].row
    with h5py.File(store.path, "r+") as file:
        file[f"features/{SPEC.fid}/parts/{row.part}/features"][row.first_row, 0] += 1
    store = FeatureStore.open(store.path, "a")
    assert names(verify(store)) == set()
    assert names(verify(store, deep=True)) == {"v3"}
    assert store.drop_damaged(verify(store, deep=True)) == ["v3"]
    fill(store, range(6))
    assert verify(store, deep=True) == []


def test_missing_arrays_of_an_hdf5_store_are_found(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "x.h5")
    fill(store, range(6), part_rows=100)
    expected = sharing_part_with(store, "v3")
    part = store["v3"].row.part
    with h5py.File(store.path, "r+") as file:
        del file[f"features/{SPEC.fid}/parts/{part}/times"]
    assert names(verify(FeatureStore.open(store.path))) == expected
