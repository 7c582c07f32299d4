"""Aligned columns, broken where they are too wide."""

from __future__ import annotations

from tadpipe.pipeline.text_table import aligned, fitted

ROWS = [("name", "one", "two", "three"), ("x", "1", "22", "333")]


def test_first_column_is_flush_left_and_the_others_flush_right() -> None:
    assert aligned(ROWS) == ["name  one  two  three", "x       1   22    333"]


def test_a_table_that_fits_is_not_broken() -> None:
    assert fitted(ROWS, 21) == aligned(ROWS)


def test_columns_that_do_not_fit_go_below_with_the_first_repeated() -> None:
    assert fitted(ROWS, 16) == ["name  one  two", "x       1   22", "name  three", "x       333"]


def test_a_long_first_column_is_cut() -> None:
    assert fitted([("a very long name", "1")], 20) == ["a very ...  1"]


def test_a_cell_that_does_not_fit_beside_the_first_column_is_cut() -> None:
    assert fitted([("name", "1", "a very long cell")], 16) == ["name  1", "name  a very ..."]


def test_a_table_of_one_column_is_printed() -> None:
    assert fitted([("alone",)], 20) == ["alone"]
