"""Which ground-truth action each point of the pyramid answers for.

Shapes: B batch, N points of all levels (fine to coarse), G ground truths, K classes, P positives.
Source: ActionFormer (Zhang et al., ECCV 2022), Sec. 3.3; centre sampling as in FCOS. All in
float32: points, ranges and centres meet exactly on their limits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tadpipe.detectors.protocol import AnchorFreeOutputs, Targets

SAME_LENGTH_GRID = 1e-3  # durations this close count as equally short


class Assignment(NamedTuple):
    """What every point of a batch should predict."""

    classes: Tensor  # [B, N, K] float32 multi-hot; all zero = background
    offsets: Tensor  # [B, N, 2] to start and end in strides of the level; arbitrary on background
    instances: Tensor  # [B, N] int64 row of the ground truth that gives the offsets, -1 = none


class PositivePairs(NamedTuple):
    """The positive points of a batch, or its positive (point, class) pairs; row-major order."""

    sequence: Tensor  # [P] int64
    point: Tensor  # [P] int64
    label: Tensor  # [P] int64; of a point with several classes that is positive once, the first


def assign(
    points: Tensor, targets: Targets, num_classes: int, *, centre_radius: float
) -> Assignment:
    """Label the points of a batch, padded ones too.

    Args:
        points: [N, 4] of all levels.
        centre_radius: a point must lie this close to the action's centre, in strides of its level,
            and inside the action; 0 = anywhere inside.
    """
    sequences = [
        _assign_one(points, segments, labels, num_classes, centre_radius)
        for segments, labels in zip(targets.segments, targets.labels, strict=True)
    ]
    return Assignment(*(torch.stack(values) for values in zip(*sequences, strict=True)))


def assign_outputs(
    outputs: AnchorFreeOutputs, targets: Targets, num_classes: int, *, centre_radius: float
) -> tuple[Assignment, Tensor]:
    """Label the points of all levels, see assign; also the real ones, [B, N]."""
    points = torch.cat(outputs.points)
    assigned = assign(points, targets, num_classes, centre_radius=centre_radius)
    return assigned, torch.cat(outputs.masks, dim=1)


def positive_mask(assigned: Assignment, mask: Tensor) -> Tensor:
    """Real points with at least one class, [B, N]; the loss normaliser counts these."""
    return assigned.classes.sum(-1).gt(0) & mask


def positives(assigned: Assignment, mask: Tensor, *, per_class: bool) -> PositivePairs:
    """What regression is trained on.

    Args:
        mask: [B, N] real points.
        per_class: one entry per (point, class) instead of one per point.
    """
    if per_class:
        positive = (assigned.classes > 0) & mask[..., None]  # [B, N, K]
        return PositivePairs(*torch.nonzero(positive, as_tuple=True))
    sequence, point = torch.nonzero(positive_mask(assigned, mask), as_tuple=True)
    return PositivePairs(sequence, point, assigned.classes[sequence, point].argmax(-1))


def offsets_at(offsets: Tensor, pairs: PositivePairs) -> Tensor:
    """Pick predicted offsets, [B, N, 1 or K, 2] -> [P, 2]; a single column serves all classes."""
    column = pairs.label if offsets.shape[2] > 1 else torch.zeros_like(pairs.label)
    return offsets[pairs.sequence, pairs.point, column]


def _assign_one(
    points: Tensor, segments: Tensor, labels: Tensor, num_classes: int, centre_radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One sequence: classes [N, K], offsets [N, 2], instances [N]."""
    count = len(points)
    if len(segments) == 0:
        return (
            points.new_zeros(count, num_classes),
            points.new_zeros(count, 2),
            torch.full((count,), -1, device=points.device),
        )
    position, low, high, stride = (column[:, None] for column in points.unbind(1))  # [N, 1]
    start, end = segments[:, 0], segments[:, 1]  # [G]
    left, right = position - start, end - position  # [N, G]
    if centre_radius > 0:
        centre, reach = 0.5 * (start + end), stride * centre_radius
        inside = (position - torch.maximum(centre - reach, start) > 0) & (
            torch.minimum(centre + reach, end) - position > 0
        )
    else:
        inside = (left > 0) & (right > 0)
    farther = torch.maximum(left, right)
    passing = inside & (farther >= low) & (farther <= high)
    # The shortest passing action wins; those as short add their classes.
    duration = torch.where(passing, end - start, torch.inf)  # [N, G]
    shortest = duration.min(dim=1, keepdim=True).values
    first = (duration == shortest).to(torch.uint8).argmax(dim=1)  # first of equals
    merged = passing & (duration <= shortest + SAME_LENGTH_GRID)
    classes = points.new_zeros(count, num_classes)
    classes.index_add_(1, labels, merged.to(points.dtype)).clamp_(max=1)
    row = first[:, None]
    offsets = torch.cat((left.gather(1, row), right.gather(1, row)), dim=1) / stride
    return classes, offsets, torch.where(passing.any(1), first, -1)
