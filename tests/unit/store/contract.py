"""What every kind of store must do; the test files of the kinds inherit these tests."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tadpipe.errors import ConfigError, StoreError
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.folding import fold
from tadpipe.store.ledger import LedgerRow
from tadpipe.store.verify import verify
from tests.unit.store.small_videos import SPEC, add, content, fill, rows, spec, times


class StoreContract:
    """Subclasses give `suffix`."""

    suffix = ""
    packs_through: tuple[object, str] = (os, "replace")  # what fails when the disk is full

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / f"features{self.suffix}"

    @pytest.fixture
    def store(self, path: Path) -> FeatureStore:
        return FeatureStore.create(path)

    # Reading what was written

    def test_rows_come_back_bit_for_bit(self, store: FeatureStore) -> None:
        fill(store, range(8), part_rows=200)
        for seed in range(8):
            assert np.array_equal(np.asarray(store[f"v{seed}"]), rows(seed))

    def test_another_process_would_see_the_same(self, store: FeatureStore, path: Path) -> None:
        fill(store, range(3))
        assert np.array_equal(FeatureStore.open(path)["v2"][:], rows(2))

    def test_window_is_read_across_chunk_and_shard_borders(self, store: FeatureStore) -> None:
        wanted = rows(5, 500)
        with store.writer(SPEC, part_rows=100) as writer:
            add(writer, "long", 5, wanted)
        view = store["long"]
        for start, stop, step in (
            (0, 500, 1),
            (60, 70, 1),
            (120, 260, 1),
            (1, 499, 7),
            (64, 65, 2),
        ):
            assert np.array_equal(view[start:stop:step], wanted[start:stop:step])

    def test_view_indexes_like_an_array(self, store: FeatureStore) -> None:
        wanted = rows(5, 40)
        with store.writer(SPEC) as writer:
            add(writer, "v", 5, wanted)
        view = store["v"]
        assert (view.shape, view.dtype, len(view)) == ((40, 6), np.dtype("float16"), 40)
        for key in (3, -1, slice(30, 90), slice(9, 2, -2), (slice(2, 5), 1), [4, 4, 0]):
            assert np.array_equal(view[key], wanted[key])
        with pytest.raises(IndexError):
            view[40]

    def test_rows_read_are_the_readers_own(self, store: FeatureStore) -> None:
        fill(store, [1])
        store["v1"][0:1][:] = 0
        assert np.array_equal(store["v1"][:], rows(1))

    def test_view_converts_to_another_type(self, store: FeatureStore) -> None:
        fill(store, [1])
        assert np.asarray(store["v1"], dtype=np.float32).dtype == np.float32

    def test_float32_is_kept_on_request(self, store: FeatureStore) -> None:
        wanted = rows(1, 70, "float32")
        with store.writer(spec(stored_dtype="float32")) as writer:
            add(writer, "v", 1, wanted)
        assert np.array_equal(store["v"][:], wanted)

    def test_row_of_the_table_says_what_was_given(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer:
            add(
                writer,
                "v",
                1,
                rows(1, 9),
                fps=Fraction(30000, 1001),
                dt=Fraction(1001, 7500),
                truncated=True,
                offset_frames=4.0,
            )
        row = store["v"].row
        assert (row.name, row.content_sha256, row.rows) == ("v", content(1), 9)
        assert (row.fps, row.dt) == (Fraction(30000, 1001), Fraction(1001, 7500))
        assert (row.frames, row.truncated, row.offset_frames) == (48, True, 4.0)
        assert (row.nan_count, row.clip_len) == (0, 16)

    # Time

    def test_times_are_those_given(self, store: FeatureStore) -> None:
        fill(store, [1, 2])
        assert np.array_equal(store["v2"].times, times(len(rows(2))))

    def test_grid_of_a_constant_rate_is_the_formula(self, store: FeatureStore) -> None:
        fill(store, [2])
        grid = store["v2"].grid
        assert (grid.rows, grid.stride_frames, grid.span_frames) == (len(rows(2)), 4.0, 16)
        assert (grid.offset_frames, grid.is_variable_rate) == (8.0, False)
        assert grid.to_sec(3) == pytest.approx((3 * 4 + 8) / 30, abs=1e-12)

    def test_grid_of_a_variable_rate_is_the_row_times(self, store: FeatureStore) -> None:
        stamps = np.array([0.1, 0.2, 0.9, 1.0])
        with store.writer(SPEC) as writer:
            add(writer, "v", 1, rows(1, 4), times=stamps, t0=0.1, dt=None, fps=None)
        assert store["v"].grid.row_times_sec == (0.1, 0.2, 0.9, 1.0)
        assert store.features("v", stride=8).grid.row_times_sec == (0.1, 0.9)

    def test_grid_of_one_row_at_a_variable_rate_has_a_step(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer:
            add(writer, "v", 1, rows(1, 1), dt=None, fps=None, frames=16, duration_sec=0.8)
        assert store["v"].grid.dt_sec == pytest.approx(4 * 0.8 / 16)

    # Names

    @pytest.mark.parametrize(
        "name",
        ["../../etc/passwd", "a/b", "/", "ü 視頻 \U0001f3ac", "\udcff\udc80.mp4", "\x00", "a\nb"],
    )
    def test_any_text_is_a_name(self, store: FeatureStore, path: Path, name: str) -> None:
        with store.writer(SPEC) as writer:
            add(writer, name, 1)
            writer.record(LedgerRow(name, "done"))
        reader = FeatureStore.open(path)
        assert list(reader.videos(SPEC.fid)) == [name]
        assert np.array_equal(reader[name][:], rows(1))
        assert reader.status().done == 1

    def test_same_content_under_two_names_is_stored_once(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer:
            add(writer, "a", 1)
            add(writer, "b", 1)
            writer.alias("c", content(1))
        assert list(store.videos(SPEC.fid)) == ["a", "b", "c"]
        assert store["b"].row.first_row == store["c"].row.first_row == 0
        assert store["c"].row.name == "c"
        assert store.info().specs[0].rows == len(rows(1))

    def test_later_content_takes_over_a_name(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer:
            add(writer, "v", 1)
        with store.writer(SPEC) as writer:
            add(writer, "v", 2)
        assert np.array_equal(store["v"][:], rows(2))
        with store.writer(SPEC) as writer:  # the file of before is back
            writer.alias("v", content(1))
        assert np.array_equal(store["v"][:], rows(1))

    def test_last_word_of_a_writer_about_a_name_counts(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer:
            add(writer, "v", 1)
            writer.flush()
            add(writer, "v", 2)
            writer.alias("v", content(1))
            writer.alias("w", content(1))
            add(writer, "w", 3)
        assert store["v"].row.content_sha256 == content(1)
        assert store["w"].row.content_sha256 == content(3)

    def test_alias_of_unknown_content_is_refused(self, store: FeatureStore) -> None:
        with (
            store.writer(SPEC) as writer,
            pytest.raises(StoreError, match="that is stored"),
        ):
            writer.alias("x", content(9))

    def test_unknown_name_gives_the_nearest(self, store: FeatureStore) -> None:
        fill(store, [10, 11])
        with pytest.raises(StoreError, match="v10"):
            store["v1O"]

    # Which features

    def test_specs_are_told_apart_by_stride(self, store: FeatureStore) -> None:
        coarse = spec(stride=6)
        fill(store, [1])
        with store.writer(coarse) as writer:
            add(writer, "v1", 2)
        assert set(store.specs()) == {SPEC.fid, coarse.fid}
        assert store.select(stride=6) == coarse.fid
        assert store.select(stride=12) == coarse.fid  # both serve: the coarser reads less
        assert store.select(stride=8) == SPEC.fid
        with pytest.raises(ConfigError, match="--stride"):
            store.select()

    def test_specs_are_told_apart_by_backbone(self, store: FeatureStore) -> None:
        fill(store, [1])
        with store.writer(spec(backbone="other")) as writer:
            add(writer, "v1", 2)
        assert store.spec(store.select(backbone="other")).backbone == "other"
        assert np.array_equal(store.features("v1", backbone="tiny")[:], rows(1))
        with pytest.raises(ConfigError, match="several kinds"):
            store["v1"]

    def test_kinds_of_one_backbone_are_told_apart_by_id(self, store: FeatureStore) -> None:
        fill(store, [1])
        tuned = spec(weights_sha256="7" * 64)
        with store.writer(tuned) as writer:
            add(writer, "v1", 2)
        with pytest.raises(ConfigError, match=tuned.fid):
            store.select(backbone=SPEC.backbone)
        assert store.select(backbone=tuned.fid) == tuned.fid
        assert np.array_equal(store.features("v1", backbone=SPEC.fid)[:], rows(1))

    def test_multiple_of_the_stride_is_every_nth_row(self, store: FeatureStore) -> None:
        fill(store, [3])
        view = store.features("v3", stride=12)
        assert np.array_equal(np.asarray(view), rows(3)[::3])
        assert np.array_equal(view[2:5], rows(3)[::3][2:5])
        assert np.array_equal(view.times, times(len(rows(3)))[::3])
        assert (view.grid.stride_frames, view.grid.rows) == (12.0, len(view))

    @pytest.mark.parametrize(
        "changes",
        [
            {"anchor": "cell", "edges": "repeat-edge"},
            {"representation": "frame", "window_len": 64, "overlap": 8, "row_spacing": 4.0},
        ],
    )
    def test_rows_that_do_not_thin_serve_their_stride_only(
        self, store: FeatureStore, changes: dict[str, Any]
    ) -> None:
        with store.writer(spec(**changes)) as writer:
            add(writer, "v", 1)
        assert store.features("v", stride=4).shape == rows(1).shape
        with pytest.raises(StoreError, match="stride 8"):
            store.features("v", stride=8)

    def test_request_nothing_answers_lists_what_there_is(self, store: FeatureStore) -> None:
        with pytest.raises(StoreError, match="holds no features"):
            store.select()
        fill(store, [1])
        for request in ({"stride": 6}, {"backbone": "i3d"}):
            with pytest.raises(StoreError, match="tiny, stride 4 frames"):
                store.select(**request)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="No features under the id"):
            store.features("v1", fid="beef")

    def test_table_lists_and_opens(self, store: FeatureStore) -> None:
        fill(store, [1, 2])
        table = pickle.loads(pickle.dumps(store.table(stride=8)))
        assert (table.names(), table.channels, table.stride) == (["v1", "v2"], 6, 8)
        assert np.array_equal(table.open("v2")[:], rows(2)[::2])

    # Writing

    def test_flush_makes_videos_visible(self, store: FeatureStore, path: Path) -> None:
        with store.writer(SPEC) as writer:
            add(writer, "v1", 1)
            assert store.has_content(SPEC.fid, content(1))
            assert not len(FeatureStore.open(path).videos(SPEC.fid))
            writer.flush()
            assert list(FeatureStore.open(path).videos(SPEC.fid)) == ["v1"]

    def test_interrupted_writer_commits_what_was_finished(self, store: FeatureStore) -> None:
        def interrupted() -> None:
            with store.writer(SPEC) as writer:
                add(writer, "v1", 1)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert np.array_equal(store["v1"][:], rows(1))

    def test_writer_without_videos_leaves_nothing(self, store: FeatureStore) -> None:
        with store.writer(SPEC):
            pass
        assert store.specs() == {}

    def test_closed_writer_refuses(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer:
            pass
        with pytest.raises(StoreError, match="closed"):
            add(writer, "v1", 1)

    @pytest.mark.parametrize(
        ("features", "stamps", "message"),
        [
            (np.zeros((0, 6)), np.zeros(0), "n >= 1"),
            (np.zeros((3, 5)), np.zeros(3), r"\[n, 6\]"),
            (np.zeros((3, 6)), np.zeros(2), "time per row"),
            (np.zeros((3, 6)), np.array([0, np.nan, 1]), "finite"),
            (np.zeros((3, 6)), np.array([0, 2, 1]), "must not fall"),
            (np.full((3, 6), 1e6), np.zeros(3), "do not fit into float16"),
        ],
    )
    def test_rows_that_cannot_be_right_are_refused(
        self, store: FeatureStore, features: Any, stamps: Any, message: str
    ) -> None:
        with store.writer(SPEC) as writer, pytest.raises(StoreError, match=message):
            add(writer, "v", 1, features, times=stamps)

    def test_content_and_writer_names_are_checked(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer, pytest.raises(StoreError, match="64 hex"):
            writer.add(
                "v", "../x", rows(1), times(1), t0=0, dt=None, fps=None, frames=1, duration_sec=1
            )
        with pytest.raises(ConfigError, match="writer"):
            store.writer(SPEC, writer_id="../x")

    def test_store_opened_for_reading_refuses_to_write(
        self, store: FeatureStore, path: Path
    ) -> None:
        reader = FeatureStore.open(path)
        for attempt in (
            lambda: reader.writer(SPEC),
            lambda: reader.delete("x", "y"),
            lambda: reader.set_annotations(b""),
            lambda: reader.gc(),
        ):
            with pytest.raises(StoreError, match="opened for reading"):
                attempt()

    @pytest.mark.parametrize(
        ("number", "message"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "Cannot write")]
    )
    def test_disk_that_refuses_loses_nothing_committed(
        self,
        store: FeatureStore,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        message: str,
    ) -> None:
        fill(store, [1, 2])

        def refuse(handle: int) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch, store.writer(SPEC) as writer:
            add(writer, "v3", 3)
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(StoreError, match=message):
                add(writer, "v4", 4)
            patch.undo()
        reader = FeatureStore.open(path)
        assert list(reader.videos(SPEC.fid)) == ["v1", "v2", "v3"]
        assert verify(reader, deep=True) == []

    def test_failed_packing_leaves_finished_videos_to_the_next_writer(
        self, store: FeatureStore, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        writer = store.writer(SPEC)
        writer.__enter__()
        add(writer, "v1", 1)
        with monkeypatch.context() as patch:
            patch.setattr(*self.packs_through, refuse)
            with pytest.raises(StoreError, match="full"):
                writer.__exit__(None, None, None)
        assert store.status().waiting_in_spool == 1
        fill(FeatureStore.open(path, "a"), [2])
        assert list(FeatureStore.open(path).videos(SPEC.fid)) == ["v1", "v2"]

    # Taking out

    def test_deleted_name_is_gone_and_can_come_back(self, store: FeatureStore) -> None:
        fill(store, [1, 2])
        store.delete(SPEC.fid, "v1")
        assert list(store.videos(SPEC.fid)) == ["v2"]
        assert not store.has_content(SPEC.fid, content(1))
        fill(store, [1])
        assert np.array_equal(store["v1"][:], rows(1))
        with pytest.raises(StoreError, match="to delete"):
            store.delete(SPEC.fid, "nobody")

    def test_deleting_one_of_two_names_keeps_the_other(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer:
            add(writer, "a", 1)
            writer.alias("b", content(1))
        store.delete(SPEC.fid, "a")
        assert list(store.videos(SPEC.fid)) == ["b"]
        assert np.array_equal(store["b"][:], rows(1))

    def test_gc_frees_parts_of_which_nothing_is_used(self, store: FeatureStore, path: Path) -> None:
        for seed in (1, 2):
            with store.writer(SPEC) as writer:
                add(writer, f"v{seed}", seed, rows(seed, 3000))
        store.delete(SPEC.fid, "v1")
        planned = store.gc(dry_run=True, grace_sec=0)
        before = store.info().bytes_on_disk
        report = store.gc(grace_sec=0)
        assert len(report.parts) == 1
        assert report.parts == planned.parts
        assert report.bytes_freed > 3000 * 6 * 2
        assert store.info().bytes_on_disk < before - 3000 * 6 * 2
        reader = FeatureStore.open(path)
        assert np.array_equal(reader["v2"][:], rows(2, 3000))
        assert verify(reader, deep=True) == []

    def test_gc_keeps_names_that_only_a_removed_commit_knew(self, store: FeatureStore) -> None:
        other = FeatureStore.open(store.path, "a")
        fill(store, [1])
        with store.writer(SPEC) as writer:
            add(writer, "v2", 2)
            writer.alias("again", content(1))
        store.delete(SPEC.fid, "v2")
        other.gc(grace_sec=0)
        assert list(FeatureStore.open(store.path).videos(SPEC.fid)) == ["v1", "again"]

    def test_several_names_are_deleted_by_one_commit(self, store: FeatureStore) -> None:
        fill(store, [1, 2, 3])
        store.delete(SPEC.fid, "v1", "v3")
        assert list(store.videos(SPEC.fid)) == ["v2"]
        with pytest.raises(StoreError, match="v2"):
            store.delete(SPEC.fid, "v2", "v22")
        assert list(store.videos(SPEC.fid)) == ["v2"]

    # Compacting

    def test_compacted_store_reads_the_same_from_one_part(
        self, store: FeatureStore, path: Path
    ) -> None:
        for seed in range(4):
            fill(store, [seed])
        with store.writer(SPEC) as writer:
            writer.alias("again", content(1))
        store.delete(SPEC.fid, "v2")
        before = list(store.videos(SPEC.fid))
        planned = store.compact(dry_run=True)
        report = store.compact()
        assert (report.parts_before, report.parts_after) == (4, 1)
        assert (planned.parts_before, planned.rows) == (4, report.rows)
        assert report.rows_dropped == len(rows(2))
        for reader in (store, FeatureStore.open(path)):
            assert list(reader.videos(SPEC.fid)) == before
            assert len(reader.videos(SPEC.fid).live_parts()) == 1
            for name, seed in (("v0", 0), ("v1", 1), ("again", 1), ("v3", 3)):
                assert np.array_equal(reader[name][:], rows(seed))
                assert np.array_equal(reader[name].times, times(len(rows(seed))))
            assert verify(reader, deep=True) == []
        assert not store.has_content(SPEC.fid, content(2))

    def test_compacting_twice_changes_nothing_more(self, store: FeatureStore) -> None:
        for seed in range(3):
            fill(store, [seed])
        store.compact()
        store.gc(grace_sec=0)
        assert store.compact().parts_before == 0
        assert len(store.videos(SPEC.fid).commits) == 1

    def test_part_in_full_use_is_left_alone(self, store: FeatureStore) -> None:
        fill(store, [1, 2])
        assert store.compact().parts_before == 0

    def test_reader_from_before_compaction_follows_the_rows(
        self, store: FeatureStore, path: Path
    ) -> None:
        for seed in range(3):
            fill(store, [seed])
        reader = FeatureStore.open(path)
        view = reader["v1"]
        assert list(reader.videos(SPEC.fid)) == ["v0", "v1", "v2"]
        store.compact()
        store.gc(grace_sec=0)
        assert np.array_equal(view[3:], rows(1)[3:])
        assert np.array_equal(view.times, times(len(rows(1))))
        assert np.array_equal(reader["v2"][:], rows(2))

    def test_writer_goes_on_while_another_compacts(self, store: FeatureStore, path: Path) -> None:
        if path.suffix == ".h5":
            pytest.skip("an HDF5 store has one writer at a time")
        for seed in range(3):
            fill(store, [seed])
        other = FeatureStore.open(path, "a")
        with other.writer(SPEC) as writer:
            add(writer, "v5", 5)
            store.compact()
            store.gc(grace_sec=0)
            writer.alias("again", content(0))
        reader = FeatureStore.open(path)
        assert set(reader.videos(SPEC.fid)) == {"v0", "v1", "v2", "v5", "again"}
        assert verify(reader, deep=True) == []

    def test_content_that_another_writer_committed_first_is_not_stored_again(
        self, store: FeatureStore, path: Path
    ) -> None:
        if path.suffix == ".h5":
            pytest.skip("an HDF5 store has one writer at a time")
        with store.writer(SPEC) as writer:
            for name, seed in (("v1", 1), ("mine", 2), ("v3", 3)):
                add(writer, name, seed)
            fill(FeatureStore.open(path, "a"), [1, 2])
        videos = FeatureStore.open(path).videos(SPEC.fid)
        assert {name: videos.content_of(name) for name in videos} == {
            "v1": content(1), "v2": content(2), "mine": content(2), "v3": content(3)
        }  # fmt: skip
        assert [len(videos.copies(content(seed))) for seed in (1, 2, 3)] == [1, 1, 1]
        assert store.status().waiting_in_spool == 0

    def test_name_deleted_while_another_compacts_stays_deleted(
        self, store: FeatureStore, path: Path
    ) -> None:
        for seed in range(3):
            fill(store, [seed])
        other = FeatureStore.open(path, "a")
        seen = store.videos(SPEC.fid)
        other.delete(SPEC.fid, "v1")
        late = fold(seen, [commit.id for commit in seen.effective[:2]])
        store.backend.publish(SPEC, late, [], store.backend.work)
        assert "v1" not in FeatureStore.open(path).videos(SPEC.fid)

    def test_replaced_parts_stay_for_the_grace(self, store: FeatureStore, path: Path) -> None:
        if path.suffix == ".h5":
            pytest.skip("readers of an HDF5 store keep the file they opened")
        for seed in range(3):
            fill(store, [seed])
        store.compact()
        report = store.gc(grace_sec=3600)
        assert (report.parts, len(report.waiting), report.bytes_freed) == ([], 3, 0)
        assert len(store.gc(grace_sec=0).parts) == 3
        assert store.gc(grace_sec=0).parts == []

    def test_damaged_part_is_named_and_left_alone(
        self, store: FeatureStore, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for seed in range(3):
            fill(store, [seed])
        monkeypatch.setattr("tadpipe.store.compaction.checksum", lambda rows: "another")
        report = store.compact()
        assert (sorted(report.damaged), report.parts_before) == (["v0", "v1", "v2"], 0)
        monkeypatch.undo()
        assert verify(FeatureStore.open(path), deep=True) == []

    # Merging

    @pytest.fixture
    def other(self, tmp_path: Path) -> FeatureStore:
        return FeatureStore.create(tmp_path / "other.zarr")

    def test_merged_stores_hold_what_each_held(
        self, store: FeatureStore, other: FeatureStore, path: Path
    ) -> None:
        fill(store, [1, 2])
        fill(other, [2, 3, 4], part_rows=1)
        with other.writer(SPEC) as writer:
            writer.alias("again", content(3))
            writer.alias("two", content(2))
        planned = store.merge(other, dry_run=True)
        assert set(store.videos(SPEC.fid)) == {"v1", "v2"}
        report = store.merge(other)
        assert (report.videos, report.contents, report.already) == (4, 2, 1)
        assert report.conflicts == report.deleted == []
        assert (planned.videos, planned.contents) == (4, 2)
        reader = FeatureStore.open(path)
        assert set(reader.videos(SPEC.fid)) == {"v1", "v2", "v3", "v4", "again", "two"}
        for name, seed in (("v1", 1), ("two", 2), ("v3", 3), ("again", 3), ("v4", 4)):
            assert np.array_equal(reader[name][:], rows(seed))
        assert verify(reader, deep=True) == []
        assert reader.info().specs[0].rows == sum(len(rows(seed)) for seed in (1, 2, 3, 4))

    def test_merging_again_takes_nothing(self, store: FeatureStore, other: FeatureStore) -> None:
        fill(other, [2, 3], part_rows=1)
        store.merge(other)
        commits = store.backend.commit_ids(SPEC.fid)
        report = store.merge(other)
        assert (report.videos, report.contents, report.already) == (0, 0, 2)
        assert store.backend.commit_ids(SPEC.fid) == commits

    def test_newer_meaning_of_a_name_counts_whatever_is_merged_first(
        self, store: FeatureStore, other: FeatureStore, tmp_path: Path
    ) -> None:
        third = FeatureStore.create(tmp_path / "third.zarr")
        for seed, older in ((1, other), (2, third)):
            with older.writer(SPEC) as writer:
                add(writer, "v", seed)
        for source in (third, other):
            report = store.merge(source)
        assert [(c.name, c.kept, c.other) for c in report.conflicts] == [
            ("v", content(2), content(1))
        ]
        assert np.array_equal(store["v"][:], rows(2))

    def test_deletion_in_a_source_deletes_nothing_here(
        self, store: FeatureStore, other: FeatureStore
    ) -> None:
        fill(store, [1])
        fill(other, [1, 2])
        other.delete(SPEC.fid, "v1")
        store.merge(other)
        assert set(store.videos(SPEC.fid)) == {"v1", "v2"}

    def test_name_deleted_here_is_not_brought_back(
        self, store: FeatureStore, other: FeatureStore
    ) -> None:
        fill(other, [1, 2])
        store.merge(other)
        store.delete(SPEC.fid, "v1")
        report = store.merge(other)
        assert report.deleted == ["v1"]
        assert set(store.videos(SPEC.fid)) == {"v2"}

    def test_annotations_come_along_where_there_are_none(
        self, store: FeatureStore, other: FeatureStore
    ) -> None:
        other.set_annotations(b"{}")
        store.merge(other)
        assert store.annotations() == b"{}"

    # Verifying

    def test_sound_store_has_no_findings(self, store: FeatureStore) -> None:
        fill(store, range(9), part_rows=100)
        assert verify(store) == verify(store, deep=True) == []

    def test_nan_and_outliers_are_noted_but_kept(self, store: FeatureStore) -> None:
        odd = rows(50, 30)
        odd[3, 2] = np.nan
        with store.writer(SPEC) as writer:
            for seed in range(8):
                add(writer, f"v{seed}", seed)
            add(writer, "nan", 50, odd)
            add(writer, "huge", 51, rows(51) * 1000)
        found = {(f.name, f.kind, f.damaged) for f in verify(store, deep=True)}
        assert found == {("nan", "nan", False), ("huge", "outlier", False)}
        assert verify(store) == []

    # Annotations, ledger, status

    def test_annotations_are_kept_as_given(self, store: FeatureStore, path: Path) -> None:
        assert store.annotations() is None
        for raw in (b'{"database": {}}', b"\xff\x00 second"):
            store.set_annotations(raw)
            assert FeatureStore.open(path).annotations() == raw
            assert store.annotations_sha256() == hashlib.sha256(raw).hexdigest()

    def test_status_counts_the_newest_attempt_of_each_video(self, store: FeatureStore) -> None:
        with store.writer(SPEC) as writer:
            writer.record(LedgerRow("a", "failed", "truncated", seconds=2.0, at_unix_sec=1.0))
            writer.record(LedgerRow("b", "failed", "not-a-video", "zero bytes", at_unix_sec=2.0))
            writer.record(LedgerRow("a", "done", frames_decoded=40, bytes=7, at_unix_sec=3.0))
        status = store.status()
        assert (status.done, status.reused, status.reasons) == (1, 0, {"not-a-video": 1})
        assert [row.message for row in status.failed] == ["zero bytes"]
        assert (status.seconds, status.frames_decoded, status.bytes) == (2.0, 40, 7)

    # Opening

    def test_missing_store_names_its_neighbour(self, store: FeatureStore, path: Path) -> None:
        near = str(path).replace(path.name, "feature" + self.suffix)
        with pytest.raises(StoreError, match=f"Did you mean .*{path.name}"):
            FeatureStore.open(near)

    def test_create_opens_what_is_there(self, store: FeatureStore, path: Path) -> None:
        fill(store, [1])
        assert np.array_equal(FeatureStore.create(path)["v1"][:], rows(1))
        with pytest.raises(StoreError, match="something at this path"):
            FeatureStore.create(path, exist_ok=False)
