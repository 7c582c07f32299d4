"""A feature table in memory: what `FeatureSource` needs of a store, without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tadpipe.timeline import SnippetGrid

Array = np.ndarray[Any, Any]


class MemoryRows:
    """One video, [T, C]; remembers which rows were read."""

    def __init__(self, rows: Array, stride: int, span: int, fps: float) -> None:
        self.rows = rows
        self.grid = SnippetGrid.from_convention(
            len(rows), fps=fps, stride_frames=stride, span_frames=span
        )
        self.read: list[slice] = []

    def __getitem__(self, rows: slice) -> Array:
        self.read.append(rows)
        return self.rows[rows]


class MemoryTable:
    """Videos by name."""

    def __init__(
        self, videos: Mapping[str, Array], *, stride: int = 4, span: int = 16, fps: float = 30
    ) -> None:
        self.videos = {name: MemoryRows(rows, stride, span, fps) for name, rows in videos.items()}
        self.channels = next(iter(videos.values())).shape[1]

    def names(self) -> Sequence[str]:
        return list(self.videos)

    def open(self, name: str) -> MemoryRows:
        return self.videos[name]


def ramp(rows: int, channels: int = 2, start: float = 0.0) -> Array:
    """Channel c of row i is start + i + 1000 * c, so that a row tells where it came from."""
    steps = np.arange(rows, dtype=np.float32)[:, None] + start
    return steps + 1000.0 * np.arange(channels, dtype=np.float32)[None]
