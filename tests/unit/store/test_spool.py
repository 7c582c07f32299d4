"""Leases tell the living from the dead; finished videos outlive their writer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tadpipe.errors import StoreError
from tadpipe.store.durable import Lease, append_line
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.writer import StoreWriter
from tests.unit.store.small_videos import SPEC, add, fill, rows


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "x.zarr")


def abandon(writer: StoreWriter) -> None:
    """What a kill leaves: the spool as it is, its lease gone."""
    writer._open_spool()._lease.release()


def spool_folders(store: FeatureStore) -> list[Path]:
    return sorted(store.backend.spool_root(SPEC.fid).iterdir())


def test_living_writer_keeps_its_spool(store: FeatureStore) -> None:
    other = FeatureStore.open(store.path, "a")
    with store.writer(SPEC) as living:
        add(living, "v1", 1)
        fill(other, [2])
        assert list(other.videos(SPEC.fid)) == ["v2"]
        other.gc(grace_sec=0)
        assert len(spool_folders(store)) == 1
    other.refresh()
    assert list(other.videos(SPEC.fid)) == ["v2", "v1"]


def test_dead_writers_videos_are_adopted_and_not_asked_for_again(store: FeatureStore) -> None:
    dead = store.writer(SPEC)
    dead.__enter__()
    add(dead, "v1", 1)
    abandon(dead)
    (folder,) = spool_folders(store)
    (folder / "00000009-half.tmp").write_bytes(b"half a video")
    (folder / "building" / "features").mkdir(parents=True)
    other = FeatureStore.open(store.path, "a")
    with other.writer(SPEC):
        assert other.has_content(SPEC.fid, "0" * 64) is False
        assert np.array_equal(other.videos(SPEC.fid).latest_ns, 0)
        assert not folder.exists()
    assert np.array_equal(other["v1"][:], rows(1))
    assert spool_folders(store) == []


def test_video_committed_before_the_kill_is_not_packed_twice(store: FeatureStore) -> None:
    dead = store.writer(SPEC)
    dead.__enter__()
    add(dead, "v1", 1)
    (folder,) = spool_folders(store)
    kept = {path: path.read_bytes() for path in folder.glob("*.video")}
    dead.flush()
    for path, raw in kept.items():  # as if killed between the commit and the tidying up
        path.write_bytes(raw)
    abandon(dead)
    fill(store, [2])
    assert [commit.rows for commit in store.videos(SPEC.fid).commits] == [
        len(rows(1)),
        len(rows(2)),
    ]


def test_gc_packs_what_a_dead_writer_had_finished(store: FeatureStore) -> None:
    dead = store.writer(SPEC)
    dead.__enter__()
    add(dead, "v1", 1)
    abandon(dead)
    other = FeatureStore.open(store.path, "a")
    assert other.status().waiting_in_spool == 1
    assert (
        other.gc(dry_run=True, grace_sec=0).packed_videos
        == other.gc(grace_sec=0).packed_videos
        == 1
    )
    assert np.array_equal(other["v1"][:], rows(1))


def test_gc_removes_half_parts_of_dead_writers_only(store: FeatureStore) -> None:
    fill(store, [1])
    parts = store.path / "features" / SPEC.fid / "parts"
    with store.writer(SPEC, writer_id="living"):
        for name in ("living.00000000", "dead.00000000"):
            (parts / name).mkdir()
            (parts / name / "zarr.json").write_text("{}")
        assert FeatureStore.open(store.path, "a").gc(grace_sec=0).half_parts == ["dead.00000000"]
        assert (parts / "living.00000000").exists()
    assert not (parts / "dead.00000000").exists()


def test_gc_removes_stale_half_written_files(store: FeatureStore) -> None:
    fill(store, [1])
    commits = store.path / "features" / SPEC.fid / "commits"
    for name, age_sec in ((".old-x", 7200), (".new-x", 0)):
        (commits / name).write_bytes(b"{")
        when = (commits / name).stat().st_mtime - age_sec
        os.utime(commits / name, (when, when))
    store.gc(grace_sec=0)
    assert [path.name for path in commits.glob(".*")] == [".new-x"]


def test_writer_name_in_use_is_refused(store: FeatureStore) -> None:
    with store.writer(SPEC, writer_id="job-1"):
        other = FeatureStore.open(store.path, "a").writer(SPEC, writer_id="job-1")
        with pytest.raises(StoreError, match="with this name"):
            other.__enter__()


def test_writer_name_can_be_used_again_after_a_kill(store: FeatureStore) -> None:
    dead = store.writer(SPEC, writer_id="job-1")
    dead.__enter__()
    add(dead, "v1", 1)
    abandon(dead)
    with FeatureStore.open(store.path, "a").writer(SPEC, writer_id="job-1") as again:
        add(again, "v2", 2)
    store.refresh()
    assert list(store.videos(SPEC.fid)) == ["v1", "v2"]


def test_lease_is_taken_once_until_released(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path / "lease", "mine")
    assert lease is not None
    assert Lease.take(tmp_path / "lease") is None
    lease.release()
    lease.release()
    again = Lease.take(tmp_path / "lease")
    assert again is not None
    assert (tmp_path / "lease").read_text() == "mine"
    again.release()


def test_forked_child_does_not_keep_a_lease_alive(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path / "lease")
    assert lease is not None
    ready, child_is_ready = os.pipe()
    until, parent_is_done = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_is_done)
        os.write(child_is_ready, b"x")
        os.read(until, 1)
        os._exit(0)
    os.read(ready, 1)
    lease.release()
    again = Lease.take(tmp_path / "lease")
    os.close(parent_is_done)
    os.waitpid(child, 0)
    for handle in (ready, child_is_ready, until):
        os.close(handle)
    assert again is not None
    again.release()


def test_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"b"')
    append_line(tmp_path / "x.jsonl", '{"c": 3}')
    assert (tmp_path / "x.jsonl").read_bytes() == b'{"a": 1}\n{"b"\n{"c": 3}\n'
