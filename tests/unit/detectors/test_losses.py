"""Losses against float64 formulas written out."""

from __future__ import annotations

import math

import pytest
import torch

from tadpipe.detectors.parts.losses import (
    LossNormalizer,
    diou_loss,
    giou_loss,
    offset_iou,
    regression_weight,
    sigmoid_focal_loss,
    smooth_labels,
)

PAIRS = [((1.0, 2.0), (1.5, 0.5)), ((0.0, 0.0), (2.0, 1.0)), ((3.0, 4.0), (3.0, 4.0))]


def focal(x: float, y: float, alpha: float, gamma: float) -> float:
    p = 1 / (1 + math.exp(-x))
    entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
    p_true = p * y + (1 - p) * (1 - y)
    return (alpha * y + (1 - alpha) * (1 - y)) * (1 - p_true) ** gamma * entropy


@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("logit", [-4.0, 0.0, 2.5])
def test_focal_loss_equals_its_formula(logit: float, target: float) -> None:
    loss = sigmoid_focal_loss(torch.tensor([logit]), torch.tensor([target]))
    assert float(loss) == pytest.approx(focal(logit, target, 0.25, 2.0), rel=1e-5)


def test_smoothing_moves_targets_towards_the_even_share() -> None:
    smoothed = smooth_labels(torch.tensor([[1.0, 0.0, 0.0]]), 0.1)
    assert smoothed[0].tolist() == pytest.approx([0.925, 0.025, 0.025])


@pytest.mark.parametrize(("pred", "target"), PAIRS)
def test_segment_losses_equal_their_formulas(pred, target) -> None:
    a, b = (-pred[0], pred[1]), (-target[0], target[1])  # as segments around the point 0
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    united = (a[1] - a[0]) + (b[1] - b[0]) - shared
    enclosing = max(a[1], b[1]) - min(a[0], b[0])
    gap = (a[0] + a[1]) / 2 - (b[0] + b[1]) / 2
    p, t = torch.tensor([pred]), torch.tensor([target])
    assert float(offset_iou(p, t)) == pytest.approx(shared / united)
    assert float(diou_loss(p, t)) == pytest.approx(1 - shared / united + (gap / enclosing) ** 2)
    giou = 1 - shared / united + (enclosing - united) / enclosing
    assert float(giou_loss(p, t)) == pytest.approx(giou, abs=1e-6)


def test_empty_segments_give_finite_losses_and_gradients() -> None:
    pred = torch.zeros(1, 2, requires_grad=True)
    diou_loss(pred, torch.zeros(1, 2)).sum().backward()
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()


def test_weight_at_or_below_zero_balances_the_two_losses() -> None:
    cls_loss = torch.tensor(3.0, requires_grad=True)
    weight = regression_weight(-1.0, cls_loss, torch.tensor(0.5))
    assert isinstance(weight, torch.Tensor)
    assert not weight.requires_grad
    assert float(weight) == pytest.approx(6.0)
    assert float(regression_weight(0.0, cls_loss, torch.tensor(0.001))) == pytest.approx(300.0)
    assert regression_weight(2.0, cls_loss, torch.tensor(0.5)) == 2.0


def test_normalizer_moves_a_tenth_of_the_way_and_counts_at_least_one() -> None:
    normalizer = LossNormalizer(100)
    assert normalizer.update(20) == pytest.approx(92)
    assert normalizer.update(0) == pytest.approx(82.9)
