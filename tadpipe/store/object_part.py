"""The files of a part on object storage: rows are read by ranges of bytes, nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np

from tadpipe.store.objects import Objects
from tadpipe.store.shards import Rows

Array = np.ndarray[Any, Any]


class PartObjects:
    """`PartFiles` below a key of an address."""

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects = objects
        self._key = key

    def place(self, key: str) -> str:
        return f"{self._objects.address}/{self._key}/{key}"

    def read(self, key: str) -> bytes:
        return self._objects.read(f"{self._key}/{key}")

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        return self._objects.read_range(f"{self._key}/{key}", start, stop)

    def size(self, key: str) -> int:
        return self._objects.size(f"{self._key}/{key}")

    def rows(
        self, key: str, shape: tuple[int, int], dtype: np.dtype[Any], tail: bytes
    ) -> Rows | None:
        """One request for the end of the object tells its size and whether the index is plain."""
        rows_bytes = shape[0] * shape[1] * dtype.itemsize
        if self.read_range(key, rows_bytes, rows_bytes + len(tail) + 1) != tail:
            return None
        return _RangedRows(self, key, shape, dtype)

    def open_with_zarr(self, name: str) -> Rows:
        import zarr  # 0.3 s to import, and only arrays that others rewrote need it

        array = zarr.open_array(self._objects.mapping(f"{self._key}/{name}"), mode="r")
        return array  # type: ignore[return-value]  # zarr's own indexing type is wider


class _RangedRows:
    """Rows of one object, one request per slice."""

    def __init__(
        self, files: PartObjects, key: str, shape: tuple[int, int], dtype: np.dtype[Any]
    ) -> None:
        self._files = files
        self._key = key
        self._shape = shape
        self._dtype = dtype

    def __getitem__(self, key: slice) -> Array:
        start, stop, step = key.indices(self._shape[0])
        width = self._shape[1] * self._dtype.itemsize
        raw = self._files.read_range(self._key, start * width, stop * width)
        if len(raw) != (stop - start) * width:
            raise OSError(f"{self._files.place(self._key)}: cut off")
        return np.frombuffer(raw, self._dtype).reshape(-1, self._shape[1])[::step]
