"""The plain layout is Zarr's own, and what others rewrote still reads right."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from tadpipe.errors import StoreError
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.shards import (
    CHUNK_ROWS,
    PartFolder,
    ShardedRows,
    shard_index,
    write_part,
)
from tadpipe.store.spool import Spool, SpooledVideo
from tadpipe.store.verify import verify
from tests.unit.store.small_videos import CHANNELS, SPEC, fill, rows, times

ROW_BYTES = CHANNELS * 2


@pytest.fixture
def spooled(tmp_path: Path) -> list[SpooledVideo]:
    """Videos of 150, 1 and 149 rows: 300 rows, which is no multiple of anything."""
    spool = Spool(tmp_path / "spool", "w", {})
    for seed, count in enumerate((150, 1, 149)):
        line = {"content_sha256": str(seed), "rows": count}
        spool.add(line, rows(seed, count), times(count))
    return spool.videos()


def wanted() -> Any:
    return np.concatenate([rows(seed, count) for seed, count in enumerate((150, 1, 149))])


def part_of(store: FeatureStore) -> Path:
    (part,) = (store.path / "features" / SPEC.fid / "parts").glob("*/features")
    return part


@pytest.mark.parametrize("shard_rows", [64, 128, 320, 32_768])
def test_zarr_reads_what_is_written(
    tmp_path: Path, spooled: list[SpooledVideo], shard_rows: int
) -> None:
    write_part(tmp_path / "part", spooled, shard_rows)
    array = zarr.open_array(str(tmp_path / "part" / "features"), mode="r")
    assert (array.chunks, array.compressors) == ((CHUNK_ROWS, CHANNELS), ())
    assert np.array_equal(np.asarray(array[:]), wanted())
    assert np.array_equal(np.asarray(array[100:300]), wanted()[100:300])
    stored_times = zarr.open_array(str(tmp_path / "part" / "times"), mode="r")
    assert np.array_equal(stored_times[:], np.concatenate([times(n) for n in (150, 1, 149)]))


@pytest.mark.parametrize("shard_rows", [64, 128, 320, 32_768])
def test_memory_map_reads_what_is_written(
    tmp_path: Path, spooled: list[SpooledVideo], shard_rows: int
) -> None:
    write_part(tmp_path / "part", spooled, shard_rows)
    part = ShardedRows(PartFolder(tmp_path / "part"))
    for start, stop, step in ((0, 300, 1), (0, 300, 3), (63, 65, 1), (127, 290, 5), (299, 300, 1)):
        assert np.array_equal(part.read(start, stop, step), wanted()[start:stop:step])
    assert np.array_equal(part.times(149, 152), [times(150)[-1], times(1)[0], times(149)[0]])


def test_files_are_the_bytes_zarr_itself_writes(
    tmp_path: Path, spooled: list[SpooledVideo]
) -> None:
    write_part(tmp_path / "part", spooled, 128)
    twin = zarr.create_array(
        str(tmp_path / "twin"),
        shape=(300, CHANNELS),
        dtype="float16",
        chunks=(CHUNK_ROWS, CHANNELS),
        shards=(128, CHANNELS),
        compressors=None,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    twin[:] = wanted()
    for shard in range(3):
        ours = (tmp_path / "part" / "features" / f"c.{shard}.0").read_bytes()
        assert ours == (tmp_path / "twin" / f"c.{shard}.0").read_bytes()


def test_no_zarr_is_loaded_to_read_the_plain_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.create(tmp_path / "x.zarr")
    fill(store, [1])
    monkeypatch.setattr(PartFolder, "open_with_zarr", None)
    assert np.array_equal(store["v1"][:], rows(1))


def rewrite(array_folder: Path, **layout: Any) -> None:
    values = zarr.open_array(str(array_folder), mode="r")[:]
    shutil.rmtree(array_folder)
    array = zarr.create_array(
        str(array_folder), shape=values.shape, dtype=values.dtype, chunks=values.shape, **layout
    )
    array[:] = values


@pytest.mark.parametrize(
    "layout", [{"compressors": zarr.codecs.ZstdCodec()}, {"compressors": None}], ids=str
)
def test_part_rewritten_by_another_tool_reads_right(tmp_path: Path, layout: Any) -> None:
    store = FeatureStore.create(tmp_path / "x.zarr")
    fill(store, range(4))
    rewrite(part_of(store), **layout)
    rewrite(part_of(store).with_name("times"), **layout)
    reader = FeatureStore.open(store.path)
    for seed in range(4):
        assert np.array_equal(reader[f"v{seed}"][3:9:2], rows(seed)[3:9:2])
        assert np.array_equal(reader[f"v{seed}"].times, times(len(rows(seed))))
    assert verify(reader, deep=True) == []


def test_shard_in_another_order_reads_right(
    tmp_path: Path, spooled: list[SpooledVideo], caplog: pytest.LogCaptureFixture
) -> None:
    write_part(tmp_path / "part", spooled, 320)
    file = tmp_path / "part" / "features" / "c.0.0"
    chunk = CHUNK_ROWS * ROW_BYTES
    raw, count = file.read_bytes(), 5
    chunks = [raw[i * chunk : (i + 1) * chunk] for i in range(count)]
    entries = np.array([[(count - 1 - i) * chunk, chunk] for i in range(count)], dtype="<u8")
    index = entries.tobytes()
    file.write_bytes(
        b"".join(chunks[::-1]) + index + google_crc32c.value(index).to_bytes(4, "little")
    )
    part = ShardedRows(PartFolder(tmp_path / "part"))
    with caplog.at_level(logging.INFO):
        assert np.array_equal(part.read(60, 200, 2), wanted()[60:200:2])
    assert "not in plain row order" in caplog.text
    assert part.flaw_of_shard(0) == ""


def test_index_of_a_partly_filled_shard_marks_the_rest_absent() -> None:
    entries = np.frombuffer(shard_index(64, 192, 10)[:-4], "<u8").reshape(-1, 2)
    assert entries.tolist() == [[0, 640], [2**64 - 1] * 2, [2**64 - 1] * 2]


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "index"])
def test_damaged_shard_is_an_error_that_says_so(
    tmp_path: Path, spooled: list[SpooledVideo], damage: str
) -> None:
    write_part(tmp_path / "part", spooled, 128)
    file = tmp_path / "part" / "features" / "c.1.0"
    raw = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        broken = {"cut": raw[:-100], "empty": b"", "index": raw[:-10] + b"x" + raw[-9:]}
        file.write_bytes(broken[damage])
    part = ShardedRows(PartFolder(tmp_path / "part"))
    assert np.array_equal(part.read(0, 128, 1), wanted()[:128])
    with pytest.raises(StoreError, match="damaged"):
        part.read(100, 140, 1)
    assert part.flaw_of_shard(0) == ""
    assert "c.1.0" in part.flaw_of_shard(1)


def test_damaged_metadata_is_an_error_that_says_so(
    tmp_path: Path, spooled: list[SpooledVideo]
) -> None:
    write_part(tmp_path / "part", spooled, 128)
    (tmp_path / "part" / "features" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        ShardedRows(PartFolder(tmp_path / "part"))


def test_every_level_of_a_store_is_a_zarr_group(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "x.zarr")
    fill(store, range(3))
    root = zarr.open_group(str(store.path), mode="r")
    group = root[f"features/{SPEC.fid}"]
    assert json.loads(json.dumps(dict(group.attrs)))["tadpipe_feature_spec"] == SPEC.to_mapping()
    ((_, part),) = list(root[f"features/{SPEC.fid}/parts"].groups())
    first = store["v1"].row.first_row
    assert np.array_equal(part["features"][first : first + len(rows(1))], rows(1))
