"""Characteristics of actions: read or computed, and the bins they fall into."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tadpipe.errors import AnnotationError
from tadpipe.evaluation.characteristics import (
    BIN_SETS,
    Bins,
    bins_from_mapping,
    in_bins,
    load_given,
    measure,
    quantile_bins,
)
from tests.unit.evaluation.naive import tables

TRUTH, _ = tables(
    [("v", 0.0, 5.0, "a"), ("v", 10.0, 20.0, "b"), ("w", 0.0, 4.0, "a")],
    [],
)


def test_bins_are_closed_at_the_right_and_at_the_lowest_edge() -> None:
    bins = Bins(("S", "L"), (0.0, 3.0, 6.0))
    values = np.array([0.0, 3.0, 3.1, 6.0, 6.1, -0.1, math.nan])
    assert bins.of(values).tolist() == [0, 0, 1, 1, -1, -1, -1]


def test_published_bins_reach_to_infinity() -> None:
    assert BIN_SETS["thumos14"]["length"].of(np.array([1e9])).tolist() == [4]


def test_characteristics_are_computed_where_the_file_has_none() -> None:
    measured = measure(TRUTH, {"v": 50.0}, {})
    assert measured["length"].values.tolist() == [5.0, 10.0, 4.0]
    assert measured["coverage"].values[:2].tolist() == [0.1, 0.2]
    assert math.isnan(measured["coverage"].values[2])
    assert measured["num-instances"].values.tolist() == [2, 2, 1]
    assert set(measured) == {"coverage", "length", "num-instances"}


def test_what_the_file_states_comes_before_what_is_computed() -> None:
    given = {("v", 10.0, 20.0, "b"): {"num-instances": 9.0, "context-size": 4.0}}
    measured = measure(TRUTH, {}, given)
    assert measured["num-instances"].values.tolist() == [2, 9, 1]
    assert measured["num-instances"].from_file
    assert not measured["length"].from_file
    assert measured["context-size"].values[1] == 4.0
    assert "coverage" not in measured


def test_quantile_bins_hold_about_equally_many_actions() -> None:
    values = np.arange(100.0)
    bins = quantile_bins(values)
    assert bins.names == ("XS", "S", "M", "L", "XL")
    assert np.bincount(bins.of(values)).tolist() == [20] * 5


@pytest.mark.parametrize(
    ("values", "names"),
    [([1, 1, 1], "M"), ([1, 1, 2, 2], "S L"), ([1] * 8 + [2, 3], "S L"), ([1, 2, 3], "S M L")],
)
def test_equal_values_share_a_quantile_bin(values: list[float], names: str) -> None:
    bins = quantile_bins(np.array(values, dtype=np.float64))
    assert " ".join(bins.names) == names
    assert (bins.of(np.array(values)) >= 0).all()


def test_characteristics_that_own_bins_leave_out_get_quantiles() -> None:
    found = in_bins(measure(TRUTH, {}, {}), {"length": Bins(("any",), (0.0, math.inf))})
    by_name = {item.name: item for item in found}
    assert by_name["length"].bins.names == ("any",)
    assert by_name["num-instances"].bins.names == ("S", "L")


def annotation_file(folder: Path, **extra: Any) -> Path:
    entry = {"segment": [0, 5], "label": "a", **extra}
    path = folder / "truth.json"
    path.write_text(json.dumps({"database": {"v": {"annotations": [entry]}}}), encoding="utf-8")
    return path


def test_given_characteristics_are_read_from_the_annotations(tmp_path: Path) -> None:
    path = annotation_file(tmp_path, **{"context-distance": "M", "agreement": 0.5, "other": "x"})
    assert load_given(path) == {("v", 0.0, 5.0, "a"): {"context-distance": 2.0, "agreement": 0.5}}


def test_a_characteristic_that_is_no_number_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"annotations\[0\]\.coverage"):
        load_given(annotation_file(tmp_path, coverage="half"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"colour": {"edges": [0, 1], "names": ["x"]}}, "no such characteristic"),
        ({"length": {"edges": [0, 5, 5], "names": ["x", "y"]}}, "rising"),
        ({"length": {"edges": [0, 5, "inf"], "names": ["x"]}}, "needs 2 names"),
        ({"length": [0, 5]}, "edges"),
        ([], "not an object"),
    ],
)
def test_own_bins_with_mistakes_are_explained(document: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        bins_from_mapping(document)
