"""External class scores: which detections get which classes, and how they are scored."""

from __future__ import annotations

import math

import pytest

from tadpipe.annotations import Detection
from tadpipe.class_scores import fuse_class_scores
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
