"""Another frame rate by index: which decoded frame stands for each frame of a fixed rate.

Sampling follows presentation times (the nearest frame), so that it is also right for variable-rate
video; for constant-rate video it equals sampling a re-encoded copy (extraction spec, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def nearest_frames(times_sec: Sequence[float], fps: float) -> np.ndarray:
    """Index of the frame nearest to each tick of a fixed rate.

    Args:
        times_sec: sorted presentation times, N of them.
        fps: ticks per second; the first tick is at the first frame's time.
    Returns:
        int64 [M], non-decreasing, M ticks up to the last frame's time; of two frames equally
        near the earlier one.
    """
    times = np.asarray(times_sec, dtype=np.float64)
    ticks = times[0] + np.arange(int((times[-1] - times[0]) * fps + 1e-9) + 1) / fps
    after = np.clip(np.searchsorted(times, ticks), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        return np.zeros(len(ticks), dtype=np.int64)
    before = after - 1
    nearer_after = times[after] - ticks < ticks - times[before]
    return np.where(nearer_after, after, before).astype(np.int64)


def pick(items: Iterable[Item], indices: np.ndarray) -> Iterator[Item]:
    """The items at non-decreasing `indices`, one pass; a repeated index repeats the item."""
    position = 0
    for i, item in enumerate(items):
        while position < len(indices) and indices[position] == i:
            yield item
            position += 1
