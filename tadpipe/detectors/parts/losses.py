"""Losses of anchor-free detectors; element-wise, summed and weighted by the detector.

Order: sigmoid_focal_loss, smooth_labels (classes) -> offset_iou, giou_loss, diou_loss (segments
that share the point they are measured from) -> regression_weight, weighted, LossNormalizer.
Shapes: P positives; offsets [P, 2] are distances to start and end, >= 0.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al., 2017) with targets in [0, 1], element-wise."""
    logits = _single_or_double(logits)
    prob = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    prob_true = prob * targets + (1 - prob) * (1 - targets)
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * (1 - prob_true) ** gamma * cross_entropy


def smooth_labels(targets: Tensor, smoothing: float) -> Tensor:
    """Multi-hot targets [..., K] -> y (1 - e) + e / (K + 1)."""
    if smoothing == 0:
        return targets
    return targets * (1 - smoothing) + smoothing / (targets.shape[-1] + 1)


def offset_iou(pred: Tensor, target: Tensor) -> Tensor:
    """tIoU of segments around one point, [P, 2], [P, 2] -> [P]."""
    shared, united, _ = _extents(_single_or_double(pred), target)
    return shared / united.clamp(min=EPS)


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., 2019), [P, 2], [P, 2] -> [P].

    Segments around one point always touch, so the enclosing segment is their union but for
    offsets below 0.
    """
    shared, united, enclosing = _extents(_single_or_double(pred), target)
    gap = (enclosing - united) / enclosing.clamp(min=EPS)
    return 1 - shared / united.clamp(min=EPS) + gap


def diou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - DIoU (Zheng et al., 2020), [P, 2], [P, 2] -> [P]."""
    pred = _single_or_double(pred)
    shared, united, enclosing = _extents(pred, target)
    # Distance of the two centres, (right - left) / 2 each.
    centre_gap = 0.5 * (pred[:, 1] - pred[:, 0] - target[:, 1] + target[:, 0])
    penalty = (centre_gap / enclosing.clamp(min=EPS)) ** 2
    return 1 - shared / united.clamp(min=EPS) + penalty


def regression_weight(loss_weight: float, cls_loss: Tensor, reg_loss: Tensor) -> Tensor | float:
    """Weight of the regression loss; a weight <= 0 balances it with the classification loss."""
    if loss_weight > 0:
        return loss_weight
    return cls_loss.detach() / reg_loss.detach().clamp(min=0.01)


def weighted(cls_loss: Tensor, reg_loss: Tensor, loss_weight: float) -> dict[str, Tensor]:
    """The two terms of a one-stage detector by name, see regression_weight."""
    weight = regression_weight(loss_weight, cls_loss, reg_loss)
    return {"cls": cls_loss, "reg": reg_loss * weight}


class LossNormalizer:
    """Moving average of the number of positives, by which the losses are divided."""

    def __init__(self, value: float, momentum: float = 0.9) -> None:
        self.value = float(value)
        self.momentum = momentum

    def update(self, num_positives: int) -> float:
        """Take in one training batch and return the divisor for it.

        Of a batch that several processes share, all positives count, and each process divides by
        its part of them.
        """
        processes = 1
        if dist.is_available() and dist.is_initialized():
            processes, place = dist.get_world_size(), dist.get_backend()
            counted = torch.tensor(num_positives, device="cuda" if place == "nccl" else "cpu")
            dist.all_reduce(counted)
            num_positives = int(counted)
        self.value = self.momentum * self.value + (1 - self.momentum) * max(num_positives, 1)
        return self.value / processes

    def state(self) -> dict[str, float]:
        """What `load` takes back: a detector's loss state."""
        return {"loss_norm": self.value}

    def load(self, state: dict[str, float]) -> None:
        """Take back what `state` gave."""
        self.value = float(state["loss_norm"])


def _extents(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of intersection, union and enclosing segment, [P] each."""
    shared = torch.minimum(pred, target).sum(-1)
    united = pred.sum(-1) + target.sum(-1) - shared
    enclosing = torch.maximum(pred, target).sum(-1)
    return shared, united, enclosing


def _single_or_double(x: Tensor) -> Tensor:
    """Half precision is too coarse for a loss; double stays double."""
    return x if x.dtype == torch.float64 else x.float()
