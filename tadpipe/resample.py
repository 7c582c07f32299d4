"""Resampling on the feature grid.

Shapes: C channels, T length. Only torch; used by datasets, detectors and backbones.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tadpipe.errors import ConfigError


def resize_linear(feats: Tensor, length_grid: int) -> Tensor:
    """Linearly resize the last axis, [..., C, T] -> [..., C, length_grid].

    Rows are taken as cells (`align_corners` false): both axes span the same extent, so new row i
    sits at old position (i + 0.5) * T / length_grid - 0.5, held inside [0, T - 1].

    Raises:
        ConfigError: nothing to resize from, or a length below 1.
    """
    if length_grid < 1 or feats.shape[-1] < 1:
        raise ConfigError(
            "Features of length 0 cannot be resized.",
            f"from {feats.shape[-1]} to {length_grid} rows",
            "Leave the video out or extract it again.",
        )
    if feats.shape[-1] == length_grid:
        return feats
    flat = feats.reshape(-1, *feats.shape[-2:]) if feats.dim() != 3 else feats
    resized = F.interpolate(flat, size=length_grid, mode="linear", align_corners=False)
    return resized.reshape(*feats.shape[:-1], length_grid)
