"""Frames to detector features: one window as a dense line (frame) or clip by clip (snippet).

AdaTAD (Liu et al., CVPR 2024), Sec. 3.2 and Table 1. `frame_features` cuts a long window into
clips that share nothing but their adapters, averages each time step over space and resizes the
line to the detector's grid; `snippet_features` makes one vector of each clip.
Shapes: B windows, T frames of a window, k clips of F frames each, C channels, M snippets.
"""

from __future__ import annotations

import torch.nn.functional as nnf
from torch import Tensor

from tadpipe.backbones.protocol import Backbone
from tadpipe.errors import ConfigError


def frame_features(
    backbone: Backbone, frames: Tensor, length_grid: int, mask: Tensor | None = None
) -> Tensor:
    """frames [B, 3, T, H, W] -> features [B, C, length_grid] float32.

    A backbone that takes a whole window at once has the window's length as `clip_len`.

    Args:
        frames: normalised pixels; T is a multiple of the backbone's `clip_len`.
        mask: [B, length_grid] bool; features of steps that are not valid become 0.
    Raises:
        ConfigError: T is no multiple of the clip length.
    """
    clips, clips_per_window = as_clips(frames, backbone.clip_len)
    maps = backbone.feature_map(clips, clips_per_window)  # [B*k, C, t, h, w]
    steps = maps.mean(dim=(3, 4))  # [B*k, C, t]
    line = steps.unflatten(0, (len(frames), clips_per_window))  # [B, k, C, t]
    line = line.transpose(1, 2).flatten(2)  # [B, C, k*t]
    if line.shape[2] != length_grid:
        line = nnf.interpolate(line, size=length_grid, mode="linear", align_corners=False)
    return masked(line.float(), mask)


def snippet_features(backbone: Backbone, clips: Tensor, mask: Tensor | None = None) -> Tensor:
    """clips [B, M, 3, F, H, W] -> features [B, C, M] float32, each clip on its own.

    Args:
        mask: [B, M] bool; features of snippets that are not valid become 0.
    """
    features = backbone(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])  # [B, M, C]
    return masked(features.transpose(1, 2).float(), mask)


def as_clips(frames: Tensor, clip_len: int) -> tuple[Tensor, int]:
    """Cut windows [B, 3, T, H, W] into clips [B*k, 3, F, H, W]; a window's clips are neighbours.

    Returns:
        The clips and k, the clips per window.
    Raises:
        ConfigError: T is no multiple of F.
    """
    count = frames.shape[2] // clip_len
    if count == 0 or frames.shape[2] % clip_len:
        raise ConfigError(
            "The frames of a window do not make whole clips.",
            f"{frames.shape[2]} frames, clips of {clip_len}",
            f"Use a window length that is a multiple of {clip_len}.",
        )
    clips = frames.unflatten(2, (count, clip_len)).transpose(1, 2)  # [B, k, 3, F, H, W]
    return clips.flatten(0, 1), count


def masked(features: Tensor, mask: Tensor | None) -> Tensor:
    """features [B, C, T] with 0 where mask [B, T] is False."""
    return features if mask is None else features * mask[:, None].to(features.dtype)
