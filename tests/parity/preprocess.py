"""Cases of the kind `preprocess`: one set of frames through each resize rule."""

from __future__ import annotations

import torch

from tadpipe.backbones.pixel_recipes import IMAGENET_MEAN, IMAGENET_STD
from tadpipe.backbones.pixels import centre_crop, prepare, resize_uint8, resized_shape
from tadpipe.config import PixelRecipe
from tests.parity.case import Case

FLOAT_ROUNDING = 1e-6  # of values up to about 3


def run(case: Case) -> None:
    frames = case.tensor("frames")
    size = int(case.config["config"]["size"])
    tolerance = float(case.config["tolerance"]["videomaev2"])

    squash = PixelRecipe(size=size, resize="squash", interpolation="float-bilinear")
    case.check("videomaev2", channels_first(prepare(frames, squash, "cpu")), atol=tolerance)

    short_side = PixelRecipe(
        size=size,
        resize="short-side",
        interpolation="uint8-bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    height, width = resized_shape(frames.shape[1], frames.shape[2], short_side)
    case.compare("resized_wh", [width, height], case.config["config"]["resized_wh"])
    resized = resize_uint8(frames, (height, width)).permute(0, 3, 1, 2)
    case.check("mm_crop_uint8", centre_crop(resized, size).permute(0, 2, 3, 1))
    normalised = channels_first(prepare(frames, short_side, "cpu"))
    case.check("mm_normalised", normalised, atol=FLOAT_ROUNDING, rtol=FLOAT_ROUNDING)
    case.check("mm_resize_square_uint8", resize_uint8(frames, (size, size)))


def channels_first(pixels: torch.Tensor) -> torch.Tensor:
    """[T, 3, S, S] -> [3, T, S, S]."""
    return pixels.transpose(0, 1)
