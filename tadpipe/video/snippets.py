"""Which frames make which snippet, and clips cut from one pass over the frames.

Three grids. "start": snippet i begins at frame i * stride; no padding, the tail that fills no
snippet is left out (VideoMAEv2's and most released features). "centre": centred on frame
i * stride, edge frames repeated (OpenTAD's end-to-end snippets). "cell": centred on the middle of
stride cell i. Also OpenTAD's loaders of windows and resized grids, as index arrays.
Shapes: F frames per clip, N frames of the video.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from tadpipe.errors import ConfigError
from tadpipe.timeline import ANCHORS, SnippetGrid
from tadpipe.video.packets import VideoProbe

Item = TypeVar("Item")
Anchor = Literal["start", "centre", "cell"]


@dataclass(frozen=True)
class SnippetPlan:
    """Where the snippets of a video lie."""

    anchor: Anchor = "start"
    clip_len: int = 16  # F
    frame_interval: int = 1  # frames between the frames of a clip
    stride: int = 4  # frames between neighbouring snippets

    def __post_init__(self) -> None:
        if self.anchor not in ANCHORS:
            raise ConfigError(
                "Unknown anchor of snippets.", f"anchor = {self.anchor}", f"Known: {ANCHORS}"
            )
        for name in ("clip_len", "frame_interval", "stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1.", f"{name} = {getattr(self, name)}")

    @property
    def span_frames(self) -> int:
        """Frames a clip stands for: clip_len * frame_interval, the published "num_frames"."""
        return self.clip_len * self.frame_interval

    @property
    def reach_frames(self) -> int:
        """First to last frame of a clip, both counted: what the ring must hold."""
        return (self.clip_len - 1) * self.frame_interval + 1

    @property
    def offset_frames(self) -> float:
        """Frame position of row 0's centre, as the published formulas have it."""
        return {"start": self.span_frames / 2, "centre": 0.0, "cell": self.stride / 2}[self.anchor]

    @property
    def first_frame(self) -> int:
        """Frame that clip 0 begins with; below 0 for the anchors that repeat the edge."""
        if self.anchor == "start":
            return 0
        middle = 0 if self.anchor == "centre" else self.stride // 2
        return middle - self.clip_len // 2 * self.frame_interval

    def rows(self, n_frames: int) -> int:
        """Snippets of a video of N frames."""
        if self.anchor != "start":
            return -(-n_frames // self.stride)
        return max((n_frames - self.reach_frames) // self.stride + 1, 0)

    def frame_indices(self, n_frames: int) -> np.ndarray:
        """The frames of every clip, int64 [rows, F], within [0, N - 1]."""
        starts = self.first_frame + self.stride * np.arange(self.rows(n_frames))[:, None]
        indices = starts + self.frame_interval * np.arange(self.clip_len)
        return np.clip(indices, 0, max(n_frames - 1, 0)).astype(np.int64)

    def uses(self, frame: int) -> bool:
        """Whether a clip may hold this frame; always, where the last frame may be repeated."""
        if self.anchor != "start":
            return True
        return any(
            (frame - k * self.frame_interval) % self.stride == 0 for k in range(self.clip_len)
        )

    def row_times(self, probe: VideoProbe) -> np.ndarray:
        """Presentation time of frame i * stride + offset, from the time stamps; float64 [rows]."""
        positions = self.offset_frames + self.stride * np.arange(self.rows(probe.frames))
        return frame_times(probe, positions)

    def grid(self, probe: VideoProbe) -> SnippetGrid:
        """The time axis of a video's features; by row where the rate is variable."""
        rows = self.rows(probe.frames)
        common = (rows, self.stride, self.span_frames, self.offset_frames)
        if probe.fps is not None:
            t0_sec = probe.times_sec[0] + float(self.offset_frames / probe.fps)
            return SnippetGrid(*common, t0_sec, float(self.stride / probe.fps))
        times = self.row_times(probe)
        if rows > 1 and times[-1] > times[0]:
            dt_sec = float(times[-1] - times[0]) / (rows - 1)
        else:
            dt_sec = self.stride * _mean_step_sec(probe)
        t0_sec = float(times[0]) if rows else probe.times_sec[0]
        return SnippetGrid(*common, t0_sec, dt_sec, tuple(times.tolist()))


def frame_times(probe: VideoProbe, positions_frames: np.ndarray) -> np.ndarray:
    """Presentation times of (fractional) frame positions; the last step continues past the end."""
    times = np.asarray(probe.times_sec, dtype=np.float64)
    positions = np.asarray(positions_frames, dtype=np.float64)
    if len(times) < 2:
        return times[0] + positions * _mean_step_sec(probe)
    before = np.clip(np.floor(positions).astype(np.int64), 0, len(times) - 2)
    return times[before] + (positions - before) * (times[before + 1] - times[before])


def iter_clips(items: Iterable[Item], plan: SnippetPlan) -> Iterator[tuple[int, list[Item]]]:
    """Cut clips from one pass over the frames, or over anything made once per frame.

    At most `plan.reach_frames` items are held. Clip i comes as soon as its last frame is there;
    clips that reach past the end follow when the items are used up, with the last item repeated.

    Yields:
        (i, F items) for every row of the plan, in order.
    """
    ring: deque[Item] = deque(maxlen=plan.reach_frames)
    offsets = range(0, plan.reach_frames, plan.frame_interval)
    row, count = 0, 0

    def clip(row: int) -> list[Item]:
        first = plan.first_frame + row * plan.stride
        oldest = count - len(ring)
        # Frames before the video are frame 0, those behind it the last one.
        return [ring[min(max(first + o, 0), count - 1) - oldest] for o in offsets]

    for item in items:
        ring.append(item)
        count += 1
        while plan.first_frame + row * plan.stride + plan.reach_frames <= count:
            yield row, clip(row)
            row += 1
    for last_row in range(row, plan.rows(count)):
        yield last_row, clip(last_row)


def _mean_step_sec(probe: VideoProbe) -> float:
    """Mean time from frame to frame; a stand-in of 1/25 s where the file gives no hint."""
    if probe.fps is not None:
        return float(1 / probe.fps)
    span_sec = probe.times_sec[-1] - probe.times_sec[0]
    return span_sec / (probe.frames - 1) if probe.frames > 1 and span_sec > 0 else 0.04


# OpenTAD's loaders (LoadFrames, LoadSnippetFrames), as index arrays; extraction spec, section 1.


def resized_frames(n_frames: int, length_grid: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """A whole video as length * scale frames, evenly spaced.

    Returns:
        Frame indices int64 [length * scale] and the mask of valid grid steps, bool [length].
    """
    centres = _resized_centres(n_frames, length_grid * scale)
    return _to_indices(centres, n_frames), np.ones(length_grid, dtype=bool)


def resized_snippets(
    n_frames: int, length_grid: int, clip_len: int, frame_interval: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """A whole video as `length_grid` snippets around evenly spaced, fractional centres.

    Returns:
        Frame indices int64 [length, F] and the mask, bool [length].
    """
    centres = _resized_centres(n_frames, length_grid)
    indices = _to_indices(centres[:, None] + _around(clip_len, frame_interval), n_frames)
    return indices, np.ones(length_grid, dtype=bool)


def window_frames(
    n_frames: int, start_row: int, end_row: int, *, stride: int, window_grid: int, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a window, stride / scale apart; the last one is repeated up to the full length.

    Args:
        start_row, end_row: first and last snippet of the window, the last one included.
        scale: frames per grid step.
    Returns:
        Frame indices int64 [window * scale] and the mask of valid grid steps, bool [window].
    """
    if stride % scale:
        raise ConfigError(
            "The stride must be a multiple of the frames per grid step.",
            f"stride = {stride} frames, scale = {scale}",
        )
    every = np.arange(0, n_frames, stride // scale)
    indices = every[start_row * scale : (end_row + 1) * scale]
    # A grid step counts as valid only if all of its frames are there.
    mask = np.arange(window_grid) < len(indices) // scale
    return _padded(indices, window_grid * scale), mask


def window_snippets(
    n_frames: int,
    start_row: int,
    end_row: int,
    *,
    stride: int,
    window_grid: int,
    clip_len: int,
    frame_interval: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Snippets of a window of the "centre" grid; the last centre is repeated to the full length.

    Returns:
        Frame indices int64 [window, F] and the mask, bool [window].
    """
    centres = np.arange(0, n_frames, stride)[start_row : end_row + 1]
    mask = np.arange(window_grid) < len(centres)
    around = _padded(centres, window_grid)[:, None] + _around(clip_len, frame_interval)
    return _to_indices(around, n_frames), mask


def _resized_centres(n_frames: int, count: int) -> np.ndarray:
    """Middles of `count` equal cells, in frames: (i + 0.5) * N / count - 0.5; float64 [count]."""
    return (np.arange(count) + 0.5) * n_frames / count - 0.5


def _around(clip_len: int, frame_interval: int) -> np.ndarray:
    return frame_interval * np.arange(-(clip_len // 2), clip_len - clip_len // 2)


def _to_indices(positions: np.ndarray, n_frames: int) -> np.ndarray:
    """Clip to the video, then round half to even."""
    return np.rint(np.clip(positions, 0, n_frames - 1)).astype(np.int64)


def _padded(indices: np.ndarray, length: int) -> np.ndarray:
    """The first `length` indices; the last one is repeated when there are fewer."""
    if not len(indices):
        raise ConfigError("A window begins behind the end of its video.")
    indices = indices[:length]
    return np.pad(indices, (0, length - len(indices)), mode="edge").astype(np.int64)
