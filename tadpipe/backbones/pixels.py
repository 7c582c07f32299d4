"""Decoded frames to the pixels a backbone sees, on any device, frame by frame.

The frames are the batch axis of every operation, so that a frame's bits never depend on how many
frames come with it. `uint8-bilinear` is OpenCV's integer arithmetic, bit for bit, without OpenCV.
Shapes: T frames, H x W decoded pixels, h x w resized pixels, S side of the prepared picture.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as nnf
from torch import Tensor

from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError

WEIGHT_ONE = 2048  # OpenCV's bilinear weights are integers with 11 fractional bits
CACHED_FRAMES = 2  # prepared together on a CPU: more leave its caches (five times as slow)


def prepare(frames: Tensor, recipe: PixelRecipe, device: str | torch.device) -> Tensor:
    """Resize, crop and normalise frames as a backbone expects them.

    Args:
        frames: uint8 [T, H, W, 3] RGB, or [T, H, W, 2] where the recipe is one of optical flow.
        device: where to compute; the frames are moved there as uint8.
    Returns:
        float32 [T, 3 or 2, S, S]. A frame's bits do not depend on T.
    Raises:
        ConfigError: frames of another shape or type.
    """
    channels = recipe.channels
    if frames.ndim != 4 or frames.shape[3] != channels or frames.dtype != torch.uint8:
        raise ConfigError(
            f"Frames must be uint8 [T, H, W, {channels}].",
            f"got {frames.dtype} {list(frames.shape)}",
        )
    frames = frames.to(device, non_blocking=True)  # at once unless they are in pinned memory
    if frames.is_cuda or len(frames) <= CACHED_FRAMES:
        return _prepared(frames, recipe)
    return torch.cat([_prepared(part, recipe) for part in frames.split(CACHED_FRAMES)])


def _prepared(frames: Tensor, recipe: PixelRecipe) -> Tensor:
    """`prepare`, on the device that the frames are on."""
    if recipe.colour == "bgr":
        frames = frames.flip(3)
    size = resized_shape(frames.shape[1], frames.shape[2], recipe)
    if recipe.interpolation == "uint8-bilinear":
        pixels = resize_uint8(frames, size, crop=recipe.size).permute(0, 3, 1, 2).float()
        full_scale = 255.0
    else:
        # [T, C, H, W] with the colours side by side in memory, as they come: 10 times faster to
        # make, 2 to 5 times faster to resize, same bits.
        planes = frames.float().div_(255.0).permute(0, 3, 1, 2)
        antialias = recipe.interpolation == "antialias-bilinear"
        first = recipe.resize == "short-side-floor"
        pixels = resize_float(planes, size, antialias=antialias)
        pixels = centre_crop(pixels, recipe.size, larger_margin_first=first)
        full_scale = 1.0
    if recipe.mean:
        mean = torch.tensor(recipe.mean, dtype=torch.float64, device=frames.device) * full_scale
        std = torch.tensor(recipe.std, dtype=torch.float64, device=frames.device) * full_scale
        pixels = (pixels - mean.float()[:, None, None]).div_(std.float()[:, None, None])
    elif full_scale != 1.0:
        pixels = pixels / full_scale
    return pixels.contiguous()


def resized_shape(height: int, width: int, recipe: PixelRecipe) -> tuple[int, int]:
    """Height and width after the resize, before the crop."""
    if recipe.resize == "squash":
        return recipe.size, recipe.size
    if recipe.resize == "fixed":
        return recipe.resize_to[0], recipe.resize_to[1]
    side = recipe.resize_short_side or recipe.size
    if recipe.resize == "short-side-floor":
        long_side = math.floor(max(height, width) / min(height, width) * side)
        return (side, long_side) if height <= width else (long_side, side)
    factor = side / min(height, width)
    if recipe.resize == "enlarge" and factor <= 1:
        return height, width
    return int(height * factor + 0.5), int(width * factor + 0.5)


def centre_crop(pixels: Tensor, side: int, *, larger_margin_first: bool = False) -> Tensor:
    """[..., h, w] -> [..., side, side].

    Args:
        larger_margin_first: an odd margin is larger at the top and left, else at the other end.
    """
    more = int(larger_margin_first)
    top, left = (pixels.shape[-2] - side + more) // 2, (pixels.shape[-1] - side + more) // 2
    return pixels[..., top : top + side, left : left + side]


def resize_float(planes: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    """float32 [T, C, H, W] -> [T, C, h, w], bilinear between pixel centres.

    Args:
        antialias: whether the filter widens with the factor by which a picture shrinks.
    """
    return nnf.interpolate(
        planes, size=size, mode="bilinear", align_corners=False, antialias=antialias
    )


def resize_uint8(frames: Tensor, size: tuple[int, int], crop: int | None = None) -> Tensor:
    """uint8 [T, H, W, C] -> uint8 [T, h, w, C] with the integer arithmetic of OpenCV.

    Horizontally exact products; vertically two separate shifts of 4 and 16 bits and a rounding
    shift of 2, as OpenCV's fixed-point code does: rounding the exact product would differ.

    Args:
        crop: side of the centre crop, of which alone the pixels are computed.
    """
    columns = axis_weights(frames.shape[2], size[1], clamp=True)
    rows = axis_weights(frames.shape[1], size[0], clamp=False)
    left, right, left_weight, right_weight = _central(columns, crop, frames.device)
    top, bottom, top_weight, bottom_weight = _central(rows, crop, frames.device)
    source = frames.permute(2, 0, 3, 1).contiguous()  # [W, T, C, H]: whole columns are gathered
    across = source.index_select(0, left).int().mul_(left_weight)
    across.addcmul_(source.index_select(0, right).int(), right_weight)
    across >>= 4  # [w, T, C, H]
    across = across.permute(3, 1, 2, 0).contiguous()  # [H, T, C, w]
    upper = across.index_select(0, top).mul_(top_weight)
    lower = across.index_select(0, bottom).mul_(bottom_weight)
    upper >>= 16
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper.to(torch.uint8).permute(1, 0, 3, 2)


def _central(
    axis: tuple[Tensor, Tensor, Tensor, Tensor], crop: int | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The positions [n] and weights [n, 1, 1, 1] of an axis that a centre crop keeps."""
    first, second, first_weight, second_weight = axis
    start = 0 if crop is None else (len(first) - crop) // 2
    kept = slice(start, None if crop is None else start + crop)
    return (
        first[kept].to(device),
        second[kept].to(device),
        first_weight[kept, None, None, None].to(device),
        second_weight[kept, None, None, None].to(device),
    )


@lru_cache(maxsize=64)
def axis_weights(length: int, target: int, *, clamp: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source positions and integer weights of one axis resized from `length` to `target`.

    Args:
        clamp: whether positions beyond the border get the whole weight of the border pixel
            (OpenCV does so for columns and keeps the fraction for rows).
    Returns:
        First and second source index, int64 [target]; their weights, int32 [target].
    """
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * length / target - 0.5
    position = centre.float()
    first = position.floor()
    fraction = position - first
    if clamp:
        fraction[(first < 0) | (first >= length - 1)] = 0.0
    second_weight = (fraction * WEIGHT_ONE).round().int()
    first_weight = ((1.0 - fraction) * WEIGHT_ONE).round().int()
    index = first.long()
    return (
        index.clamp(0, length - 1),
        (index + 1).clamp(0, length - 1),
        first_weight,
        second_weight,
    )
