"""One video's features, read as they are asked for.

A part may go while it is read, when the store was compacted: then the rows are in another one, and
the view goes there.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tadpipe.errors import NoAnswerError, StoreError
from tadpipe.store.backend import PartRows
from tadpipe.store.metadata import FeatureSpec, VideoRow
from tadpipe.timeline import SnippetGrid

Array = np.ndarray[Any, Any]


class OpensParts(Protocol):
    """The store, as its views need it."""

    def part_of(self, fid: str, row: VideoRow) -> PartRows: ...

    def moved(self, fid: str, row: VideoRow) -> tuple[VideoRow, PartRows] | None:
        """Where the rows are now, if that is another place."""


class FeatureView:
    """One video's features [T, C], read as they are asked for.

    Args:
        factor: every factor-th stored row is a row of the view.
        fid: under which the store files the features.
    """

    def __init__(
        self, parts: OpensParts, spec: FeatureSpec, row: VideoRow, factor: int, fid: str
    ) -> None:
        self.spec = spec
        self.row = row
        self._parts = parts
        self._rows = parts.part_of(fid, row)
        self._factor = factor
        self._fid = fid
        self.shape = (-(-row.rows // factor), spec.channels)
        self.dtype = np.dtype(spec.stored_dtype)
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        if isinstance(key, slice):
            start, stop, step = key.indices(self.shape[0])
            if step > 0:
                return self._read(start, stop, step)
        elif isinstance(key, (int, np.integer)):
            index = range(self.shape[0])[int(key)]  # negative ones count from the end
            row: Array = self._read(index, index + 1, 1)[0]
            return row
        picked: Array = np.asarray(self)[key]
        return picked

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("stored features are read into new memory; copy=False cannot be")
        rows = self._read(0, self.shape[0], 1)
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<FeatureView {self.row.name!r} {self.shape} {self.dtype}>"

    def _read(self, start: int, stop: int, step: int) -> Array:
        if start >= stop:
            return np.empty((0, self.spec.channels), self.dtype)
        factor = self._factor
        last = (stop - 1) * factor + 1
        try:
            first = self.row.first_row
            return self._rows.read(first + start * factor, first + last, step * factor)
        except NoAnswerError:
            raise
        except StoreError:
            if not self._follow():
                raise
            first = self.row.first_row
            return self._rows.read(first + start * factor, first + last, step * factor)

    def _stored_times(self) -> Array:
        """Of all stored rows, float64 [n]."""
        try:
            return self._rows.times(self.row.first_row, self.row.first_row + self.row.rows)
        except NoAnswerError:
            raise
        except StoreError:
            if not self._follow():
                raise
            return self._rows.times(self.row.first_row, self.row.first_row + self.row.rows)

    def _follow(self) -> bool:
        """Go to where the rows are now; False if that is no other place."""
        moved = self._parts.moved(self._fid, self.row)
        if moved is None:
            return False
        self.row, self._rows = moved
        return True

    @property
    def times(self) -> Array:
        """Centre times of the rows, float64 [T], seconds."""
        return self._stored_times()[:: self._factor].copy()

    @property
    def grid(self) -> SnippetGrid:
        """The time axis of the rows."""
        row, spec = self.row, self.spec
        times = None
        if row.dt is None:
            times = tuple(self._stored_times().tolist())
            dt = (times[-1] - times[0]) / (row.rows - 1) if row.rows > 1 else 0.0
            dt = dt if dt > 0 else spec.stride_frames * row.duration_sec / max(row.frames, 1)
        else:
            dt = float(row.dt)
        grid = SnippetGrid(
            row.rows,
            stride_frames=spec.stride_frames,
            span_frames=spec.span_frames,
            offset_frames=row.offset_frames,
            t0_sec=row.t0,
            dt_sec=dt,
            row_times_sec=times,
        )
        return grid if self._factor == 1 else grid.subsampled(self._factor)
