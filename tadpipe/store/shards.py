"""Shards of plain rows: how a part's arrays lie on disk, written and read without a codec.

A part is two Zarr v3 arrays. `features` [R, C] has chunks of 64 rows in shards; without a
compressor a shard is simply the rows one after the other, then the index that says so. `times` [R]
is one plain chunk. `ShardedRows` checks that index once per shard and then takes rows straight
from the bytes, wherever the part's files are (`PartFiles`: a memory map of a folder here, ranges
of objects in object_part.py); arrays that any other tool rewrote (compressed, another order) are
read through zarr. Spec: Zarr v3 core and its sharding-indexed codec.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import google_crc32c
import numpy as np

from tadpipe.errors import NoAnswerError, StoreError
from tadpipe.store.spool import FinishedVideo

logger = logging.getLogger(__name__)

CHUNK_ROWS = 64
SHARD_ROWS = 32_768  # at most; a shard of [32768, 1408] float16 is 92 MB
_ABSENT = 2**64 - 1
Array = np.ndarray[Any, Any]


def round_up(rows: int, to: int = CHUNK_ROWS) -> int:
    return -(-rows // to) * to


def features_metadata(rows: int, channels: int, dtype: str, shard_rows: int) -> dict[str, Any]:
    """zarr.json of `features`."""
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [CHUNK_ROWS, channels],
        "codecs": [plain],
        "index_codecs": [plain, {"name": "crc32c"}],
        "index_location": "end",
    }
    return _array_metadata(
        [rows, channels],
        dtype,
        [shard_rows, channels],
        [{"name": "sharding_indexed", "configuration": sharding}],
    )


def times_metadata(rows: int) -> dict[str, Any]:
    """zarr.json of `times`."""
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    return _array_metadata([rows], "float64", [rows], [plain])


def _array_metadata(
    shape: list[int], dtype: str, chunk_shape: list[int], codecs: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0,
        "codecs": codecs,
        "attributes": {},
        "storage_transformers": [],
    }


def write_part(folder: Path, videos: Sequence[FinishedVideo], shard_rows: int = SHARD_ROWS) -> None:
    """Write both arrays of a part straight from the spool, synced to disk."""
    rows = sum(video.rows for video in videos)
    channels, dtype = videos[0].channels, np.dtype(videos[0].dtype)
    shard_rows = min(shard_rows, round_up(rows))
    features, times = folder / "features", folder / "times"
    features.mkdir(parents=True)
    times.mkdir()
    metadata = features_metadata(rows, channels, dtype.name, shard_rows)
    _write_synced(features / "zarr.json", [json.dumps(metadata, indent=2).encode()])
    _write_synced(times / "zarr.json", [json.dumps(times_metadata(rows), indent=2).encode()])
    _write_synced(times / "c.0", (video.times().tobytes() for video in videos))
    row_bytes = channels * dtype.itemsize
    for shard in range(-(-rows // shard_rows)):
        start, stop = shard * shard_rows, min((shard + 1) * shard_rows, rows)
        padding = bytes((round_up(stop - start) - (stop - start)) * row_bytes)
        index = shard_index(round_up(stop - start), shard_rows, row_bytes)
        blocks = (block.data.cast("B") for block in _row_blocks(videos, start, stop))
        _write_synced(features / f"c.{shard}.0", chain(blocks, (padding, index)))


def build(folder: Path, videos: Sequence[FinishedVideo]) -> Path:
    """Write a part into the folder for half-written ones of a writer's own folder."""
    building = folder / "building"
    if building.exists():  # of this writer, interrupted
        shutil.rmtree(building)
    write_part(building, videos)
    return building


def _row_blocks(videos: Sequence[FinishedVideo], start: int, stop: int) -> Iterator[Array]:
    """The rows `start` to `stop` of the part, in pieces of one video each."""
    first = 0
    for video in videos:
        lower, upper = max(start - first, 0), min(stop - first, video.rows)
        if lower < upper:
            yield video.features()[lower:upper]
        first += video.rows


