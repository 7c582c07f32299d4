"""AR@AN: equality with plain loops, and the limits."""

from __future__ import annotations

import numpy as np
import pytest

from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.evaluation.proposals import average_recall
from tests.unit.evaluation import naive

TIOUS = (0.3, 0.5, 0.9)


@pytest.mark.parametrize("max_an", [None, 3, 100])
def test_curve_equals_that_of_plain_loops(max_an: int | None) -> None:
    for seed in range(10):
        truth, found = naive.random_rows(seed)
        if not any(row[0] in {t[0] for t in truth} for row in found):
            continue
        curve = average_recall(*naive.tables(truth, found), TIOUS, max_an=max_an)
        recall, axis, auc = naive.average_recall(truth, found, TIOUS, max_an)
        assert np.array_equal(curve.recall, recall)
        assert np.array_equal(curve.proposals_per_video, axis)
        assert curve.auc == pytest.approx(auc, abs=1e-14)


def test_labels_play_no_part() -> None:
    columns = naive.tables([("v", 0.0, 1.0, "a")], [("v", 0.0, 1.0, "unheard of", 0.9)])
    assert average_recall(*columns, TIOUS, max_an=1).average_recall[-1] == 1.0


def test_opentad_has_as_many_points_as_proposals() -> None:
    columns = naive.tables([("v", 0.0, 1.0, "a")], [("v", 0.0, 1.0, "a", 0.9)])
    curve = average_recall(*columns, TIOUS, max_an=7, variant="opentad")
    assert curve.proposals_per_video.tolist() == pytest.approx([1, 2, 3, 4, 5, 6, 7])
    assert curve.at(7) == 1.0


def test_no_proposal_gives_no_recall() -> None:
    curve = average_recall(*naive.tables([("v", 0.0, 1.0, "a")], []), TIOUS)
    assert (curve.auc, curve.recall.max()) == (0.0, 0.0)


def test_proposals_of_other_videos_only_give_no_recall() -> None:
    columns = naive.tables([("v", 0.0, 1.0, "a")], [("w", 0.0, 1.0, "a", 0.9)])
    assert average_recall(*columns, TIOUS).auc == 0.0


def test_blocked_videos_leave_both_sides() -> None:
    truth = [("v", 0.0, 1.0, "a"), ("bad", 0.0, 1.0, "a")]
    found = [("v", 0.0, 1.0, "a", 0.9), ("bad", 5.0, 6.0, "a", 0.9)]
    curve = average_recall(*naive.tables(truth, found), TIOUS, max_an=1, blocked=("bad",))
    assert (curve.videos, curve.average_recall[-1]) == (1, 1.0)


def test_limits_that_make_no_sense_are_refused() -> None:
    columns = naive.tables([("v", 0.0, 1.0, "a")], [])
    with pytest.raises(ConfigError, match="max_an = 0"):
        average_recall(*columns, TIOUS, max_an=0)
    with pytest.raises(ConfigError, match="None"):
        average_recall(*columns, TIOUS, max_an=None, variant="opentad")
    with pytest.raises(AnnotationError, match="no ground truth"):
        average_recall(*columns, TIOUS, blocked=("v",))
