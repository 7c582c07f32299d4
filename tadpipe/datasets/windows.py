"""From stored features and annotations to the windows a detector trains on and is run on.

Order: WindowConfig -> clean_actions -> choose_window, truncate (random window or crop) ->
on_grid -> TrainingWindows -> stack_padded, the one place where padding happens.
Shapes: B batch, C channels, T grid length, L window length, G ground-truth actions. Positions are
in grid steps. Rules: ActionFormer (Zhang et al., ECCV 2022) and TriDet (Shi et al., CVPR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tadpipe.annotations import Action, Video
from tadpipe.datasets.sources import FeatureSequence, FeatureSource
from tadpipe.errors import ConfigError
from tadpipe.resample import resize_linear
from tadpipe.timeline import SnippetGrid

MAX_TRIALS = 200  # draws of a window before one without any action is accepted

Draw = Callable[[int, int], int]  # (low, high) -> whole number, both ends included


@dataclass(frozen=True)
class WindowConfig:
    """How a video becomes a training window; the `[windows]` table of a preset."""

    fit: Literal["pad", "resize"] = "pad"  # resize: every video to the window's length
    crop_ratio: tuple[float, ...] = (0.9, 1.0)  # share kept of a short video; () = no crop
    keep_ratio: float = 0.5  # share of an action that must lie in the window
    margin: Literal["half-clip", "none"] = "half-clip"  # how far actions may reach over its ends
    outside: Literal["keep", "clip", "clip-and-test"] = "keep"  # actions past the last feature
    duplicate_sec: float = 1e-3  # same label and both ends this close: one action; 0 = keep all
    min_action_sec: float = 1e-3  # shorter actions are dropped
    class_agnostic: bool = False  # all labels become one; names come from video-level scores
    overlap: float = 0.5  # inference beyond the detector's reach: share of a window seen twice

    def __post_init__(self) -> None:
        if self.crop_ratio:
            low, high = self.crop_ratio if len(self.crop_ratio) == 2 else (1.0, 0.0)
            if not 0 < low <= high <= 1:
                raise ConfigError(
                    "crop_ratio is empty or two shares of the length, in order.",
                    f"crop_ratio = {list(self.crop_ratio)}",
                    "Example: crop_ratio = [0.9, 1.0]",
                )
        if not 0 <= self.keep_ratio <= 1 or not 0 <= self.overlap < 1:
            raise ConfigError(
                "keep_ratio lies in [0, 1] and overlap in [0, 1).",
                f"keep_ratio = {self.keep_ratio}, overlap = {self.overlap}",
            )
        if self.duplicate_sec < 0 or self.min_action_sec < 0:
            raise ConfigError(
                "Times of the cleaning rules are not negative.",
                f"duplicate_sec {self.duplicate_sec}, min_action_sec {self.min_action_sec}",
            )


def clean_actions(
    actions: Sequence[Action], *, duplicate_sec: float, min_action_sec: float
) -> list[Action]:
    """Drop actions that are too short, and repetitions of an earlier one with the same label."""
    kept: list[Action] = []
    for action in actions:
        if action.end_sec - action.start_sec < min_action_sec:
            continue
        repeats = (
            action.label == other.label
            and abs(action.start_sec - other.start_sec) <= duplicate_sec
            and abs(action.end_sec - other.end_sec) <= duplicate_sec
            for other in kept
        )
        if not (duplicate_sec and any(repeats)):
            kept.append(action)
    return kept


class Window(NamedTuple):
    """A chosen slice of a video's features, and the actions in it relative to its start."""

    start: int
    length: int
    segments: Tensor  # [G, 2] float32
    labels: Tensor  # [G] int64


def choose_window(
    total: int,
    segments: Tensor,
    labels: Tensor,
    *,
    max_len: int,
    keep_ratio: float,
    crop_ratio: tuple[float, float] | None,
    offset_grid: float,
    draw: Draw,
) -> Window:
    """Choose a random window of a video that is too long, or a crop of one that is not.

    Args:
        total: T, rows of the video.
        segments: [G, 2]; labels: [G].
        max_len: longest window.
        keep_ratio: share of an action that must lie in the window for it to be kept, clipped.
        crop_ratio: range of the share of T kept when T <= max_len; None = no crop.
        offset_grid: how far an action may reach over the window's ends: half a clip for
            ActionFormer, 0 for TriDet.
        draw: uniform whole numbers; the crop's length first (if T <= max_len), then one window
            start per trial, until a window keeps an action.
    """
    length = max_len
    if total <= max_len:
        if crop_ratio is None:
            return Window(0, total, segments, labels)
        low, high = crop_ratio
        shortest = max(round(low * total), 1)
        length = draw(shortest, max(min(round(high * total), total), shortest))
        if length == total:
            return Window(0, total, segments, labels)
    start, kept, clipped = 0, torch.zeros(0, dtype=torch.bool), segments
    for _ in range(MAX_TRIALS):
        start = draw(0, total - length)
        left = segments[:, 0].clamp(min=start - offset_grid)
        right = segments[:, 1].clamp(max=start + length + offset_grid)
        inside = (right - left).clamp(min=0)
        kept = inside / (segments[:, 1] - segments[:, 0]).abs() >= keep_ratio
        clipped = torch.stack((left, right), dim=1) - start
        if bool(kept.any()) or len(segments) == 0:
            break
    return Window(start, length, clipped[kept], labels[kept])


