"""Augmentation of decoded frames, the same for all frames of a window (AdaTAD, Sec. 4.1 recipe).

Order: AugmentConfig -> draw_augmentation (all random choices, from one generator) -> Augmentation,
whose `apply` works on the frames' own device. Mirror and light are also those of pretraining.
Frames stay uint8 between decoding and normalisation, as in the released recipes.
Shapes: T frames, h x w decoded pixels at the stored size, S side of the backbone's picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from tadpipe.backbones.pixels import resized_shape
from tadpipe.backbones.random_ops import OPERATIONS, hue_turned, with_contrast, with_saturation
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError

BLOCK_FRAMES = 64  # frames in float32 at once
SHORT_SIDE_SHARE = 182 / 160  # stored short side / picture, as in the release
CROP_TRIES = 10
WIDTH_AXIS, HEIGHT_AXIS = 3, 2  # of frames [T, 3, h, w]


@dataclass(frozen=True)
class AugmentConfig:
    """What varies from window to window; the defaults are AdaTAD's."""

    enabled: bool = True  # False: every window as in extraction
    short_side: int = 0  # pixels kept of a frame's short side; 0 = 182/160 of the picture
    crop_area: tuple[float, ...] = (0.08, 1.0)  # share of the frame that is cut out; () = no crop
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)  # width / height of the cut-out
    shift_pixels: int = 0  # without a crop: the picture moves by up to this many pixels
    flip: bool = True  # mirror left and right, half of the windows
    flip_vertical: bool = False  # mirror top and bottom; only where no class mirrors into another
    reverse: bool = False  # play backwards; only where no class turns into another
    random_ops: int = 2  # operations drawn as in RandAugment; 0 = none
    random_magnitude: float = 9.0  # of those, out of 10
    brightness: float = 0.5  # factors vary in [1 - x, 1 + x]
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1  # turns of the colour circle, at most 0.5
    light: float = 0.0  # factor of each colour and a common offset vary by this share

    def __post_init__(self) -> None:
        area = self.crop_area
        if area and not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
            raise ConfigError(
                "crop_area is empty or two shares of the frame, in order.",
                f"crop_area = {list(area)}",
                "Example: crop_area = [0.08, 1.0]",
            )
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ConfigError(
                "crop_ratio is two positive numbers, in order.", f"{list(self.crop_ratio)}"
            )
        if not 0 <= self.random_magnitude <= 10 or not 0 <= self.hue <= 0.5:
            raise ConfigError(
                "random_magnitude lies in [0, 10] and hue in [0, 0.5].",
                f"random_magnitude = {self.random_magnitude}, hue = {self.hue}",
            )
        names = ("short_side", "shift_pixels", "random_ops")
        shares = ("brightness", "contrast", "saturation", "light")
        for name in (*names, *shares):
            if getattr(self, name) < 0 or (name in shares and getattr(self, name) > 1):
                raise ConfigError("Out of range.", f"augment.{name} = {getattr(self, name)}")

    def stored_short_side(self, size: int) -> int:
        """Short side at which frames are kept for pictures of side `size`."""
        return max(self.short_side or round(size * SHORT_SIDE_SHARE), size)


class Light(NamedTuple):
    """pixel -> pixel * factor + offset, on the 0..1 scale."""

    factor: Tensor  # [3]
    offset: float


class Jitter(NamedTuple):
    """Changes of colour, in this order."""

    brightness: float
    contrast: float
    saturation: float
    hue: float


