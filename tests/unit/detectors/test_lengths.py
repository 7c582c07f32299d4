"""Lengths of sequences: what is padded, and how long a sequence may be to go through whole."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tadpipe.detectors.parts.lengths import full_padded_len, longest_len


@dataclass(frozen=True)
class Lengths:
    window_len: int = 16
    max_buffer_len_factor: float = 2.0
    strides: tuple[int, ...] = (1, 2, 4)
    windows: tuple[int, ...] = (3, 3, 3)


@pytest.mark.parametrize(("factor", "longest"), [(2.0, 32), (2.3, 32), (2.5, 40)])
def test_the_longest_sequence_fits_with_its_padding(factor: float, longest: int) -> None:
    config = Lengths(max_buffer_len_factor=factor)
    assert longest_len(lambda length: -(-length // 8) * 8, config) == longest


@pytest.mark.parametrize(("length", "padded"), [(1, 16), (16, 16), (17, 24), (25, 36)])
def test_beyond_the_window_padding_goes_to_multiples_of_the_widest_one(
    length: int, padded: int
) -> None:
    assert full_padded_len(length, Lengths()) == padded
