"""External class scores: which detections get which classes, and how they are scored."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tadpipe.annotations import Detection
from tadpipe.class_scores import (
    ClassFusionConfig,
    fuse_class_scores,
    name_class_scores,
    scaled_class_scores,
)
from tadpipe.errors import ConfigError

FOUND = [Detection(0, 2, "any", 0.2), Detection(1, 5, "any", 0.9), Detection(3, 4, "any", 0.5)]
SCORES = {"run": 0.1, "jump": 0.6, "swim": 0.3}


def config(**changes: Any) -> ClassFusionConfig:
    return ClassFusionConfig(**{"max_segments": 2, "top_k": 2, **changes})


def test_best_detections_get_the_best_classes_in_order() -> None:
    fused = fuse_class_scores(FOUND, SCORES, config())
    assert [(d.label, d.start_sec) for d in fused] == [
        ("jump", 1),
        ("jump", 3),
        ("swim", 1),
        ("swim", 3),
    ]


def test_of_equals_the_earlier_detection_and_class_is_first() -> None:
    found = [Detection(i, i + 1, "any", 0.5) for i in range(4)]
    fused = fuse_class_scores(found, dict.fromkeys("abc", 0.5), config())
    assert [(d.label, d.start_sec) for d in fused] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_score_is_the_geometric_mean_or_the_product_in_full_precision() -> None:
    (root,) = fuse_class_scores(FOUND, SCORES, config(max_segments=1, top_k=1))
    (product,) = fuse_class_scores(FOUND, SCORES, config(max_segments=1, top_k=1, rule="product"))
    assert root.score == math.sqrt(0.6 * 0.9)
    assert product.score == 0.6 * 0.9


def test_more_classes_than_there_are_take_all() -> None:
    assert len(fuse_class_scores(FOUND, SCORES, config(top_k=9, max_segments=9))) == 9


def test_logits_are_refused() -> None:
    with pytest.raises(ConfigError, match="run: -1"):
        fuse_class_scores(FOUND, {"run": -1.0}, config())


def test_detections_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lowest score: -0\.5"):
        fuse_class_scores([Detection(0, 1, "any", -0.5)], SCORES, config())


@pytest.mark.parametrize("change", [{"top_k": 0}, {"max_segments": 0}])
def test_nothing_to_take_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="At least one class and one segment"):
        config(**change)


@pytest.mark.parametrize("entry", [[0.1, 0.6], [[0.1, 0.6]]])
def test_an_entry_that_holds_one_list_is_unwrapped(entry: list[float] | list[list[float]]) -> None:
    assert name_class_scores(entry, ["run", "jump"]) == {"run": 0.1, "jump": 0.6}


def test_a_single_score_is_no_list_to_unwrap() -> None:
    assert name_class_scores([0.4], ["run"]) == {"run": 0.4}


def test_whole_numbers_are_scores() -> None:
    assert name_class_scores([1, 0], ["run", "jump"]) == {"run": 1.0, "jump": 0.0}


@pytest.mark.parametrize("entry", [[0.1], [[0.1, 0.2, 0.3]], [[0.1, 0.2], [0.3, 0.4]]])
def test_entries_that_do_not_match_the_labels_are_refused(entry: list[float]) -> None:
    with pytest.raises(ConfigError, match="one class score per label"):
        name_class_scores(entry, ["run", "jump"])


@pytest.mark.parametrize("odd", [math.nan, math.inf, "0.3", None, True, 10**400])
def test_scores_that_are_no_finite_numbers_are_refused(odd: Any) -> None:
    with pytest.raises(ConfigError, match=r"jump: .* is no finite number"):
        name_class_scores([0.1, odd], ["run", "jump"])


@pytest.mark.parametrize("scale", ["none", "softmax-if-raw"])
def test_probabilities_stay_as_they_are(scale: str) -> None:
    for scores in (SCORES, {"run": 0.0, "jump": 1.0}):
        assert scaled_class_scores(scores, scale) == scores


@pytest.mark.parametrize("odd", [-1.0, 1.5, 800.0])
def test_one_score_out_of_range_brings_softmax_over_all(odd: float) -> None:
    scores = {"run": 0.2, "jump": odd}
    probabilities = scaled_class_scores(scores, "softmax-if-raw")
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert probabilities["jump"] == pytest.approx(1 / (1 + math.exp(0.2 - odd)))
    assert fuse_class_scores(FOUND, scores, config(scale="softmax-if-raw"))


@pytest.mark.parametrize(("scale", "total"), [("softmax", 1.0), ("2*softmax", 2.0)])
def test_softmax_is_taken_of_probabilities_too_and_doubled_for_hacs(
    scale: str, total: float
) -> None:
    scaled = scaled_class_scores(SCORES, scale)
    assert sum(scaled.values()) == pytest.approx(total)
    assert scaled["jump"] / scaled["run"] == pytest.approx(math.exp(0.5))
    (best,) = fuse_class_scores(
        FOUND, SCORES, config(top_k=1, max_segments=1, scale=scale, rule="product")
    )
    assert best.score == pytest.approx(0.9 * scaled["jump"])
