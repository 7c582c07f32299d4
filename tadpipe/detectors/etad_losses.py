"""Targets and losses of ETAD (Liu et al., 2022), App. A.3, as in its release.

Read by the detectors of the release (`etad.py`) and of OpenTAD (`etad_opentad.py`): the unit of
proposals, how the tIoU is kept finite and the weights are arguments.
Shapes: B batch, T grid length, K proposals, G ground truths, N = B * K. Proposals count in shares
of the sequence (T snippets per unit) or in snippets (1 per unit).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

EPS = 1e-6
POSITIVE_SNIPPET = 0.5  # startness from which a snippet is a start
MIDDLE_TIOU, HIGH_TIOU = 0.3, 0.7  # groups of the IoU regression, the same in all stages
PROPOSAL_BOUNDARY_WEIGHT = 0.5  # of the boundary classes of proposals

Draw = Callable[[int], Tensor]  # count -> uniform [0, 1) values [count]


class StageOutputs(NamedTuple):
    """What one cascade stage says about its proposals."""

    proposals: Tensor  # [B, K, 2] its input
    iou: Tensor  # [B, K, 2] IoU by classification and by regression, 0..1
    offsets: Tensor  # [B, K, 4] start, end, centre, log width, relative to the length
    boundary: Tensor  # [B, K, 2] probability that start and end are ones of an action


# --- targets -----------------------------------------------------------------------------------


class EtadTargets(NamedTuple):
    """What a batch should have said."""

    boundary: Tensor  # [B, 2, T] startness and endness, 0..1
    matched: Tensor  # [B, K, 2] ground truth of each initial proposal, the same in all stages


def boundary_targets(truths: Tensor, length: int, per_unit: float) -> Tensor:
    """Startness and endness of every snippet, [2, T].

    A boundary is a region three snippets wide; a snippet's value is the share of it inside the
    best region.

    Args:
        truths: [G, 2]; per_unit: snippets in one unit of theirs.
    """
    cell = 1 / per_unit
    edges = torch.arange(length, device=truths.device, dtype=torch.float64) * cell  # [T]
    at = truths.double().T[:, :, None]  # [2, G, 1]
    left = torch.maximum(at - 1.5 * cell, edges)
    right = torch.minimum(at + 1.5 * cell, edges + cell)
    shares = (right - left).clamp(min=0) / (cell + EPS)  # [2, G, T]
    if len(truths) == 0:
        return torch.zeros(2, length, device=truths.device)
    return shares.amax(1).float()


def tiou(first: Tensor, second: Tensor, *, add: float = 0.0, least: float | None = None) -> Tensor:
    """tIoU of segments [..., 2] that broadcast; `add` to the union, or hold it at `least`."""
    left = torch.maximum(first[..., 0], second[..., 0])
    right = torch.minimum(first[..., 1], second[..., 1])
    shared = (right - left).clamp(min=0)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - shared + add
    if least is not None:
        union = union.clamp(min=least)
    return torch.where(union == 0, 0.0, shared / union)


def matched_truths(overlaps: Tensor, truths: Tensor) -> Tensor:
    """Ground truth of the highest overlap [K, G], ties first; [K, 2], zeros without any."""
    if len(truths) == 0:
        return overlaps.new_zeros(len(overlaps), 2)
    return truths[overlaps.argmax(1)]


def offset_targets(proposals: Tensor, truths: Tensor) -> Tensor:
    """Start, end, centre and log width that lead to the ground truth, [..., 2] -> [..., 4]."""
    length = (proposals[..., 1] - proposals[..., 0]).clamp(min=EPS)
    start = (truths[..., 0] - proposals[..., 0]) / length
    end = (truths[..., 1] - proposals[..., 1]) / length
    width = ((truths[..., 1] - truths[..., 0]) / length + EPS).log()
    return torch.stack((start, end, (start + end) / 2, width), dim=-1)


def boundary_classes(proposals: Tensor, boundary: Tensor, per_unit: float) -> Tensor:
    """Startness at each start and endness at each end, [B, K, 2], [B, 2, T] -> [B, K, 2]."""
    index = (proposals * per_unit).long().clamp(0, boundary.shape[2] - 1)  # truncated
    return boundary.gather(2, index.transpose(1, 2)).transpose(1, 2)


# --- losses (App. A.3) -------------------------------------------------------------------------


def balanced_loss(errors: Tensor, positive: Tensor) -> Tensor:
    """Eq. 2 as a mean: positives and negatives weigh the same in all; either may be missing."""
    count, n_pos = positive.numel(), int(positive.sum())
    if n_pos in (0, count):
        return errors.mean()
    weight = torch.where(positive, count / (2 * n_pos), count / (2 * (count - n_pos)))
    return (weight * errors).mean()


def sampled_bce(p: Tensor, positive: Tensor, draw: Draw) -> Tensor:
    """Cross entropy of all positives and about as many random negatives, [N].

    Without positives all negatives count and nothing is drawn. With more positives than
    negatives every element, positives too, enters the negative term, as in the release.
    """
    miss = -(1 - p + EPS).log()
    n_pos = positive.sum()
    if n_pos == 0:
        return miss.mean()
    chosen = _chosen(~positive, n_pos, draw)
    hit = -(p + EPS).log()
    return ((hit * positive).sum() + (miss * chosen).sum()) / (n_pos + chosen.sum())


def sampled_mse(p: Tensor, target: Tensor, draw: Draw) -> Tensor:
    """Squared error of the IoU, with as many middle and low targets as high ones, [N]."""
    high = target > HIGH_TIOU
    middle = (target > MIDDLE_TIOU) & ~high
    errors = (p - target).square()
    n_high = high.sum()
    if n_high == 0:
        return errors.mean()
    weight = high.float() + _chosen(middle, n_high, draw).float()
    weight = weight + _chosen(target <= MIDDLE_TIOU, n_high, draw).float()
    return (weight * errors).sum() / weight.sum()


def _chosen(group: Tensor, wanted: Tensor, draw: Draw) -> Tensor:
    """Each member of the group [N] with probability wanted / size; everyone if that is above 1."""
    noise = draw(len(group)).to(group.device) * group
    return noise > 1 - wanted.float() / group.float().sum()


def stage_terms(
    stage: StageOutputs,
    targets: EtadTargets,
    overlaps: Tensor,
    *,
    per_unit: float,
    stage_tiou: float,
    positive_tiou: float,
    draw: Draw,
) -> dict[str, Tensor]:
    """The terms of one stage without weights, in the order in which they draw.

    Args:
        overlaps: [B, K] tIoU of the stage's proposals with their ground truth.
        per_unit: snippets in one unit of the proposals.
    """
    target = overlaps.flatten()  # [N]
    iou = stage.iou.flatten(0, 1)  # [N, 2]
    terms = {
        "iou_cls": sampled_bce(iou[:, 0], target > positive_tiou, draw),
        "iou_reg": sampled_mse(iou[:, 1], target, draw),
    }
    wanted = offset_targets(stage.proposals, targets.matched).flatten(0, 1)  # [N, 4]
    errors = F.smooth_l1_loss(stage.offsets.flatten(0, 1), wanted, reduction="none")
    used = target > stage_tiou
    # `where` and not a product: rows that do not count may hold an infinite width.
    sums = torch.where(used[:, None], errors, 0.0).sum(0) / used.sum().clamp(min=1)
    terms |= dict(zip(("start", "end", "centre", "width"), sums, strict=True))
    classes = boundary_classes(stage.proposals, targets.boundary, per_unit) > POSITIVE_SNIPPET
    for side, name in enumerate(("start_class", "end_class")):
        predicted = stage.boundary[..., side].flatten()
        terms[name] = sampled_bce(predicted, classes[..., side].flatten(), draw)
    return terms


def stage_loss(terms: Mapping[str, Tensor], cls: float, reg: float, offset: float) -> Tensor:
    """Weighted sum of the terms of one stage (Eq. 1, weights of the release)."""
    offsets = terms["start"] + terms["end"] + terms["centre"] + terms["width"]
    classes = terms["start_class"] + terms["end_class"]
    return (
        cls * terms["iou_cls"]
        + reg * terms["iou_reg"]
        + offset * offsets
        + PROPOSAL_BOUNDARY_WEIGHT * classes
    )


def uniform_draw(generator: Generator | None, device: torch.device) -> Draw:
    """Uniform noise from a generator, or from torch's default one of the device."""
    source = device if generator is None else generator.device
    return lambda count: torch.rand(count, generator=generator, device=source)
