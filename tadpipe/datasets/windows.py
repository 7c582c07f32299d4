"""From stored features and annotations to the windows a detector trains on.

Order: truncate (random window or crop, ActionFormer's rule).
Shapes: C channels, T grid length, G ground-truth actions. Positions are in grid steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MAX_TRIALS = 200  # draws of a window before one without any action is accepted

Draw = Callable[[int, int], int]  # (low, high) -> whole number, both ends included


def truncate(
    feats: Tensor,
    segments: Tensor,
    labels: Tensor,
    *,
    max_len: int,
    keep_ratio: float,
    crop_ratio: tuple[float, float] | None,
    offset_grid: float,
    draw: Draw,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a random window out of a video that is too long, or crop one that is not.

    Args:
        feats: [C, T]; segments: [G, 2]; labels: [G].
        max_len: longest window.
        keep_ratio: share of an action that must lie in the window for it to be kept, clipped.
        crop_ratio: range of the share of T kept when T <= max_len; None = no crop.
        offset_grid: how far an action may reach over the window's ends: half a clip for
            ActionFormer, 0 for TriDet.
        draw: uniform whole numbers; the crop's length first (if T <= max_len), then one window
            start per trial.
    Returns:
        Views of the features, [C, L], and the kept actions relative to the window.
    """
    total = feats.shape[-1]
    length = max_len
    if total <= max_len:
        if crop_ratio is None:
            return feats, segments, labels
        low, high = crop_ratio
        length = draw(max(round(low * total), 1), min(round(high * total), total))
        if length == total:
            return feats, segments, labels
    start, kept, clipped = 0, torch.zeros(0, dtype=torch.bool), segments
    for _ in range(MAX_TRIALS):
        start = draw(0, total - length)
        left = segments[:, 0].clamp(min=start - offset_grid)
        right = segments[:, 1].clamp(max=start + length + offset_grid)
        inside = (right - left).clamp(min=0)
        kept = inside / (segments[:, 1] - segments[:, 0]).abs() >= keep_ratio
        clipped = torch.stack((left, right), dim=1) - start
        if bool(kept.any()) or len(segments) == 0:
            break
    return feats[:, start : start + length], clipped[kept], labels[kept]