def truncate(
    feats: Tensor,
    segments: Tensor,
    labels: Tensor,
    *,
    max_len: int,
    keep_ratio: float,
    crop_ratio: tuple[float, float] | None,
    offset_grid: float,
    draw: Draw,
) -> tuple[Tensor, Tensor, Tensor]:
    """`choose_window` applied to features in memory, [C, T] -> [C, L]."""
    window = choose_window(
        feats.shape[-1],
        segments,
        labels,
        max_len=max_len,
        keep_ratio=keep_ratio,
        crop_ratio=crop_ratio,
        offset_grid=offset_grid,
        draw=draw,
    )
    sliced = feats[:, window.start : window.start + window.length]
    return sliced, window.segments, window.labels


def on_grid(
    actions: Sequence[Action],
    label_ids: Mapping[str, int],
    grid: SnippetGrid,
    config: WindowConfig,
) -> tuple[Tensor, Tensor]:
    """Actions as segments [G, 2] and labels [G] on the feature grid, by the cleaning rules.

    Labels that are not in `label_ids` are left out. With `outside` other than "keep" an action
    that begins past the features is dropped and one that ends there is clipped; "clip-and-test"
    also drops those of which less than `keep_ratio` is left.
    """
    cleaned = clean_actions(
        [action for action in actions if action.label in label_ids],
        duplicate_sec=config.duplicate_sec,
        min_action_sec=config.min_action_sec,
    )
    rows = [[grid.to_grid(action.start_sec), grid.to_grid(action.end_sec)] for action in cleaned]
    segments = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2)
    labels = torch.tensor([label_ids[action.label] for action in cleaned], dtype=torch.int64)
    if config.outside == "keep":
        return segments, labels
    margin = grid.offset_grid if config.margin == "half-clip" else 0.0
    last = grid.rows + margin
    starts, ends = segments[:, 0], segments[:, 1]
    kept = starts < last
    if config.outside == "clip-and-test":
        kept &= (ends.clamp(max=last) - starts) / (ends - starts) >= config.keep_ratio
    return segments.clamp(max=last)[kept], labels[kept]


def fitted_grid(grid: SnippetGrid, config: WindowConfig, window_len: int) -> SnippetGrid:
    """The time axis of a video as the detector sees it."""
    return grid.resized(window_len) if config.fit == "resize" else grid


def fitted_features(sequence: FeatureSequence, config: WindowConfig, window_len: int) -> Tensor:
    """All features of a video as the detector sees them, [C, T] float32."""
    feats = sequence.read(0, sequence.grid.rows)
    return resize_linear(feats, window_len) if config.fit == "resize" else feats


def covering_windows(total: int, window: int, overlap: float) -> list[int]:
    """Starts of windows that together cover `total` rows, the last one flush with the end.

    Neighbours share at least `overlap` of their length, so that an action no longer than that
    lies whole in one of them.
    """
    if total <= window:
        return [0]
    hop = max(window - math.ceil(overlap * window), 1)
    return [*range(0, total - window, hop), total - window]


class TrainingItem(NamedTuple):
    """One training window."""

    name: str
    feats: Tensor  # [C, L] float32
    segments: Tensor  # [G, 2] float32
    labels: Tensor  # [G] int64


class TrainingWindows:
    """The training videos of a store; item i is a random window of video i."""

    def __init__(
        self,
        source: FeatureSource,
        videos: Mapping[str, Video],
        label_ids: Mapping[str, int],
        config: WindowConfig,
        window_len: int,
    ) -> None:
        """`videos`: name in the source -> its annotations, all of them present in the source."""
        self.source = source
        self.names = sorted(videos)
        self.config = config
        self.window_len = window_len
        self._label_ids = label_ids
        self._videos = videos

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int, draw: Draw) -> TrainingItem:
        """A window of video `index`, with the random choices made by `draw`."""
        name = self.names[index]
        sequence = self.source.open(name)
        grid = fitted_grid(sequence.grid, self.config, self.window_len)
        segments, labels = on_grid(self._videos[name].actions, self._label_ids, grid, self.config)
        crop = self.config.crop_ratio
        window = choose_window(
            grid.rows,
            segments,
            labels,
            max_len=self.window_len,
            keep_ratio=self.config.keep_ratio,
            crop_ratio=(crop[0], crop[1]) if crop else None,
            offset_grid=grid.offset_grid if self.config.margin == "half-clip" else 0.0,
            draw=draw,
        )
        start, stop = window.start, window.start + window.length
        if self.config.fit == "resize":
            feats = fitted_features(sequence, self.config, self.window_len)[:, start:stop]
        else:
            feats = sequence.read(start, stop)
        return TrainingItem(name, feats, window.segments, window.labels)


def stack_padded(sequences: Sequence[Tensor], length_grid: int) -> tuple[Tensor, Tensor]:
    """Zero-pad sequences at the end to one length: [C, T_i] -> feats [B, C, T], mask [B, T].

    Training pads to the detector's `window_len`, inference to its `padded_len`.
    """
    longest = max(sequence.shape[-1] for sequence in sequences)
    if longest > length_grid:
        raise ValueError(f"a sequence of {longest} rows does not fit into {length_grid}")
    feats = sequences[0].new_zeros(len(sequences), sequences[0].shape[0], length_grid)
    mask = torch.zeros(len(sequences), length_grid, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        feats[row, :, : sequence.shape[-1]] = sequence
        mask[row, : sequence.shape[-1]] = True
    return feats, mask
