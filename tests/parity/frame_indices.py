"""Frame indices of OpenTAD's loaders: windows and resized grids, of frames and of snippets."""

from __future__ import annotations

from typing import Any

import numpy as np

from tadpipe.video.snippets import (
    resized_frames,
    resized_snippets,
    window_frames,
    window_snippets,
)
from tests.parity.case import Case


def run(case: Case) -> None:
    for i, entry in enumerate(case.config["cases"]):
        indices, mask = frame_indices(entry)
        case.check(f"frame_inds_{i}", indices)
        case.check(f"masks_{i}", mask)


def frame_indices(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Indices and mask of one entry of the case."""
    kind, method, n = entry["kind"], entry["method"], entry["n"]
    interval = entry.get("interval", 1)
    if (kind, method) == ("frame", "resize"):
        return resized_frames(n, entry["length"], entry.get("scale", 1))
    if (kind, method) == ("snippet", "resize"):
        return resized_snippets(n, entry["length"], entry["clip_len"], interval)
    window = {"stride": entry["stride"], "window_grid": entry["window"]}
    if (kind, method) == ("frame", "sliding_window"):
        return window_frames(n, entry["start"], entry["end"], scale=entry.get("scale", 1), **window)
    if (kind, method) == ("snippet", "sliding_window"):
        return window_snippets(
            n,
            entry["start"],
            entry["end"],
            clip_len=entry["clip_len"],
            frame_interval=interval,
            **window,
        )
    raise ValueError(f"unknown loader: kind {kind}, method {method}")
