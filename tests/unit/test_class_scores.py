"""External class scores: which detections get which classes, and how they are scored."""

from __future__ import annotations

import math

import pytest

from tadpipe.annotations import Detection
from tadpipe.class_scores import class_probabilities, fuse_class_scores, name_class_scores
from tadpipe.errors import ConfigError

FOUND = [Detection(0, 2, "any", 0.2), Detection(1, 5, "any", 0.9), Detection(3, 4, "any", 0.5)]
SCORES = {"run": 0.1, "jump": 0.6, "swim": 0.3}


def test_best_detections_get_the_best_classes_in_order() -> None:
    fused = fuse_class_scores(FOUND, SCORES, num_pred=2, topk=2)
    assert [(d.label, d.start_sec) for d in fused] == [
        ("jump", 1),
        ("jump", 3),
        ("swim", 1),
        ("swim", 3),
    ]


def test_score_is_the_geometric_mean() -> None:
    best = fuse_class_scores(FOUND, SCORES, num_pred=1, topk=1)[0]
    assert best.score == pytest.approx(math.sqrt(0.6 * 0.9))


def test_logits_are_refused() -> None:
    with pytest.raises(ConfigError, match="run: -1"):
        fuse_class_scores(FOUND, {"run": -1.0})


@pytest.mark.parametrize("entry", [[0.1, 0.6], [[0.1, 0.6]]])
def test_an_entry_that_holds_one_list_is_unwrapped(entry: list[float] | list[list[float]]) -> None:
    assert name_class_scores(entry, ["run", "jump"]) == {"run": 0.1, "jump": 0.6}


def test_a_single_score_is_no_list_to_unwrap() -> None:
    assert name_class_scores([0.4], ["run"]) == {"run": 0.4}


@pytest.mark.parametrize("entry", [[0.1], [[0.1, 0.2, 0.3]], [[0.1, 0.2], [0.3, 0.4]]])
def test_entries_that_do_not_match_the_labels_are_refused(entry: list[float]) -> None:
    with pytest.raises(ConfigError, match="one class score per label"):
        name_class_scores(entry, ["run", "jump"])


def test_probabilities_stay_as_they_are() -> None:
    for scores in (SCORES, {"run": 0.0, "jump": 1.0}):
        assert class_probabilities(scores) == scores


@pytest.mark.parametrize("odd", [-1.0, 1.5, 800.0])
def test_one_score_out_of_range_brings_softmax_over_all(odd: float) -> None:
    scores = {"run": 0.2, "jump": odd}
    probabilities = class_probabilities(scores)
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert probabilities["jump"] == pytest.approx(1 / (1 + math.exp(0.2 - odd)))
    assert fuse_class_scores(FOUND, probabilities)
