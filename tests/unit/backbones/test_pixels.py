"""Pixel recipes against integer and float64 arithmetic written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.backbones.pixels import prepare, resize_float, resize_uint8, resized_shape
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError


def frames(count: int = 5, height: int = 37, width: int = 53, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def fixed_point_axis(length: int, target: int, clamp: bool) -> list[tuple[int, int, int, int]]:
    """Per target pixel: first and second source index, first and second weight."""
    rows = []
    for i in range(target):
        f = np.float32((i + 0.5) * length / target - 0.5)
        p = math.floor(f)
        f = np.float32(f - np.float32(p))
        if clamp and (p < 0 or p >= length - 1):
            f = np.float32(0)
        w1, w0 = int(np.rint(f * 2048)), int(np.rint((np.float32(1) - f) * 2048))
        rows.append((min(max(p, 0), length - 1), min(max(p + 1, 0), length - 1), w0, w1))
    return rows


def resize_pixel_by_pixel(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """One channel [H, W] in plain Python integers."""
    columns = fixed_point_axis(picture.shape[1], width, clamp=True)
    lines = fixed_point_axis(picture.shape[0], height, clamp=False)
    out = np.zeros((height, width), dtype=np.uint8)
    for y, (top, bottom, v0, v1) in enumerate(lines):
        for x, (left, right, w0, w1) in enumerate(columns):
            upper = int(picture[top, left]) * w0 + int(picture[top, right]) * w1
            lower = int(picture[bottom, left]) * w0 + int(picture[bottom, right]) * w1
            out[y, x] = (((v0 * (upper >> 4)) >> 16) + ((v1 * (lower >> 4)) >> 16) + 2) >> 2
    return out


@pytest.mark.parametrize("size", [(20, 24), (37, 53), (61, 80), (1, 1)])
def test_uint8_resize_is_the_stated_integer_arithmetic(size: tuple[int, int]) -> None:
    source = frames(1)
    ours = resize_uint8(source, size)[0]
    for channel in range(3):
        expected = resize_pixel_by_pixel(source[0, :, :, channel].numpy(), *size)
        assert np.array_equal(ours[:, :, channel].numpy(), expected)


def test_uint8_resize_to_the_same_size_changes_nothing() -> None:
    source = frames()
    assert torch.equal(resize_uint8(source, (37, 53)), source)


def test_uint8_resize_works_from_a_single_row_or_column() -> None:
    thin = frames(2, height=1, width=1)
    assert torch.equal(resize_uint8(thin, (3, 4)), thin.expand(2, 3, 4, 3))


@pytest.mark.parametrize("name", PIXEL_RECIPES)
def test_bits_of_a_frame_do_not_depend_on_its_company(name: str) -> None:
    source = frames()[..., : PIXEL_RECIPES[name].channels]
    together = prepare(source, PIXEL_RECIPES[name], "cpu")
    for count in range(1, 6):
        assert torch.equal(prepare(source[:count], PIXEL_RECIPES[name], "cpu"), together[:count])
    alone = [prepare(source[i : i + 1], PIXEL_RECIPES[name], "cpu") for i in range(5)]
    assert torch.equal(torch.cat(alone), together)


def test_squash_ignores_the_aspect_and_keeps_values_between_0_and_1() -> None:
    pixels = prepare(frames(), PIXEL_RECIPES["videomaev2-tad"], "cpu")
    assert pixels.shape == (5, 3, 224, 224)
    assert pixels.dtype == torch.float32
    assert 0.0 <= float(pixels.min()) < 0.1
    assert 0.9 < float(pixels.max()) <= 1.0


def test_squash_is_bilinear_between_pixel_centres() -> None:
    source = torch.zeros(1, 1, 2, 3, dtype=torch.uint8)
    source[0, 0, 1] = 255
    recipe = PixelRecipe(size=4, resize="squash")
    expected = torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(3, 4, 4)
    assert torch.equal(prepare(source, recipe, "cpu")[0], expected)


def test_short_side_keeps_the_aspect_and_rounds_the_long_side_half_up() -> None:
    recipe = PixelRecipe(size=48, resize="short-side")
    assert resized_shape(90, 130, recipe) == (48, 69)
    assert resized_shape(130, 90, recipe) == (69, 48)
    taller = PixelRecipe(size=224, resize="short-side", resize_short_side=256)
    assert resized_shape(240, 320, taller) == (256, 341)
    assert prepare(frames(), taller, "cpu").shape == (5, 3, 224, 224)


def test_centre_crop_leaves_the_larger_margin_right_and_below() -> None:
    source = torch.zeros(1, 4, 7, 3, dtype=torch.uint8)
    source[0, :, 1:5] = 255  # (7 - 4) // 2 = 1
    recipe = PixelRecipe(size=4, resize="short-side", interpolation="uint8-bilinear")
    assert torch.equal(prepare(source, recipe, "cpu"), torch.ones(1, 3, 4, 4))


def test_normalisation_after_uint8_resize_uses_the_0_to_255_scale() -> None:
    source = frames(1, 48, 48)
    recipe = PixelRecipe(
        size=48,
        resize="short-side",
        interpolation="uint8-bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    expected = (source[0].permute(2, 0, 1).float() - mean) / std
    assert torch.equal(prepare(source, recipe, "cpu")[0], expected)


def test_normalisation_after_float_resize_uses_the_0_to_1_scale() -> None:
    source = frames(1, 224, 224)
    pixels = prepare(source, PIXEL_RECIPES["videomae-eval"], "cpu")[0]
    red = (source[0, :, :, 0].double() / 255 - 0.485) / 0.229
    assert torch.allclose(pixels[0].double(), red, rtol=0, atol=1e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width", "side"), [(37, 53, 32), (240, 320, 64), (31, 45, 96)])
def test_colours_side_by_side_in_memory_resize_to_the_same_bits(
    height: int, width: int, side: int, antialias: bool
) -> None:
    interleaved = frames(3, height, width).float().div_(255.0).permute(0, 3, 1, 2)
    planes = interleaved.contiguous()
    assert not interleaved.is_contiguous()
    expected = resize_float(planes, (side, side), antialias=antialias)
    assert torch.equal(resize_float(interleaved, (side, side), antialias=antialias), expected)


def test_bgr_recipe_swaps_red_and_blue() -> None:
    source = frames()
    rgb = prepare(source, PixelRecipe(size=32), "cpu")
    bgr = prepare(source, PixelRecipe(size=32, colour="bgr"), "cpu")
    assert torch.equal(bgr, rgb.flip(1))


@pytest.mark.parametrize(("value", "expected"), [(0, -1.0), (51, -0.6), (255, 1.0)])
def test_i3d_maps_bytes_to_minus_one_to_one(value: int, expected: float) -> None:
    picture = torch.full((1, 150, 200, 3), value, dtype=torch.uint8)
    pixels = prepare(picture, PIXEL_RECIPES["i3d"], "cpu")
    assert pixels.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixels, torch.full_like(pixels, expected))


def test_pytorch_i3d_enlarges_small_pictures_and_leaves_the_others() -> None:
    recipe = PIXEL_RECIPES["pytorch-i3d"]
    assert resized_shape(180, 320, recipe) == (226, 402)
    assert resized_shape(256, 340, recipe) == (256, 340)
    source = frames(1, 256, 340)
    expected = source[0, 16:240, 58:282].permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(prepare(source, recipe, "cpu")[0], expected, rtol=0, atol=1e-6)


def test_tsp_resizes_to_128_by_171_and_crops_112() -> None:
    recipe = PIXEL_RECIPES["tsp"]
    source = frames(1, 64, 80)
    floats = resize_float(source.permute(0, 3, 1, 2).float() / 255, (128, 171), antialias=False)
    cropped = floats[0, :, 8:120, 29:141]
    mean = torch.tensor([110.2008, 100.63983, 95.99475])[:, None, None]  # as ETAD states them
    std = torch.tensor([58.14765, 56.46975, 55.332195])[:, None, None]
    expected = (cropped * 255 - mean) / std
    torch.testing.assert_close(prepare(source, recipe, "cpu")[0], expected, rtol=0, atol=1e-5)


def test_flow_has_two_channels_around_zero() -> None:
    recipe = PIXEL_RECIPES["i3d-flow"]
    still = torch.full((1, 256, 256, 2), 128, dtype=torch.uint8)
    pixels = prepare(still, recipe, "cpu")
    assert pixels.shape == (1, 2, 224, 224)
    assert pixels.abs().max() < 0.004
    with pytest.raises(ConfigError, match=r"uint8 \[T, H, W, 2\]"):
        prepare(frames(), recipe, "cpu")


def test_antialias_averages_what_plain_bilinear_skips() -> None:
    stripes = torch.zeros(1, 1, 8, 8)
    stripes[..., ::4] = 1.0  # columns 0 and 4: between the centres that plain bilinear reads
    plain = resize_float(stripes, (2, 2), antialias=False)
    smooth = resize_float(stripes, (2, 2), antialias=True)
    assert torch.equal(plain, torch.zeros(1, 1, 2, 2))
    assert float(smooth.min()) > 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 3),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
    ],
)
def test_frames_of_another_shape_or_type_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="uint8"):
        prepare(wrong, PixelRecipe(size=8), "cpu")


def test_pyslowfast_rounds_the_long_side_down_and_cuts_the_larger_margin_first() -> None:
    recipe = PIXEL_RECIPES["pyslowfast"]
    # 256 * 427 / 240 = 455.47; mmaction2 would have rounded 454.6 up to 455
    assert resized_shape(240, 427, recipe) == (256, 455)
    assert resized_shape(427, 240, recipe) == (455, 256)
    assert resized_shape(270, 479, recipe) == (256, 454)
    wide = torch.zeros(1, 256, 259, 3, dtype=torch.uint8)  # 3 columns too many: 2 left, 1 right
    wide[:, :, 2] = 255
    pixels = prepare(wide, recipe, "cpu")
    assert pixels[0, 0, 0, 0] == pytest.approx((1 - 0.45) / 0.225)
    assert pixels[0, 0, 0, 1] == pytest.approx(-0.45 / 0.225)


def test_weights_trained_on_opencv_pictures_get_their_colours_in_that_order() -> None:
    picture = frames(1, 256, 256)
    ours = prepare(picture, PIXEL_RECIPES["epic-slowfast"], "cpu")
    assert torch.equal(ours, prepare(picture, PIXEL_RECIPES["pyslowfast"], "cpu").flip(1))


@pytest.mark.parametrize("side", [20, 31])
def test_cropped_resize_equals_the_crop_of_the_whole(side: int) -> None:
    source = torch.randint(0, 256, (3, 65, 97, 3), generator=torch.Generator().manual_seed(0))
    whole = resize_uint8(source.to(torch.uint8), (32, 47))
    top, left = (32 - side) // 2, (47 - side) // 2
    cropped = resize_uint8(source.to(torch.uint8), (32, 47), crop=side)
    assert torch.equal(cropped, whole[:, top : top + side, left : left + side])
