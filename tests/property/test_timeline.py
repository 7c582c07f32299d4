"""Laws of time that hold for every grid and every rate."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadpipe.timeline import SnippetGrid, constant_rate

steps = st.lists(st.floats(0.01, 10.0), min_size=2, max_size=40)
positions = st.floats(-5.0, 50.0)


def variable(step_list: list[float]) -> SnippetGrid:
    times = [0.25]
    for step in step_list:
        times.append(times[-1] + step)
    mean = (times[-1] - times[0]) / len(step_list)
    return SnippetGrid(len(times), 4, 16, 8, times[0], mean, tuple(times))


@given(step_list=steps, position=positions)
def test_seconds_and_back_on_a_variable_grid(step_list: list[float], position: float) -> None:
    grid = variable(step_list)
    assert grid.to_grid(grid.to_sec(position)) == pytest.approx(position, abs=1e-6)


@given(
    fps=st.floats(1.0, 240.0),
    stride=st.integers(1, 64),
    span=st.integers(1, 64),
    position=positions,
)
def test_seconds_and_back_on_a_constant_grid(
    fps: float, stride: int, span: int, position: float
) -> None:
    grid = SnippetGrid.from_convention(30, fps=fps, stride_frames=stride, span_frames=span)
    assert grid.to_grid(grid.to_sec(position)) == pytest.approx(position, abs=1e-6)


@given(step_list=steps, pair=st.tuples(positions, positions))
def test_time_never_runs_backwards(step_list: list[float], pair: tuple[float, float]) -> None:
    grid = variable(step_list)
    early, late = sorted(pair)
    assert grid.to_sec(early) <= grid.to_sec(late) + 1e-9


@settings(deadline=None)
@given(
    rate=st.fractions(Fraction(1), Fraction(240), max_denominator=1001),
    tick=st.sampled_from([Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 12800)]),
    frames=st.integers(2, 400),
    first=st.integers(-100, 10_000),
)
def test_a_rounded_constant_rate_is_recognised_to_a_tick(
    rate: Fraction, tick: Fraction, frames: int, first: int
) -> None:
    ticks = [first + round(Fraction(i) / rate / tick) for i in range(frames)]
    found = constant_rate(ticks, tick)
    assert found is not None
    for i, stamp in enumerate(ticks):
        assert abs((stamp - first) * tick - i / found) <= tick


@settings(deadline=None)
@given(
    frames=st.integers(8, 200),
    at=st.floats(0.2, 0.8),
    gap=st.integers(2, 5),
)
def test_a_gap_is_never_taken_for_a_constant_rate(frames: int, at: float, gap: int) -> None:
    hole = int(frames * at)
    ticks = [512 * i + (512 * (gap - 1) if i > hole else 0) for i in range(frames)]
    assert constant_rate(ticks, Fraction(1, 15360), Fraction(30)) is None