def _write_synced(path: Path, blocks: Iterable[bytes | memoryview]) -> None:
    with open(path, "wb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


@lru_cache(maxsize=64)
def shard_index(present_rows: int, shard_rows: int, row_bytes: int) -> bytes:
    """The index of a shard whose chunks lie in row order: (offset, length) each, then CRC-32C."""
    chunk_bytes = CHUNK_ROWS * row_bytes
    entries = np.full((shard_rows // CHUNK_ROWS, 2), _ABSENT, dtype="<u8")
    present = present_rows // CHUNK_ROWS
    entries[:present, 0] = np.arange(present, dtype="<u8") * chunk_bytes
    entries[:present, 1] = chunk_bytes
    raw = entries.tobytes()
    return raw + google_crc32c.value(raw).to_bytes(4, "little")


class Flaw(NamedTuple):
    """Rows of a part that cannot be trusted, and why."""

    first_row: int
    stop_row: int
    message: str


class Rows(Protocol):
    """Rows [n, C] that are read when sliced."""

    def __getitem__(self, key: slice) -> Array: ...


class PartFiles(Protocol):
    """The files of one part, by their keys, such as `features/c.0.0`.

    Every method raises an OSError for what is not there or cannot be read.
    """

    def place(self, key: str) -> str: ...  # for messages

    def read(self, key: str) -> bytes: ...

    def read_range(self, key: str, start: int, stop: int) -> bytes: ...  # cut off at the end

    def size(self, key: str) -> int: ...

    def rows(self, key: str, shape: tuple[int, int], dtype: np.dtype[Any], tail: bytes) -> Any:
        """`Rows` of a file that is rows and then `tail`; None where it is anything else."""

    def open_with_zarr(self, name: str) -> Rows: ...  # whatever its codecs and order


class PartFolder:
    """The files of a part in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, key: str) -> str:
        return str(self._folder / key)

    def read(self, key: str) -> bytes:
        return (self._folder / key).read_bytes()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with open(self._folder / key, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def size(self, key: str) -> int:
        return (self._folder / key).stat().st_size

    def rows(
        self, key: str, shape: tuple[int, int], dtype: np.dtype[Any], tail: bytes
    ) -> Rows | None:
        """A memory map."""
        raw = np.memmap(self._folder / key, np.uint8, mode="r")
        rows_bytes = shape[0] * shape[1] * dtype.itemsize
        if len(raw) != rows_bytes + len(tail) or raw[rows_bytes:].tobytes() != tail:
            return None
        return raw[:rows_bytes].view(dtype).view(np.ndarray).reshape(shape)

    def open_with_zarr(self, name: str) -> Rows:
        import zarr  # 0.3 s to import, and only arrays that others rewrote need it

        array = zarr.open_array(str(self._folder / name), mode="r")
        return array  # type: ignore[return-value]  # zarr's own indexing type is wider


class ShardedRows:
    """Reads the arrays of one part; see the head of this file.

    Raises:
        StoreError: metadata or shards that are missing or damaged.
    """

    def __init__(self, files: PartFiles) -> None:
        self._files = files
        metadata = self._metadata("features")
        self.shape: tuple[int, int] = tuple(metadata["shape"])
        self._dtype = str(metadata["data_type"])
        self._shard_rows = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
        expected = features_metadata(*self.shape, self._dtype, self._shard_rows)
        self._is_plain = _means(metadata) == _means(expected)
        self._times_plain = _means(self._metadata("times")) == _means(times_metadata(self.shape[0]))
        self._shards: dict[int, Rows] = {}  # shard -> its rows
        self._through_zarr: Rows | None = None

    def _metadata(self, name: str) -> dict[str, Any]:
        key = f"{name}/zarr.json"
        try:
            return parse_metadata(self._files.read(key), self._files.place(key))
        except StoreError:
            raise
        except OSError as error:
            raise damaged(self._files.place(key), error) from None

    def read(self, start: int, stop: int, step: int) -> Array:
        """Rows `start`, `start + step`, ... below `stop`, as [n, C] in memory of their own."""
        if not self._is_plain:
            return self._zarr_rows(slice(start, stop, step))
        shard, first = divmod(start, self._shard_rows)
        if stop <= (shard + 1) * self._shard_rows:
            return self._read_shard(shard, first, first + stop - start, step)
        blocks = []
        while start < stop:
            shard, first = divmod(start, self._shard_rows)
            upper = min(stop, (shard + 1) * self._shard_rows)
            blocks.append(self._read_shard(shard, first, first + upper - start, step))
            start += round_up(upper - start, step)
        return np.concatenate(blocks)

    def times(self, start: int, stop: int) -> Array:
        """Row times [n], seconds."""
        if self._times_plain:
            key = "times/c.0"
            try:
                raw = self._files.read_range(key, start * 8, stop * 8)
            except StoreError:
                raise
            except OSError as error:
                raise damaged(self._files.place(key), error) from None
            if len(raw) == (stop - start) * 8:
                return np.frombuffer(raw, "<f8").copy()
            raise damaged(self._files.place(key), "too short")
        times = self._zarr_array("times")
        return np.asarray(times[start:stop], dtype=np.float64)

    def flaw_of_shard(self, shard: int) -> str:
        """Why a shard in plain order cannot be read; "" if it can, or if zarr has to tell."""
        if not self._is_plain:
            return ""
        key = f"features/c.{shard}.0"
        name = key.removeprefix("features/")
        try:
            size = self._files.size(key)
        except StoreError:
            raise
        except OSError as error:
            return f"{name}: {error.strerror or error}"
        present, index = self._layout(shard)
        row_bytes = self.shape[1] * np.dtype(self._dtype).itemsize
        if size != present * row_bytes + len(index):
            return f"{name}: {size} bytes, not {present * row_bytes + len(index)}"
        found = self._files.read_range(key, size - len(index), size)
        if found != index and google_crc32c.value(found[:-4]).to_bytes(4, "little") != found[-4:]:
            return f"{name}: its index is damaged"
        return ""

    def shard_ranges(self) -> Iterator[tuple[int, int]]:
        """(first row, stop row) of each shard."""
        for start in range(0, self.shape[0], self._shard_rows):
            yield start, min(start + self._shard_rows, self.shape[0])

    def _layout(self, shard: int) -> tuple[int, bytes]:
        """(rows on disk, padding included; index) of a shard in plain order."""
        rows = min(self.shape[0] - shard * self._shard_rows, self._shard_rows)
        row_bytes = self.shape[1] * np.dtype(self._dtype).itemsize
        return round_up(rows), shard_index(round_up(rows), self._shard_rows, row_bytes)

    def _read_shard(self, shard: int, first: int, stop: int, step: int) -> Array:
        rows = self._shards.get(shard)
        if rows is None:
            rows = self._shards[shard] = self._map_shard(shard)
        try:
            return np.array(rows[first:stop:step])
        except StoreError:
            raise
        except OSError as error:  # an object that went since
            raise damaged(self._files.place(f"features/c.{shard}.0"), error) from None

    def _map_shard(self, shard: int) -> Rows:
        key = f"features/c.{shard}.0"
        present, index = self._layout(shard)
        try:
            plain: Rows | None = self._files.rows(
                key, (present, self.shape[1]), np.dtype(self._dtype).newbyteorder("<"), index
            )
        except StoreError:
            raise
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise damaged(self._files.place(key), error) from None
        if plain is not None:
            return plain
        logger.info("%s: not in plain row order, read through zarr", self._files.place(key))
        start = shard * self._shard_rows
        return _Shifted(self._zarr_rows, start)

    def _zarr_rows(self, rows: slice) -> Array:
        if self._through_zarr is None:
            self._through_zarr = self._zarr_array("features")
        try:
            return np.asarray(self._through_zarr[rows])
        except (OSError, ValueError, RuntimeError) as error:
            raise damaged(self._files.place("features"), error) from error

    def _zarr_array(self, name: str) -> Rows:
        try:
            return self._files.open_with_zarr(name)
        except (OSError, ValueError, KeyError) as error:
            raise damaged(self._files.place(name), error) from error


def check(files: PartFiles, rows: int) -> list[Flaw]:
    """What is wrong with a part of so many rows, as far as sizes, indexes and metadata tell."""
    try:
        part = ShardedRows(files)
        if part.shape[0] != rows:
            raise StoreError(f"{part.shape[0]} rows, but the commit says {rows}.")
        part.times(0, rows)
    except NoAnswerError:
        raise
    except StoreError as error:
        return [Flaw(0, rows, f"{error.what} {error.where}".strip())]
    flaws = []
    for shard, (first, stop) in enumerate(part.shard_ranges()):
        message = part.flaw_of_shard(shard)
        if message:
            flaws.append(Flaw(first, stop, message))
    return flaws


class _Shifted:
    """Rows of one shard, read by their place in the whole array."""

    def __init__(self, read: Any, start: int) -> None:
        self._read = read
        self._start = start

    def __getitem__(self, key: slice) -> Array:
        moved = slice(key.start + self._start, key.stop + self._start, key.step)
        return np.asarray(self._read(moved))


def parse_metadata(raw: bytes, place: str) -> dict[str, Any]:
    """zarr.json of an array or group."""
    try:
        metadata = json.loads(raw)
    except ValueError as error:
        raise damaged(place, error) from None
    if not isinstance(metadata, dict):
        raise damaged(place, "not a mapping")
    return metadata


def _means(metadata: dict[str, Any]) -> dict[str, Any]:
    """The part of an array's metadata that decides where its bytes are."""
    keys = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs")
    return {key: metadata.get(key) for key in keys}


def damaged(place: str, reason: object) -> StoreError:
    return StoreError(
        "Part of the feature store is damaged.",
        f"{place}: {reason}",
        "Run tadpipe store verify --drop-damaged, then tadpipe extract to make it again.",
    )
