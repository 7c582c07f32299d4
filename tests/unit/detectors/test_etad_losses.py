"""ETAD's targets and losses against values worked out by hand, quirks of the release included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tadpipe.detectors.etad_losses import (
    EtadTargets,
    StageOutputs,
    balanced_loss,
    boundary_classes,
    boundary_targets,
    matched_truths,
    offset_targets,
    sampled_bce,
    sampled_mse,
    stage_loss,
    stage_terms,
    tiou,
    uniform_draw,
)


def never(count: int) -> Tensor:
    raise AssertionError("nothing should be drawn")


def zeros(count: int) -> Tensor:
    return torch.zeros(count)


def ones(count: int) -> Tensor:
    return torch.full((count,), 0.999)


def test_a_boundary_is_three_snippets_wide() -> None:
    targets = boundary_targets(torch.tensor([[3.25, 7.0]]), 9, 1)
    assert targets[0].tolist() == pytest.approx([0, 0.25, 1, 1, 0.75, 0, 0, 0, 0], abs=1e-5)
    # An end on the edge of a cell covers its outer cells by half, which is just no positive.
    assert targets[1].tolist() == pytest.approx([0, 0, 0, 0, 0, 0.5, 1, 1, 0.5], abs=1e-5)
    assert not bool((targets[1, [5, 8]] > 0.5).any())


def test_boundaries_are_the_same_in_shares_of_the_sequence() -> None:
    truths = torch.tensor([[3.25, 7.0], [1.0, 4.4]])
    shares = boundary_targets(truths / 9, 9, 9)
    assert torch.allclose(shares, boundary_targets(truths, 9, 1), atol=1e-4)
    assert not boundary_targets(torch.zeros(0, 2), 9, 9).any()


def test_overlap_matches_the_first_of_equal_truths() -> None:
    truths = torch.tensor([[0.0, 2.0], [2.0, 4.0], [2.0, 4.0]])
    proposals = torch.tensor([[1.0, 3.0], [2.5, 4.0], [8.0, 9.0]])
    overlaps = tiou(proposals[:, None], truths[None])
    assert overlaps[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert matched_truths(overlaps, truths).tolist() == [[0, 2], [2, 4], [0, 2]]
    assert matched_truths(torch.zeros(3, 0), torch.zeros(0, 2)).tolist() == [[0, 0]] * 3


def test_overlap_of_nothing_with_nothing_is_nothing() -> None:
    point = torch.zeros(1, 2)
    assert tiou(point, point).tolist() == [0.0]
    assert tiou(point, point, least=1e-6).tolist() == [0.0]


def test_offsets_lead_to_the_truth() -> None:
    offsets = offset_targets(torch.tensor([[2.0, 6.0]]), torch.tensor([[3.0, 5.0]]))
    assert offsets[0].tolist() == pytest.approx([0.25, -0.25, 0.0, math.log(0.5 + 1e-6)])


def test_boundary_class_is_read_at_the_truncated_snippet() -> None:
    boundary = torch.arange(8.0).view(1, 2, 4)
    classes = boundary_classes(torch.tensor([[[0.9, 2.0], [-3.0, 9.0]]]), boundary, 1)
    assert classes.tolist() == [[[0, 6], [0, 7]]]


def test_positives_and_negatives_weigh_the_same() -> None:
    errors = torch.tensor([1.0, 2.0, 3.0, 4.0])
    positive = torch.tensor([True, False, False, False])
    assert float(balanced_loss(errors, positive)) == pytest.approx((1 * 2 + 9 * 2 / 3) / 4)
    assert float(balanced_loss(errors, ~positive | positive)) == 2.5
    assert float(balanced_loss(errors, positive & ~positive)) == 2.5


def test_sampled_entropy_draws_only_with_positives() -> None:
    p = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert float(sampled_bce(p, torch.zeros(4).bool(), never)) == pytest.approx(math.log(2), 1e-4)
    positive = torch.tensor([True, False, False, False])
    p = torch.tensor([0.5, 0.1, 0.1, 0.1])
    # High noise takes every negative, low noise none.
    every = float(sampled_bce(p, positive, ones))
    none = float(sampled_bce(p, positive, zeros))
    assert every == pytest.approx((math.log(2) - 3 * math.log(0.9)) / 4, abs=1e-5)
    assert none == pytest.approx(math.log(2), abs=1e-5)


def test_with_more_positives_than_negatives_all_enter_the_negative_term() -> None:
    positive = torch.tensor([True, True, False])
    p = torch.tensor([0.5, 0.5, 0.5])
    assert float(sampled_bce(p, positive, zeros)) == pytest.approx(math.log(2), abs=1e-5)
    p = torch.tensor([0.9, 0.9, 0.5])
    wanted = -(2 * math.log(0.9) + 2 * math.log(0.1) + math.log(0.5)) / 5
    assert float(sampled_bce(p, positive, zeros)) == pytest.approx(wanted, abs=1e-4)
    assert math.isfinite(float(sampled_bce(p, torch.ones(3).bool(), zeros)))


def test_overlap_regression_balances_three_groups() -> None:
    target = torch.tensor([0.9, 0.5, 0.5, 0.1, 0.1])
    p = torch.zeros(5)
    none = float(sampled_mse(p, target, zeros))
    assert none == pytest.approx(0.81)
    every = float(sampled_mse(p, target, ones))
    assert every == pytest.approx((0.81 + 0.25 * 2 + 0.01 * 2) / 5)
    low = torch.tensor([0.1, 0.7])  # 0.7 itself is a middle one
    assert float(sampled_mse(p[:2], low, never)) == pytest.approx((0.01 + 0.49) / 2)


def test_an_empty_group_takes_everyone_as_in_the_release() -> None:
    target = torch.tensor([0.9, 0.5])  # no low ones: the draw for them is always won
    p = torch.zeros(2)
    wanted = (0.81 * 2 + 0.25 * 2) / 4  # own weight or drawn, and once more for the empty group
    assert float(sampled_mse(p, target, ones)) == pytest.approx(wanted)


def stage_and_targets() -> tuple[StageOutputs, EtadTargets]:
    proposals = torch.tensor([[[2.0, 6.0], [0.0, 1.0]]])
    stage = StageOutputs(
        proposals, torch.full((1, 2, 2), 0.5), torch.zeros(1, 2, 4), torch.full((1, 2, 2), 0.5)
    )
    boundary = boundary_targets(torch.tensor([[2.0, 6.0]]), 8, 1)[None]
    return stage, EtadTargets(boundary, torch.tensor([[[2.0, 7.0], [2.0, 7.0]]]))


def test_offsets_train_only_above_the_threshold_of_the_stage() -> None:
    stage, targets = stage_and_targets()
    overlaps = tiou(stage.proposals, targets.matched)  # 0.8 and 0

    def terms(threshold: float) -> dict[str, Tensor]:
        return stage_terms(
            stage,
            targets,
            overlaps,
            per_unit=1,
            stage_tiou=threshold,
            positive_tiou=0.9,
            draw=zeros,
        )

    assert float(terms(0.7)["end"]) == pytest.approx(0.25**2 / 2)
    assert float(terms(0.8)["end"]) == 0.0
    assert float(stage_loss(terms(0.7), 1, 5, 10)) > float(stage_loss(terms(0.8), 1, 5, 10))


def test_noise_comes_from_the_generator_that_is_given() -> None:
    device = torch.device("cpu")
    first = uniform_draw(torch.Generator().manual_seed(1), device)(4)
    assert torch.equal(first, uniform_draw(torch.Generator().manual_seed(1), device)(4))
    torch.manual_seed(2)
    default = uniform_draw(None, device)(4)
    torch.manual_seed(2)
    assert torch.equal(default, torch.rand(4))
