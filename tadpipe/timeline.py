"""SnippetGrid: the one owner of time, between feature grid, frames and seconds.

Row i of a feature array describes the snippet centred on frame `i * stride + offset`; its centre
time is the presentation time of that frame, counted from the container's start. A position on the
grid may be fractional. With a constant rate the conversion is the published formula
`seconds = (grid * stride + offset) / fps`; with a variable one the row times are interpolated.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from tadpipe.errors import ConfigError

ANCHORS = ("start", "centre", "cell")


@dataclass(frozen=True)
class SnippetGrid:
    """The time axis of one video's features, with the conventions detectors are published in."""

    rows: int  # feature rows
    stride_frames: float  # frames between neighbouring rows; fractional after `resized`
    span_frames: float  # "feat_num_frames": clip_len * frame_interval
    offset_frames: float  # frame position of row 0's centre
    t0_sec: float  # centre time of row 0
    dt_sec: float  # seconds between rows; the mean when the rate is variable
    row_times_sec: Sequence[float] | None = field(default=None, repr=False)  # variable rate only

    def __post_init__(self) -> None:
        if self.rows < 0 or self.stride_frames <= 0 or self.dt_sec <= 0:
            raise ConfigError(
                "A feature grid needs rows >= 0, stride > 0 and dt > 0.",
                f"rows {self.rows}, stride {self.stride_frames} frames, dt {self.dt_sec} s",
            )
        if self.row_times_sec is not None and len(self.row_times_sec) != self.rows:
            raise ConfigError(
                "One time per row is needed.", f"{len(self.row_times_sec)} times, {self.rows} rows"
            )

    @classmethod
    def from_convention(
        cls,
        rows: int,
        *,
        fps: float,
        stride_frames: float,
        span_frames: float,
        offset_frames: float | None = None,
    ) -> SnippetGrid:
        """The grid of a constant-rate video; `offset_frames` defaults to half the span."""
        offset = span_frames / 2 if offset_frames is None else offset_frames
        return cls(rows, stride_frames, span_frames, offset, offset / fps, stride_frames / fps)

    @property
    def offset_grid(self) -> float:
        """Half a clip in grid steps: `0.5 * num_frames / stride`, as ActionFormer truncates."""
        return 0.5 * self.span_frames / self.stride_frames

    @property
    def is_variable_rate(self) -> bool:
        return self.row_times_sec is not None

    def to_sec(self, position_grid: float) -> float:
        """Seconds of a (fractional) grid position; linear beyond both ends."""
        times = self.row_times_sec
        if times is None or len(times) < 2:
            return self.t0_sec + position_grid * self.dt_sec
        i = min(max(math.floor(position_grid), 0), len(times) - 2)
        step = times[i + 1] - times[i] if 0 <= position_grid <= len(times) - 1 else self.dt_sec
        start = i if position_grid <= len(times) - 1 else len(times) - 1
        return times[start] + (position_grid - start) * step

    def to_grid(self, time_sec: float) -> float:
        """Grid position of a time; the inverse of `to_sec`."""
        times = self.row_times_sec
        if times is None or len(times) < 2:
            return (time_sec - self.t0_sec) / self.dt_sec
        if time_sec < times[0]:
            return (time_sec - times[0]) / self.dt_sec
        if time_sec >= times[-1]:
            return len(times) - 1 + (time_sec - times[-1]) / self.dt_sec
        i = bisect_right(times, time_sec) - 1
        return i + (time_sec - times[i]) / (times[i + 1] - times[i])

    def subsampled(self, factor: int) -> SnippetGrid:
        """The grid of rows 0, factor, 2 * factor, ..."""
        if factor < 1:
            raise ConfigError("A grid is thinned by a whole factor.", f"factor = {factor}")
        times = None if self.row_times_sec is None else tuple(self.row_times_sec[::factor])
        return replace(
            self,
            rows=-(-self.rows // factor),
            stride_frames=self.stride_frames * factor,
            dt_sec=self.dt_sec * factor,
            row_times_sec=times,
        )

    def resized(self, rows: int) -> SnippetGrid:
        """The grid after features were linearly resized to `rows` (ActionFormer, ActivityNet).

        The whole span of the features is divided into `rows` equal cells and each row sits in the
        middle of its cell: stride' = ((n - 1) * stride + span) / rows, span' = stride'.
        """
        stride = ((self.rows - 1) * self.stride_frames + self.span_frames) / rows
        first = self.offset_frames - self.span_frames / 2 + stride / 2  # frame of the new row 0

        def old_position(row: int) -> float:
            return (first + row * stride - self.offset_frames) / self.stride_frames

        times = None
        if self.row_times_sec is not None:
            times = tuple(self.to_sec(old_position(row)) for row in range(rows))
        return SnippetGrid(
            rows,
            stride_frames=stride,
            span_frames=stride,
            offset_frames=first,
            t0_sec=self.to_sec(old_position(0)),
            dt_sec=self.dt_sec * stride / self.stride_frames,
            row_times_sec=times,
        )


def constant_rate(
    ticks: Sequence[int], tick_sec: Fraction, guess: Fraction | None = None
) -> Fraction | None:
    """Frames per second if every time stamp fits one rate to a tick, else None.

    A tick as long as a frame (avi) would hide a missing frame, so the tolerance is at most a
    quarter of the frame period.

    Args:
        ticks: sorted presentation times in units of the time base.
        tick_sec: the container's time base.
        guess: the container's own idea of the rate; taken if it fits, and for a single frame.
    """
    steps = len(ticks) - 1
    if guess is not None and guess > 0 and _fits(ticks, 1 / (guess * tick_sec)):
        return guess
    if steps < 1 or ticks[-1] <= ticks[0]:
        return None
    mean = Fraction(ticks[-1] - ticks[0], steps)
    # Only slopes this near to the mean keep the last stamp within the tolerance.
    low, high = mean - _tolerance(mean) / steps, mean + _tolerance(mean) / steps
    # The simplest rate inside the tolerance: 30 rather than 3635/121, 30000/1001 rather than 29.97.
    measured = 1 / (mean * tick_sec)
    television = Fraction(round(measured * 1001 / 1000) * 1000, 1001)
    for rate in (
        measured.limit_denominator(1),
        television,
        measured.limit_denominator(1001),
        measured.limit_denominator(10_000),
    ):
        if (
            rate > 0
            and low <= 1 / (rate * tick_sec) <= high
            and _fits(ticks, 1 / (rate * tick_sec))
        ):
            return rate
    return _fitted_rate(ticks, tick_sec, mean)


def _fitted_rate(ticks: Sequence[int], tick_sec: Fraction, mean: Fraction) -> Fraction | None:
    """A rate between the slopes that keep every stamp within the tolerance, if there is one."""
    tolerance = _tolerance(mean)
    # Slopes (distance -+ tolerance) / i over a common denominator, compared crosswise as integers.
    scale, slack = tolerance.denominator, tolerance.numerator
    low, low_at = (ticks[1] - ticks[0]) * scale - slack, 1
    high, high_at = (ticks[1] - ticks[0]) * scale + slack, 1
    for i in range(2, len(ticks)):
        distance = (ticks[i] - ticks[0]) * scale
        if (distance - slack) * low_at > low * i:
            low, low_at = distance - slack, i
        if (distance + slack) * high_at < high * i:
            high, high_at = distance + slack, i
    lowest, highest = Fraction(low, low_at * scale), Fraction(high, high_at * scale)
    if lowest > highest or highest <= 0:
        return None
    return 1 / (min(max(mean, lowest), highest) * tick_sec)


def _tolerance(period_ticks: Fraction) -> Fraction:
    return min(Fraction(1), period_ticks / 4)


def _fits(ticks: Sequence[int], period_ticks: Fraction) -> bool:
    """Whether |ticks[i] - ticks[0] - i * period| <= tolerance for every i."""
    tolerance = _tolerance(period_ticks)
    scale = math.lcm(period_ticks.denominator, tolerance.denominator)
    period, slack = int(period_ticks * scale), int(tolerance * scale)
    return all(
        -slack <= (tick - ticks[0]) * scale - i * period <= slack for i, tick in enumerate(ticks)
    )


def interpolate_frame_time(times_sec: Sequence[float], position_frames: float) -> float:
    """Presentation time of a (fractional) frame position; the last step continues past the end."""
    last = len(times_sec) - 1
    if last < 1:
        return times_sec[0]
    i = min(max(math.floor(position_frames), 0), last - 1)
    return times_sec[i] + (position_frames - i) * (times_sec[i + 1] - times_sec[i])
