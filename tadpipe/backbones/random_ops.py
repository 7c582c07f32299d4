"""Picture operations that random augmentation draws from, in plain torch.

After RandAugment (Cubuk et al., 2020) with the strengths of its ImageNet policy at magnitude 10.
Every operation takes values 0..1 [T, 3, H, W] and a strength in [-1, 1] and treats all frames
alike; what a frame becomes may depend on all frames only through the strength.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
GREY = 0.5  # what comes in from outside the picture
MOST_ROTATION_DEG = 30.0
MOST_SHEAR = 0.3
MOST_SHIFT = 0.45  # of the side
MOST_CHANGE = 0.9  # of brightness, contrast, saturation and sharpness
LEVELS = 256


def grey(pixels: Tensor) -> Tensor:
    """Brightness of each pixel, [T, 1, H, W]."""
    weights = torch.tensor(LUMA, device=pixels.device)[:, None, None]
    return (pixels * weights).sum(dim=1, keepdim=True)


def with_contrast(pixels: Tensor, factor: float) -> Tensor:
    """Distances from the frame's mean brightness times `factor`."""
    mean = grey(pixels).mean(dim=(2, 3), keepdim=True)
    return mean + (pixels - mean) * factor


def with_saturation(pixels: Tensor, factor: float) -> Tensor:
    """Distances from grey times `factor`."""
    plain = grey(pixels)
    return plain + (pixels - plain) * factor


def hue_turned(pixels: Tensor, turns: float) -> Tensor:
    """Colours turned about the grey axis, brightness kept (the YIQ rotation)."""
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
        dtype=torch.float64,
    )
    angle = 2 * math.pi * turns
    turn = torch.tensor(
        [
            [1.0, 0.0, 0.0],
            [0.0, math.cos(angle), -math.sin(angle)],
            [0.0, math.sin(angle), math.cos(angle)],
        ],
        dtype=torch.float64,
    )
    matrix = (torch.linalg.inv(to_yiq) @ turn @ to_yiq).float().to(pixels.device)
    return torch.einsum("ij,tjhw->tihw", matrix, pixels)


def _affine(pixels: Tensor, matrix: list[list[float]]) -> Tensor:
    """Sample at matrix * position, positions from -1 to 1 over the picture."""
    theta = torch.tensor(matrix, device=pixels.device).expand(len(pixels), 2, 3)
    places = nnf.affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = nnf.grid_sample(pixels - GREY, places, mode="bilinear", align_corners=False)
    return moved + GREY


def _rotate(pixels: Tensor, strength: float) -> Tensor:
    angle = math.radians(MOST_ROTATION_DEG * strength)
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(pixels, [[cos, -sin, 0.0], [sin, cos, 0.0]])


def _auto_contrast(pixels: Tensor, _strength: float) -> Tensor:
    low = pixels.amin(dim=(2, 3), keepdim=True)
    high = pixels.amax(dim=(2, 3), keepdim=True)
    stretched = (pixels - low) / (high - low).clamp(min=1 / LEVELS)
    return torch.where(high > low, stretched, pixels)


def _equalize(pixels: Tensor, _strength: float) -> Tensor:
    """Each colour's values spread evenly, frame by frame."""
    levels = (pixels * (LEVELS - 1) + 0.5).long().flatten(2)  # [T, 3, HW]
    ones = torch.ones_like(levels, dtype=torch.float32)
    counts = torch.zeros(*levels.shape[:2], LEVELS, device=pixels.device)
    below = counts.scatter_add(2, levels, ones).cumsum(dim=2)  # [T, 3, 256]
    first = below.gather(2, levels.amin(dim=2, keepdim=True))
    spread = (below - first) / (below[..., -1:] - first).clamp(min=1)
    return spread.gather(2, levels).view_as(pixels)


def _posterize(pixels: Tensor, strength: float) -> Tensor:
    """8 bits down to 4."""
    step = 2.0 ** round(4 * abs(strength))
    return (pixels * (LEVELS - 1) / step).floor() * step / (LEVELS - 1)


def _solarize(pixels: Tensor, strength: float) -> Tensor:
    """Values above a threshold inverted."""
    return torch.where(pixels < 1 - abs(strength), pixels, 1 - pixels)


def _sharpness(pixels: Tensor, strength: float) -> Tensor:
    kernel = torch.ones(3, 1, 3, 3, device=pixels.device)
    kernel[:, :, 1, 1] = 5
    padded = nnf.pad(pixels, (1, 1, 1, 1), mode="replicate")
    smooth = nnf.conv2d(padded, kernel / 13, groups=3)
    return smooth + (pixels - smooth) * (1 + MOST_CHANGE * strength)


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda pixels, _strength: pixels,
    "auto-contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "posterize": _posterize,
    "saturation": lambda pixels, s: with_saturation(pixels, 1 + MOST_CHANGE * s),
    "contrast": lambda pixels, s: with_contrast(pixels, 1 + MOST_CHANGE * s),
    "brightness": lambda pixels, s: pixels * (1 + MOST_CHANGE * s),
    "sharpness": _sharpness,
    "shear-x": lambda pixels, s: _affine(pixels, [[1.0, MOST_SHEAR * s, 0.0], [0.0, 1.0, 0.0]]),
    "shear-y": lambda pixels, s: _affine(pixels, [[1.0, 0.0, 0.0], [MOST_SHEAR * s, 1.0, 0.0]]),
    "shift-x": lambda pixels, s: _affine(pixels, [[1.0, 0.0, MOST_SHIFT * s], [0.0, 1.0, 0.0]]),
    "shift-y": lambda pixels, s: _affine(pixels, [[1.0, 0.0, 0.0], [0.0, 1.0, MOST_SHIFT * s]]),
}
