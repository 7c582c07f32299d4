"""One or several feature stores read as one: channels concatenated on a common time axis.

Shapes: C channels (summed over the stores), T rows of the longest. Where the stores disagree on
the number of rows, the shorter ones are linearly resized to the longest, as the released
multi-feature recipes do (EgoVLP + SlowFast + Omnivore).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tadpipe.errors import ConfigError
from tadpipe.resample import resize_linear
from tadpipe.timeline import SnippetGrid


class FeatureRows(Protocol):
    """One video's features in one store: an array [T, C] that reads the rows asked for."""

    @property
    def grid(self) -> SnippetGrid: ...

    def __getitem__(self, rows: slice) -> np.ndarray[Any, Any]: ...


class FeatureTable(Protocol):
    """The features of one spec in one store."""

    @property
    def channels(self) -> int: ...

    def names(self) -> Sequence[str]: ...

    def open(self, name: str) -> FeatureRows: ...


class FeatureSequence:
    """One video's features over all stores."""

    def __init__(self, parts: Sequence[FeatureRows]) -> None:
        self._parts = parts
        self.grid = max((part.grid for part in parts), key=lambda grid: grid.rows)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` as [C, stop - start] float32."""
        columns = []
        for part in self._parts:
            if part.grid.rows == self.grid.rows:
                columns.append(_as_columns(part[start:stop]))
            else:
                whole = resize_linear(_as_columns(part[0 : part.grid.rows]), self.grid.rows)
                columns.append(whole[:, start:stop])
        return columns[0] if len(columns) == 1 else torch.cat(columns)


class FeatureSource:
    """The videos that every one of the tables holds."""

    def __init__(self, tables: Sequence[FeatureTable]) -> None:
        if not tables:
            raise ConfigError("No features given.", todo="Give --features STORE.")
        self._tables = tuple(tables)
        names = [set(table.names()) for table in tables]
        self.names = sorted(set.intersection(*names))
        self.only_in_some = sorted(set.union(*names) - set(self.names))

    @property
    def channels(self) -> int:
        return sum(table.channels for table in self._tables)

    def open(self, name: str) -> FeatureSequence:
        return FeatureSequence([table.open(name) for table in self._tables])


class Coverage(NamedTuple):
    """Which annotated videos have features, and which do not."""

    stored_as: dict[str, str]  # annotated name -> name in the source
    without_features: list[str]
    without_annotations: list[str]


def match_videos(
    annotated: Mapping[str, object], wanted: Sequence[str], stored: Sequence[str], prefix: str = ""
) -> Coverage:
    """Match the videos of a subset with those of a source.

    Args:
        annotated: every video of the annotation file, whatever its subset.
        wanted: the videos of the subset.
        stored: names in the source; a video may carry the data set's file `prefix` there.
    """
    present = set(stored)
    stored_as = {}
    for name in wanted:
        for alias in (name, prefix + name):
            if alias in present:
                stored_as[name] = alias
                break
    known = {alias for name in annotated for alias in (name, prefix + name)}
    return Coverage(
        stored_as,
        [name for name in wanted if name not in stored_as],
        [name for name in stored if name not in known],
    )


def _as_columns(rows: np.ndarray[Any, Any]) -> Tensor:
    """[T, C] of any float type -> [C, T] float32, in memory of its own."""
    return torch.from_numpy(np.array(rows, dtype=np.float32)).T.contiguous()
