"""From stored features and annotations to the windows a detector trains on and is run on.

Order: WindowConfig -> clean_actions -> choose_window (random window or crop) -> on_grid ->
fitted_grid, fitted_features -> TrainingWindows -> stack_padded, where all padding happens.
Shapes: B batch, C channels, T grid length, L window length, G ground-truth actions. Positions are
in grid steps. Rules: ActionFormer (Zhang et al., ECCV 2022), TriDet (Shi et al., CVPR 2023),
DyFADet (Yang et al., ECCV 2024; thinning), ETAD (Liu et al., 2022; sliding, RoI align).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tadpipe.annotations import Action, Video
from tadpipe.datasets.sources import FeatureSequence, FeatureSource
from tadpipe.errors import ConfigError
from tadpipe.resample import resize_by_roi_align, resize_linear
from tadpipe.timeline import SnippetGrid

MAX_TRIALS = 200  # draws of a window before one without any action is accepted

Draw = Callable[[int, int], int]  # (low, high) -> whole number, both ends included


@dataclass(frozen=True)
class WindowConfig:
    """How a video becomes a training window; the `[windows]` table of a preset."""

    # pad: videos stay as they are; resize and roi-align: every video to the window's length;
    # thin: every n-th row of a video that is longer than a window
    fit: Literal["pad", "resize", "roi-align", "thin"] = "pad"
    resized_span: Literal["features", "video"] = "features"  # the time that resized rows divide
    placement: Literal["random", "sliding"] = "random"  # sliding: a training item per window
    crop_ratio: tuple[float, ...] = (0.9, 1.0)  # share kept of a short video; () = no crop
    keep_ratio: float = 0.5  # share of an action that must lie in the window
    margin: Literal["half-clip", "none"] = "half-clip"  # how far actions may reach over its ends
    outside: Literal["keep", "clip", "clip-and-test"] = "keep"  # actions past the last feature
    duplicate_sec: float = 1e-3  # same label and both ends this close: one action; 0 = keep all
    min_action_sec: float = 1e-3  # shorter actions are dropped
    # A training video needs an action longer than this share of it; 0 = any video will do.
    min_action_share: float = 0.0
    keep_short_actions: bool = True  # actions up to that share, in a video that has longer ones
    class_agnostic: bool = False  # all labels become one; names come from video-level scores
    overlap: float = 0.5  # share of a window seen twice: sliding, and inference on long videos

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
        if not 0 <= self.min_action_share < 1:
            raise ConfigError(
                "min_action_share lies in [0, 1).", f"min_action_share = {self.min_action_share}"
            )
        if self.placement == "sliding" and self.crop_ratio:
            raise ConfigError(
                "Sliding windows are not cropped.",
                f"crop_ratio = {list(self.crop_ratio)}",
                "Set windows.crop_ratio=[], or windows.placement=random.",
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
    window = Window(0, length, segments[:0], labels[:0])
    for _ in range(MAX_TRIALS):
        start = draw(0, total - length)
        window = cut_window(
            start, length, segments, labels, keep_ratio=keep_ratio, offset_grid=offset_grid
        )
        if len(window.segments) or len(segments) == 0:
            break
    return window


def cut_window(
    start: int,
    length: int,
    segments: Tensor,
    labels: Tensor,
    *,
    keep_ratio: float,
    offset_grid: float,
) -> Window:
    """A window with the actions of which it holds at least `keep_ratio`, clipped to it."""
    left = segments[:, 0].clamp(min=start - offset_grid)
    right = segments[:, 1].clamp(max=start + length + offset_grid)
    inside = (right - left).clamp(min=0)
    kept = inside / (segments[:, 1] - segments[:, 0]).abs() >= keep_ratio
    clipped = torch.stack((left, right), dim=1) - start
    return Window(start, length, clipped[kept], labels[kept])


def margin_grid(grid: SnippetGrid, config: WindowConfig) -> float:
    """How far actions may reach over the ends of a window, in grid steps."""
    return grid.offset_grid if config.margin == "half-clip" else 0.0


def trained_part(
    video: Video, config: WindowConfig, length_sec: Callable[[], float]
) -> Video | None:
    """A video with the actions that are trained on, by `min_action_share`; None if it has none.

    Args:
        length_sec: called for a video whose annotations state no duration.
    """
    if not config.min_action_share:
        return video
    duration_sec = length_sec() if video.duration_sec is None else video.duration_sec
    shortest_sec = config.min_action_share * duration_sec
    long = tuple(a for a in video.actions if a.end_sec - a.start_sec > shortest_sec)
    if not long:
        return None
    return video if config.keep_short_actions else replace(video, actions=long)


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
    last = grid.rows + margin_grid(grid, config)
    starts, ends = segments[:, 0], segments[:, 1]
    kept = starts < last
    if config.outside == "clip-and-test":
        kept &= (ends.clamp(max=last) - starts) / (ends - starts) >= config.keep_ratio
    return segments.clamp(max=last)[kept], labels[kept]


def fitted_grid(
    grid: SnippetGrid, config: WindowConfig, window_len: int, duration_sec: float | None = None
) -> SnippetGrid:
    """The time axis of a video as the detector sees it.

    Args:
        duration_sec: of the video, for `resized_span` = "video"; without it the features' own
            span is divided.
    """
    if config.fit == "thin":
        return grid.subsampled(_thinning(grid.rows, window_len))
    if config.fit == "pad":
        return grid
    if config.resized_span == "features" or duration_sec is None:
        return grid.resized(window_len)
    fps = grid.stride_frames / grid.dt_sec
    cell_frames = duration_sec * fps / window_len
    return SnippetGrid.from_convention(
        window_len, fps=fps, stride_frames=cell_frames, span_frames=cell_frames
    )


def fitted_features(sequence: FeatureSequence, config: WindowConfig, window_len: int) -> Tensor:
    """All features of a video as the detector sees them, [C, T] float32."""
    feats = sequence.read(0, sequence.grid.rows)
    if config.fit == "resize":
        return resize_linear(feats, window_len)
    if config.fit == "roi-align":
        return resize_by_roi_align(feats, window_len)
    if config.fit == "thin":
        return feats[:, :: _thinning(sequence.grid.rows, window_len)].contiguous()
    return feats


def _thinning(rows: int, window_len: int) -> int:
    """Every which row is kept so that a video fits into a window."""
    return 1 if rows <= window_len else rows // window_len + 1


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
    """What a store has to train on: a random window of each video, or every sliding one."""

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
        self.config = config
        self.window_len = window_len
        self._label_ids = label_ids
        parts = {
            name: trained_part(video, config, partial(self._end_sec, name))
            for name, video in videos.items()
        }
        self._videos = {name: part for name, part in parts.items() if part is not None}
        self.names = sorted(self._videos)
        self._places = self._sliding_places() if config.placement == "sliding" else None

    def __len__(self) -> int:
        return len(self.names if self._places is None else self._places)

    def item(self, index: int, draw: Draw) -> TrainingItem:
        """Item `index`, with the random choices, if there are any, made by `draw`."""
        name, start = (self.names[index], 0) if self._places is None else self._places[index]
        sequence = self.source.open(name)
        grid, segments, labels = self._targets(name, sequence)
        if self._places is None:
            crop = self.config.crop_ratio
            window = choose_window(
                grid.rows,
                segments,
                labels,
                max_len=self.window_len,
                keep_ratio=self.config.keep_ratio,
                crop_ratio=(crop[0], crop[1]) if crop else None,
                offset_grid=margin_grid(grid, self.config),
                draw=draw,
            )
        else:
            window = self._cut(start, grid, segments, labels)
        stop = window.start + window.length
        if self.config.fit == "pad":
            feats = sequence.read(window.start, stop)
        else:
            whole = fitted_features(sequence, self.config, self.window_len)
            feats = whole[:, window.start : stop]
        return TrainingItem(name, feats, window.segments, window.labels)

    def _targets(self, name: str, sequence: FeatureSequence) -> tuple[SnippetGrid, Tensor, Tensor]:
        """A video's time axis, and its actions on it."""
        video = self._videos[name]
        grid = fitted_grid(sequence.grid, self.config, self.window_len, video.duration_sec)
        return grid, *on_grid(video.actions, self._label_ids, grid, self.config)

    def _end_sec(self, name: str) -> float:
        """Where the last feature's snippet ends."""
        grid = self.source.open(name).grid
        return grid.to_sec(grid.rows - 1 + grid.offset_grid)

    def _sliding_places(self) -> list[tuple[str, int]]:
        """Video and start of every window that holds an action."""
        places = []
        for name in self.names:
            grid, segments, labels = self._targets(name, self.source.open(name))
            for start in covering_windows(grid.rows, self.window_len, self.config.overlap):
                if len(self._cut(start, grid, segments, labels).labels):
                    places.append((name, start))
        return places

    def _cut(self, start: int, grid: SnippetGrid, segments: Tensor, labels: Tensor) -> Window:
        return cut_window(
            start,
            min(self.window_len, grid.rows),
            segments,
            labels,
            keep_ratio=self.config.keep_ratio,
            offset_grid=margin_grid(grid, self.config),
        )


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
