"""From scores and offsets at the points of a pyramid to candidate segments.

Shapes: B batch, L levels of T_l points, K classes, N candidates. Positions are grid steps; offsets
are in strides of their level. Source: ActionFormer (Zhang et al., ECCV 2022), Sec. 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tadpipe.detectors.protocol import AnchorFreeOutputs, GridDetections
from tadpipe.errors import ConfigError


@dataclass(frozen=True)
class DecodeConfig:
    """Which points become candidates before NMS."""

    pre_nms_threshold: float = 0.001  # candidates score higher than this
    pre_nms_topk: int = 2000  # most candidates of one level
    min_length_grid: float = 0.05  # candidates are longer than this many grid steps

    def __post_init__(self) -> None:
        if self.pre_nms_topk < 1:
            raise ConfigError(
                "At least one candidate per level is needed.", f"pre_nms_topk = {self.pre_nms_topk}"
            )


@torch.no_grad()
def decode_levels(outputs: AnchorFreeOutputs, config: DecodeConfig) -> list[GridDetections]:
    """Candidates of each sequence: levels fine to coarse, by falling score within a level."""
    sequences = []
    for b in range(outputs.logits[0].shape[0]):
        levels = []
        for mask, points, logits, offsets in zip(*outputs, strict=True):
            scores = logits[b].float().sigmoid() * mask[b, :, None]  # [T_l, K]
            point, label, score = top_candidates(scores, config)  # [N] each
            column = label if offsets.shape[2] > 1 else torch.zeros_like(label)
            segments = to_segments(points[point], offsets[b, point, column].float())  # [N, 2]
            levels.append(drop_short(GridDetections(segments, score, label), config))
        sequences.append(join(levels))
    return sequences


def top_candidates(scores: Tensor, config: DecodeConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The best (point, class) pairs of one level.

    Args:
        scores: [T_l, K], zero at padded points.
    Returns:
        Point, class (int64 [N]) and score [N] by falling score, equal scores by point and class.
    """
    flat = scores.flatten()
    index = torch.nonzero(flat > config.pre_nms_threshold).squeeze(1)
    if len(index) > config.pre_nms_topk:  # a partial sort is cheaper than a full one
        least = flat[index].topk(config.pre_nms_topk, sorted=False).values.min()
        index = index[flat[index] >= least]
    values, order = flat[index].sort(descending=True, stable=True)
    index = index[order][: config.pre_nms_topk]
    values = values[: config.pre_nms_topk]
    classes = scores.shape[1]
    return torch.div(index, classes, rounding_mode="floor"), index % classes, values


def to_segments(points: Tensor, offsets: Tensor) -> Tensor:
    """Points [N, 4] and offsets [N, 2] in strides of their level -> segments [N, 2]."""
    position, stride = points[:, 0], points[:, 3]
    return torch.stack(
        (position - offsets[:, 0] * stride, position + offsets[:, 1] * stride), dim=1
    )


def drop_short(dets: GridDetections, config: DecodeConfig) -> GridDetections:
    """Leave out candidates that are not longer than `min_length_grid`."""
    keep = dets.segments[:, 1] - dets.segments[:, 0] > config.min_length_grid
    return GridDetections(*(value[keep] for value in dets))


def join(levels: list[GridDetections]) -> GridDetections:
    """The candidates of several levels or windows, one after the other."""
    return GridDetections(*(torch.cat(values) for values in zip(*levels, strict=True)))
