"""Which lengths a pyramid takes, and what a sequence is padded to.

Order: check_length -> round_up, full_padded_len -> longest_len.
Shapes: B batch, C channels, T grid length. All lengths are grid steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from tadpipe.errors import ConfigError


class LengthConfig(Protocol):
    """What decides about lengths: fields or properties of a detector's configuration."""

    @property
    def window_len(self) -> int: ...
    @property
    def max_buffer_len_factor(self) -> float: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def windows(self) -> tuple[int, ...]: ...


def check_length(feats: Tensor, config: LengthConfig) -> None:
    """Refuse [B, C, T] that the pyramid cannot halve to its top or has no points for.

    Raises:
        ConfigError: too long, or no multiple of the coarsest stride.
    """
    length_grid, longest_grid = feats.shape[2], _longest_grid(config)
    if length_grid > longest_grid:
        raise ConfigError(
            "The sequence is longer than the detector's points reach.",
            f"{length_grid} grid steps, at most window_len * max_buffer_len_factor = "
            f"{longest_grid}",
            "Cut it into windows, or raise max_buffer_len_factor.",
        )
    if length_grid % config.strides[-1]:
        raise ConfigError(
            "The sequence is not a multiple of the coarsest stride.",
            f"{length_grid} grid steps, stride {config.strides[-1]}",
            "Pad it to detector.padded_len(length).",
        )


def round_up(length_grid: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-length_grid // step) * step


def full_padded_len(length_grid: int, config: LengthConfig) -> int:
    """The published length of an inference sequence, for detectors whose scores depend on it.

    Up to the window everything is padded to it; beyond, to a multiple of the largest window in
    grid steps, the one of the stem included although the stem's blocks do not use it.
    """
    if length_grid <= config.window_len:
        return config.window_len
    step = max(
        stride * window if window > 1 else stride
        for stride, window in zip(config.strides, config.windows, strict=True)
    )
    # The levels must halve to the top as well; with one window for all levels they do.
    return round_up(length_grid, math.lcm(step, config.strides[-1]))


def longest_len(padded_len: Callable[[int], int], config: LengthConfig) -> int:
    """The longest sequence that still fits, in window_len * max_buffer_len_factor, once padded."""
    limit = longest = _longest_grid(config)
    while longest > 1 and padded_len(longest) > limit:
        longest -= 1
    return longest


def _longest_grid(config: LengthConfig) -> int:
    return int(config.window_len * config.max_buffer_len_factor)
