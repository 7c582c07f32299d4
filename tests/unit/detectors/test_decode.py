"""From points to candidates: thresholds, order, caps and units."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tadpipe.detectors.parts.decode import DecodeConfig, decode_levels, top_candidates
from tadpipe.detectors.parts.pyramid import make_points
from tadpipe.detectors.protocol import AnchorFreeOutputs
from tadpipe.errors import ConfigError


def outputs(columns: int = 1) -> AnchorFreeOutputs:
    """Two levels of 4 and 2 points, 3 classes; all logits differ."""
    torch.manual_seed(0)
    return AnchorFreeOutputs(
        masks=[torch.tensor([[True, True, True, False]]), torch.ones(1, 2, dtype=torch.bool)],
        points=make_points([4, 2], [1, 2], [(0.0, 4.0), (4.0, 1e4)]),
        logits=[torch.randn(1, 4, 3), torch.randn(1, 2, 3)],
        offsets=[torch.rand(1, 4, columns, 2), torch.rand(1, 2, columns, 2)],
    )


@pytest.mark.parametrize("columns", [1, 3])
def test_candidates_are_point_minus_and_plus_scaled_offsets(columns: int) -> None:
    raw = outputs(columns)
    config = DecodeConfig(pre_nms_threshold=0.4, min_length_grid=0.5)
    found = decode_levels(raw, config)[0]
    wanted = []
    for level in range(2):
        rows = []
        for t in range(raw.logits[level].shape[1]):
            for k in range(3):
                score = float(raw.logits[level][0, t, k].sigmoid()) * bool(raw.masks[level][0, t])
                left, right = raw.offsets[level][0, t, k if columns == 3 else 0].tolist()
                start, end = t * 2**level - left * 2**level, t * 2**level + right * 2**level
                if score > 0.4 and end - start > 0.5:
                    rows.append((score, start, end, k))
        wanted += sorted(rows, reverse=True)
    assert found.labels.tolist() == [row[3] for row in wanted]
    torch.testing.assert_close(found.scores, torch.tensor([row[0] for row in wanted]))
    torch.testing.assert_close(found.segments, torch.tensor([row[1:3] for row in wanted]))


def test_top_candidates_caps_each_level_and_breaks_ties_by_place() -> None:
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.5], [0.5, 0.1]])
    point, label, score = top_candidates(scores, DecodeConfig(pre_nms_topk=3))
    assert list(zip(point.tolist(), label.tolist(), strict=True)) == [(0, 1), (0, 0), (1, 0)]
    assert score.tolist() == pytest.approx([0.9, 0.5, 0.5])


def test_nothing_above_the_threshold_gives_no_candidates() -> None:
    found = decode_levels(outputs(), DecodeConfig(pre_nms_threshold=0.999))[0]
    assert found.segments.shape == (0, 2)


CHANGES = {"pre_nms_threshold": 0.6, "pre_nms_topk": 2, "min_length_grid": 1.5}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(DecodeConfig)])
def test_every_field_changes_the_candidates(field: str) -> None:
    before = decode_levels(outputs(), DecodeConfig())[0]
    after = decode_levels(outputs(), DecodeConfig(**{field: CHANGES[field]}))[0]
    assert len(after.scores) < len(before.scores)


def test_a_level_without_room_for_candidates_is_refused() -> None:
    with pytest.raises(ConfigError, match="pre_nms_topk = 0"):
        DecodeConfig(pre_nms_topk=0)