class Augmentation(NamedTuple):
    """All choices for one window."""

    size: int  # S
    box: tuple[int, int, int, int]  # top, left, height, width of the cut-out; may reach outside
    mirrored: tuple[int, ...]  # axes of [T, 3, h, w]
    reverse: bool  # read by whoever chooses the frames
    operations: tuple[tuple[str, float], ...]  # names of OPERATIONS with their signed strength
    jitter: Jitter
    light: Light | None

    def apply(self, frames: Tensor) -> Tensor:
        """uint8 [T, 3, h, w] -> uint8 [T, 3, S, S], block by block."""
        return torch.cat([self._block(part) for part in frames.split(BLOCK_FRAMES)])

    def _block(self, frames: Tensor) -> Tensor:
        pixels = _cut(frames, self.box).float() / 255  # [T, 3, h', w']
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = nnf.interpolate(
                pixels, (self.size, self.size), mode="bilinear", align_corners=False
            )
        if self.mirrored:
            pixels = pixels.flip(self.mirrored)
        for name, strength in self.operations:
            pixels = OPERATIONS[name](pixels, strength).clamp(0, 1)
        pixels = _jittered(pixels, self.jitter)
        if self.light is not None:
            factor = self.light.factor.to(pixels.device)[:, None, None]
            pixels = pixels * factor + self.light.offset
        return (pixels.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def draw_augmentation(
    config: AugmentConfig, height: int, width: int, size: int, generator: Generator
) -> Augmentation:
    """Choose how a window of frames [T, 3, height, width] is changed.

    Args:
        size: S, side of the backbone's picture.
        generator: on the CPU; the same state gives the same choice.
    """
    if config.crop_area:
        box = random_box(config, height, width, generator)
    else:
        box = _shifted_square(height, width, config.shift_pixels, size, generator)
    wishes = ((HEIGHT_AXIS, config.flip_vertical), (WIDTH_AXIS, config.flip))
    mirrored = draw_axes(wishes, generator)
    reverse = config.reverse and uniform(generator) < 0.5
    names = tuple(OPERATIONS)
    operations = []
    for _ in range(config.random_ops):
        name = names[below(len(names), generator)]
        sign = 1.0 if uniform(generator) < 0.5 else -1.0
        operations.append((name, sign * config.random_magnitude / 10))
    shares = (config.brightness, config.contrast, config.saturation)
    brightness, contrast, saturation = (1 + x * (2 * uniform(generator) - 1) for x in shares)
    jitter = Jitter(brightness, contrast, saturation, config.hue * (2 * uniform(generator) - 1))
    light = draw_light(config.light, generator) if config.light else None
    return Augmentation(size, box, mirrored, reverse, tuple(operations), jitter, light)


def random_box(
    config: AugmentConfig, height: int, width: int, generator: Generator
) -> tuple[int, int, int, int]:
    """A cut-out of random area and ratio; after ten that do not fit, the largest in the middle."""
    low, high = (math.log(value) for value in config.crop_ratio)
    for _ in range(CROP_TRIES):
        share = config.crop_area[0] + uniform(generator) * (
            config.crop_area[1] - config.crop_area[0]
        )
        ratio = math.exp(low + uniform(generator) * (high - low))
        w = round(math.sqrt(height * width * share * ratio))
        h = round(math.sqrt(height * width * share / ratio))
        if 0 < w <= width and 0 < h <= height:
            return below(height - h + 1, generator), below(width - w + 1, generator), h, w
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_axes(wishes: Sequence[tuple[int, bool]], generator: Generator) -> tuple[int, ...]:
    """Each wanted axis with probability a half; (axis, wanted) pairs."""
    return tuple(axis for axis, wanted in wishes if wanted and uniform(generator) < 0.5)


def draw_light(share: float, generator: Generator) -> Light:
    """A factor for each colour and a common offset."""
    factor = 1 + share * (2 * torch.rand(3, generator=generator) - 1)
    return Light(factor, 0.5 * share * (2 * uniform(generator) - 1))


def uniform(generator: Generator) -> float:
    """A number in [0, 1)."""
    return float(torch.rand((), generator=generator))


def below(bound: int, generator: Generator) -> int:
    """A whole number in [0, bound)."""
    return int(torch.randint(bound, (), generator=generator))


def stored_shape(
    height: int, width: int, config: AugmentConfig, recipe: PixelRecipe
) -> tuple[int, int]:
    """Height and width at which frames are kept before `apply`."""
    if recipe.resize == "squash" and not config.crop_area:
        return recipe.size, recipe.size
    side = config.stored_short_side(recipe.size) if config.crop_area else recipe.size
    wanted = PixelRecipe(size=recipe.size, resize="short-side", resize_short_side=side)
    return resized_shape(height, width, wanted)


def _shifted_square(
    height: int, width: int, reach: int, size: int, generator: Generator
) -> tuple[int, int, int, int]:
    """The middle square of the picture's size, moved by up to `reach` pixels."""
    top, left = (height - size) // 2, (width - size) // 2
    if reach:
        top += below(2 * reach + 1, generator) - reach
        left += below(2 * reach + 1, generator) - reach
    return top, left, size, size


def _cut(frames: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The cut-out; where it reaches outside, the edge's own pixels are repeated."""
    top, left, height, width = box
    device = frames.device
    rows = torch.arange(top, top + height, device=device).clamp(0, frames.shape[2] - 1)
    columns = torch.arange(left, left + width, device=device).clamp(0, frames.shape[3] - 1)
    return frames[:, :, rows][:, :, :, columns]


def _jittered(pixels: Tensor, jitter: Jitter) -> Tensor:
    """Values 0..1 [T, 3, h, w]; steps that change nothing are left out."""
    steps: tuple[tuple[float, float, Callable[[Tensor, float], Tensor]], ...] = (
        (jitter.brightness, 1.0, lambda p, factor: p * factor),
        (jitter.contrast, 1.0, with_contrast),
        (jitter.saturation, 1.0, with_saturation),
        (jitter.hue, 0.0, hue_turned),
    )
    for value, rest, change in steps:
        if value != rest:
            pixels = change(pixels, value).clamp(0, 1)
    return pixels
