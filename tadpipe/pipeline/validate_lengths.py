"""How long the actions are, and what a preset's window and levels make of them.

Order: training_lengths -> check_lengths (longer than the window, on no level, below a step) ->
suggest (stride, window and regression ranges for own data) -> histogram.
Shapes: G actions, N points of all levels. Lengths are in seconds or in steps of the feature grid
as the detector sees it (resized where the preset resizes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tadpipe.annotations import Video
from tadpipe.datasets.windows import fitted_grid, on_grid
from tadpipe.detectors.parts.assign import assign
from tadpipe.detectors.parts.pyramid import make_points
from tadpipe.detectors.protocol import Targets
from tadpipe.errors import ConfigError
from tadpipe.pipeline.presets import Preset
from tadpipe.pipeline.validate_findings import Finding, Severity
from tadpipe.timeline import SnippetGrid

MOST_ACTIONS = 4000  # that are laid on the points one by one; of more, every n-th
SERIOUS_SHARE = 0.01  # of the actions; below it a note, from it on a warning
STEPS_OF_SHORT = 4  # grid steps that the short actions should have
MOST_STRIDE = 16  # frames
SHORT, LONG, LONGEST = 5, 95, 99  # percentiles of the lengths
TYPICAL_VIDEO = 75  # percentile of the videos' lengths that one window should hold
FEWEST_LEVELS, MOST_LEVELS = 4, 8
LOWEST_RANGE, OPEN_END = 4.0, 10000.0  # steps: of the first level, and the end of the last
WINDOW_TRIES = 64
ANY_WIDTH = 64  # channels; window and ranges do not depend on them


class Lengths(NamedTuple):
    """The actions of the training split on the grid their detector sees."""

    sec: list[float]
    videos_sec: list[float]
    segments: Tensor  # [G, 2] in grid steps; empty where no grid is known
    owners: list[str]  # the video of each segment
    steps_per_sec: float | None  # median over the videos, before any resizing
    fps: float | None  # median


class Suggestion(NamedTuple):
    """Settings that fit the lengths at hand."""

    stride: int
    window_len: int
    regression_ranges: list[list[float]]
    branch_layers: int
    start_level: int  # of the preset; it decides how many levels have a range

    def values(self) -> dict[str, Any]:
        """`--set` key -> value."""
        return {
            "model.window_len": self.window_len,
            "model.branch_layers": self.branch_layers,
            "model.regression_ranges": self.regression_ranges,
        }


def training_lengths(
    videos: Mapping[str, Video],
    grids: Mapping[str, SnippetGrid],
    preset: Preset | None,
    window_len: int | None,
) -> Lengths:
    """Lay the actions of a split on the grid, as training does.

    Args:
        grids: of the videos that have one.
        window_len: of the model; needed where videos are resized to it.
    """
    labels = {a.label for video in videos.values() for a in video.actions}
    ids = dict.fromkeys(labels, 0)
    segments, owners, rates, fps = [torch.empty(0, 2)], [], [], []
    for name, video in videos.items():
        grid = grids.get(name)
        if grid is None or not grid.rows:
            continue
        rates.append(1 / grid.dt_sec)
        fps.append(grid.stride_frames / grid.dt_sec)
        if preset is None or window_len is None:
            continue
        fitted = fitted_grid(grid, preset.windows, window_len, video.duration_sec)
        on, _ = on_grid(video.actions, ids, fitted, preset.windows)
        segments.append(on)
        owners += [name] * len(on)
    lengths = [a.end_sec - a.start_sec for video in videos.values() for a in video.actions]
    return Lengths(
        [length for length in lengths if length > 0],
        [video.duration_sec for video in videos.values() if video.duration_sec],
        torch.cat(segments),
        owners,
        float(np.median(rates)) if rates else None,
        float(np.median(fps)) if fps else None,
    )


def check_lengths(lengths: Lengths, preset: Preset, preset_name: str, model: Any) -> list[Finding]:
    """Actions that the window cuts, and those that nothing answers for.

    Args:
        model: the detector's own config.
    """
    segments = lengths.segments
    if not len(segments):
        return []
    where = f"preset {preset_name}"
    steps = segments[:, 1] - segments[:, 0]
    findings = []
    window = float(model.window_len)
    too_long = steps > window if preset.windows.fit == "pad" else torch.zeros_like(steps).bool()
    if too_long.any():
        never = int((steps * preset.windows.keep_ratio > window).sum())
        text = _share_text(too_long, lengths, steps, longest=True)
        text += f"; the window has {model.window_len} steps"
        text += f"; {never} never fit by windows.keep_ratio" if never else ""
        findings.append(
            Finding(_severity(too_long), "longer-than-window", where, "model.window_len", text)
        )
    if hasattr(model, "regression_ranges"):
        picked = _picked(len(segments))
        missed = _on_no_level(segments[picked], model)
        if missed.any():
            some = lengths._replace(owners=[lengths.owners[i] for i in picked.tolist()])
            text = _share_text(missed, some, steps[picked], longest=False)
            findings.append(
                Finding(_severity(missed), "no-level", where, "model.regression_ranges", text)
            )
    else:
        short = steps < 1
        if short.any():
            text = _share_text(short, lengths, steps, longest=False)
            findings.append(Finding(_severity(short), "shorter-than-step", where, "[model]", text))
    return findings


def suggest(
    lengths: Lengths, preset: Preset, preset_name: str, stride: int | None
) -> Suggestion | None:
    """Stride, window and ranges from the lengths; None without a pyramid or without lengths.

    The stride gives the shortest 5 % of the actions 4 steps (that of stored features is kept), the
    window holds three quarters of the videos and twice the longest 99 %, and the last level begins
    at half the length of the longest 5 %. Raised until the detector takes the window.

    Args:
        stride: in frames, of stored features or planned; None = to be suggested.
    """
    if not lengths.sec or not lengths.fps:
        return None
    short_sec, long_sec, longest_sec = np.percentile(lengths.sec, (SHORT, LONG, LONGEST))
    frames = max(short_sec * lengths.fps / STEPS_OF_SHORT, 1.0)
    stride = stride or min(2 ** int(math.log2(frames)), MOST_STRIDE)
    per_sec = lengths.fps / stride
    levels = math.ceil(math.log2(max(long_sec * per_sec / 2 / LOWEST_RANGE, 1))) + 2
    levels = min(max(levels, FEWEST_LEVELS), MOST_LEVELS)
    try:
        model = preset.model_config(ANY_WIDTH, 1, preset_name)
        ranges = _doubling(levels)
        start_level = int(getattr(model, "start_level", 0))
        coarsest = int(model.scale_factor) ** (levels - 1 + start_level)
    except (ConfigError, AttributeError):  # a preset of its own widths, or without a pyramid
        return None
    typical_sec = np.percentile(lengths.videos_sec, TYPICAL_VIDEO) if lengths.videos_sec else 0.0
    wanted = max(2 * longest_sec, typical_sec) * per_sec
    first = max(math.ceil(wanted / coarsest), 2)
    for window_len in range(first * coarsest, (first + WINDOW_TRIES) * coarsest, coarsest):
        made = Suggestion(stride, window_len, ranges, levels - 1 + start_level, start_level)
        if _is_taken(made, preset, preset_name):
            return made
    return None


def histogram(lengths: Lengths, width: int) -> list[str]:
    """Lengths in octaves: seconds, steps of the grid, number, share, bar."""
    if not lengths.sec:
        return []
    low = math.floor(math.log2(min(lengths.sec)))
    counts: dict[int, int] = {}
    for length_sec in lengths.sec:
        octave = math.floor(math.log2(length_sec))
        counts[octave] = counts.get(octave, 0) + 1
    total, most = len(lengths.sec), max(counts.values())
    rows = []
    for octave in range(low, max(counts) + 1):
        count, from_sec = counts.get(octave, 0), 2.0**octave
        steps = lengths.steps_per_sec
        on_grid_text = "" if steps is None else f"{from_sec * steps:.4g} steps"
        rows.append((f"from {from_sec:g} s", on_grid_text, str(count), f"{count / total:.1%}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    room = max(width - sum(widths) - 9, 4)
    lines = []
    for octave, row in zip(range(low, max(counts) + 1), rows, strict=True):
        bar = "#" * round(room * counts.get(octave, 0) / most)
        cells = "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        lines.append(f"{cells}  {bar}".rstrip()[:width])
    return lines


def counts_by_octave(lengths_sec: Sequence[float]) -> list[dict[str, float]]:
    """The histogram for JSON."""
    octaves = [math.floor(math.log2(length)) for length in lengths_sec]
    return [
        {"from_sec": 2.0**octave, "to_sec": 2.0 ** (octave + 1), "actions": octaves.count(octave)}
        for octave in sorted(set(octaves))
    ]


def _on_no_level(segments: Tensor, model: Any) -> Tensor:
    """Which actions get no positive point although a window holds them, [G] bool.

    Each action is laid alone into a window, begun so that it keeps its place among the points of
    the coarsest level; one that is longer than the window is cut there, as in training.
    """
    strides = [int(stride) for stride in model.strides]
    window = int(model.window_len)
    points = torch.cat(
        make_points([window // s for s in strides], strides, model.regression_ranges)
    )
    start = segments[:, 0].remainder(strides[-1])
    end = (start + segments[:, 1] - segments[:, 0]).clamp(max=window)
    placed = torch.stack((start, end), dim=1)
    label = torch.zeros(1, dtype=torch.int64)
    missed = torch.zeros(len(placed), dtype=torch.bool)
    radius = float(getattr(model, "centre_radius", 0.0))
    for i, segment in enumerate(placed):
        # Points past the action's end can not be inside it.
        near = points[points[:, 0] <= float(segment[1])]
        targets = Targets([segment[None]], [label])
        missed[i] = bool(assign(near, targets, 1, centre_radius=radius).instances.max() < 0)
    return missed


def _picked(count: int) -> Tensor:
    """Indices of all, or of every n-th of very many."""
    return torch.arange(0, count, math.ceil(count / MOST_ACTIONS))


def _severity(affected: Tensor) -> Severity:
    return "warning" if float(affected.float().mean()) >= SERIOUS_SHARE else "note"


def _share_text(affected: Tensor, lengths: Lengths, steps: Tensor, *, longest: bool) -> str:
    """How many of the actions, and the farthest out of them."""
    rows = affected.nonzero().flatten()
    extreme = rows[steps[rows].argmax() if longest else steps[rows].argmin()]
    count, total = len(rows), len(affected)
    which = "longest" if longest else "shortest"
    return (
        f"{count} of {total} training actions ({count / total:.1%}); the {which} has "
        f"{float(steps[extreme]):.3g} steps, in {lengths.owners[int(extreme)]}"
    )


def _doubling(levels: int) -> list[list[float]]:
    """[[0, 4], [4, 8], ..., [x, 10000]]."""
    edges = [0.0, *(LOWEST_RANGE * 2.0**i for i in range(levels - 1)), OPEN_END]
    return [list(pair) for pair in pairwise(edges)]


def _is_taken(made: Suggestion, preset: Preset, preset_name: str) -> bool:
    """Whether the detector's own config accepts the values."""
    values = {key.removeprefix("model."): value for key, value in made.values().items()}
    changed = Preset(preset.detector, model={**preset.model, **values})
    try:
        changed.model_config(ANY_WIDTH, 1, preset_name)
    except ConfigError:
        return False
    return True
