"""A feature bank: stored features stand in for snippets that a step does not encode.

TALLFormer (Cheng and Bertasius, ECCV 2022), and the comparison in ETAD's Table 1. It begins as a
feature store of the untuned backbone; fresh features of encoded snippets may replace the stored
ones. The store itself is only read.
Shapes: C channels, T rows of a video, M snippets of a window.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tadpipe.datasets.sources import FeatureSource


class FeatureBank:
    """Features by video name.

    Args:
        stored_as: name of a video -> its name in the source.
        update: keep fresh features; otherwise all stay as stored.
    """

    def __init__(self, source: FeatureSource, stored_as: Mapping[str, str], update: bool) -> None:
        self.source = source
        self.stored_as = stored_as
        self.update = update
        self.changed: dict[str, Tensor] = {}  # name -> [C, T]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a video, [C, stop - start] float32."""
        if name in self.changed:
            return self.changed[name][:, start:stop]
        return self.source.open(self.stored_as[name]).read(start, stop)

    def write(self, name: str, rows: Tensor, features: Tensor) -> None:
        """Fresh features [C, A] of rows int64 [A]; nothing is kept without `update`."""
        if not self.update:
            return
        if name not in self.changed:
            sequence = self.source.open(self.stored_as[name])
            self.changed[name] = sequence.read(0, sequence.grid.rows)
        self.changed[name][:, rows.cpu()] = features.detach().float().cpu()

    def state(self) -> dict[str, Tensor]:
        """What differs from the store."""
        return self.changed

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.changed = {name: torch.clone(rows) for name, rows in state.items()}
