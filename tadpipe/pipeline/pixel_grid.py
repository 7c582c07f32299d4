"""Which frames make the clips of a window, on the time axis a detector sees.

Snippets: row i is clip i of the grid that `tadpipe extract` uses. Frames: a window is one long run
of frames, `frames_per_step` to a row, cut into the backbone's clips; short windows repeat their
last frame. A detector whose windows are resized sees every video as `window_len` rows.
Shapes: T = window_len rows of a full window, M clips, F frames per clip, N frames of the video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tadpipe.errors import ConfigError
from tadpipe.store.metadata import FeatureSpec
from tadpipe.timeline import SnippetGrid
from tadpipe.video.packets import VideoProbe
from tadpipe.video.snippets import SnippetPlan, frame_times, resized_frames, resized_snippets


@dataclass(frozen=True)
class PixelGrid:
    """The rule by which videos become windows of pixels."""

    plan: SnippetPlan  # frames: anchored at the centre, a clip's frames `frame_interval` apart
    representation: Literal["snippet", "frame"]
    window_len: int  # T
    resize: bool = False  # every video to T rows
    frames_per_step: int = 1  # frame: frames of a row

    def __post_init__(self) -> None:
        if self.representation == "snippet":
            return
        if self.plan.stride != self.plan.frame_interval * self.frames_per_step:
            raise ConfigError(
                "The stride must be a multiple of the frames per grid step.",
                f"stride = {self.plan.stride} frames, e2e.frames_per_step = {self.frames_per_step}",
            )
        if self.window_frames % self.plan.clip_len:
            raise ConfigError(
                "The frames of a window do not make whole clips.",
                f"model.window_len = {self.window_len}, e2e.frames_per_step = "
                f"{self.frames_per_step}, clips of {self.plan.clip_len} frames",
                f"Make window_len * frames_per_step a multiple of {self.plan.clip_len}.",
            )

    @property
    def window_frames(self) -> int:
        """Frames of a full window in frame representation."""
        return self.window_len * self.frames_per_step

    def grid(self, probe: VideoProbe) -> SnippetGrid:
        """The time axis of a video's rows."""
        if not self.resize:
            return self.plan.grid(probe)
        cell = probe.frames / self.window_len  # frames of a row, which sits in its middle
        times = frame_times(probe, (np.arange(self.window_len) + 0.5) * cell)
        span_sec = float(times[-1] - times[0])
        return SnippetGrid(
            self.window_len,
            stride_frames=cell,
            span_frames=cell,
            offset_frames=cell / 2,
            t0_sec=float(times[0]),
            dt_sec=max(span_sec, 1e-6) / max(self.window_len - 1, 1),
            row_times_sec=tuple(times.tolist()) if probe.is_variable_rate else None,
        )

    def clips(self, n_frames: int, start: int, length: int) -> np.ndarray:
        """Frames of the clips of rows `start` to `start + length`, int64 [M, F].

        Snippets give one clip per row. Frames give the clips of a full window, whose rows behind
        `length` repeat the last frame.
        """
        if self.representation == "snippet":
            return self._snippets(n_frames, start, length)
        first, count = start * self.frames_per_step, length * self.frames_per_step
        if self.resize:
            line, _ = resized_frames(n_frames, self.window_len, self.frames_per_step)
        else:
            line = np.arange(0, n_frames, self.plan.frame_interval)
        places = np.minimum(first + np.arange(self.window_frames), first + count - 1)
        frames: np.ndarray = line[np.minimum(places, len(line) - 1)]
        return frames.reshape(-1, self.plan.clip_len)

    def _snippets(self, n_frames: int, start: int, length: int) -> np.ndarray:
        plan = self.plan
        if self.resize:
            whole, _ = resized_snippets(
                n_frames, self.window_len, plan.clip_len, plan.frame_interval
            )
            return whole[start : start + length]
        starts = plan.first_frame + plan.stride * np.arange(start, start + length)[:, None]
        indices = starts + plan.frame_interval * np.arange(plan.clip_len)
        return np.clip(indices, 0, max(n_frames - 1, 0)).astype(np.int64)


def overlap_frames(grid: PixelGrid, overlap: float) -> int:
    """Frames that neighbouring windows share, whole rows and less than a window."""
    rows = min(math.ceil(overlap * grid.window_len), grid.window_len - 1)
    return rows * grid.frames_per_step


def grid_of(spec: FeatureSpec, window_len: int = 0, *, resize: bool = False) -> PixelGrid:
    """The rule by which features of a spec are made.

    Args:
        window_len: T, where the spec does not say: of snippets, which are single, or resized.
    """
    plan = SnippetPlan(spec.anchor, spec.clip_len, spec.frame_interval, spec.stride)
    if spec.representation == "snippet":
        return PixelGrid(plan, "snippet", window_len, resize)
    per_step = spec.stride // spec.frame_interval
    return PixelGrid(plan, "frame", spec.window_len // per_step, resize, per_step)
