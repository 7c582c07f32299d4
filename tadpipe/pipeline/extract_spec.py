"""Which features `extract` is to make: as its options choose, or as an end-to-end run made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.tia import Adaptable
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError
from tadpipe.pipeline.known_weights import KnownWeights
from tadpipe.pipeline.spec_backbone import TunedBackbone, load_exactly
from tadpipe.registry import nearest
from tadpipe.store.metadata import FeatureSpec

DEFAULT_STRIDE = 4  # frames
# what to do with a file that ends early, arithmetic of the backbone, type of the stored rows
Handling = tuple[
    Literal["skip", "keep"], Literal["fp32", "bf16", "fp16"], Literal["float16", "float32"]
]
PADDED_BATCH = 8  # clips per pass on any device, where the last bits depend on the number


class Choices(NamedTuple):
    """Which features; None where the default, or an end-to-end run, decides."""

    backbone: str | None
    stride: int | None
    clip_len: int | None
    frame_interval: int | None
    anchor: Literal["start", "centre", "cell"] | None
    fps: float | None
    pixels: str | PixelRecipe | None


def as_chosen(
    choices: Choices,
    weights: str | Path | None,
    handling: Handling,
    device: str,
    compile: bool,
    batch: int | None,
    seed: int,
) -> tuple[Backbone, FeatureSpec]:
    """The backbone asked for and what it makes.

    Raises:
        ConfigError: a wrong choice; what can be told without the backbone is told before it loads.
    """
    if choices.backbone is None:
        raise ConfigError("No backbone given.", todo="Name one, or the run of an end-to-end model.")
    if isinstance(choices.pixels, str):
        _named_recipe(choices.pixels)
    asked = _as_asked(choices.backbone, choices, handling)
    model = load_backbone(
        choices.backbone,
        weights,
        device=device,
        dtype=asked.compute_dtype,
        compile=compile,
        seed=seed,
    )
    if choices.clip_len is not None:
        model.set_clip_len(choices.clip_len)
    if choices.pixels is not None:
        model.pixels = _recipe(choices.pixels, model.pixels)
    spec = replace(
        asked,
        weights_sha256=model.weights_sha256,
        adapter_sha256=model.adapter_sha256 if isinstance(model, Adaptable) else "",
        channels=model.out_channels,
        clip_len=model.clip_len,
        pixels=model.pixels,
        batch=(batch or PADDED_BATCH) if model.bits_depend_on_batch else None,
    )
    return model, spec


def _as_asked(backbone: str, choices: Choices, handling: Handling) -> FeatureSpec:
    """The spec but for what the loaded backbone says.

    Raises:
        ConfigError: a number that cannot be.
    """
    truncated, dtype, feature_dtype = handling
    anchor = choices.anchor or "start"
    return FeatureSpec(
        backbone=backbone,
        weights_sha256="",
        channels=1,
        clip_len=1 if choices.clip_len is None else choices.clip_len,
        stride=DEFAULT_STRIDE if choices.stride is None else choices.stride,
        pixels=None,
        frame_interval=1 if choices.frame_interval is None else choices.frame_interval,
        anchor=anchor,
        edges="drop-tail" if anchor == "start" else "repeat-edge",
        truncated=truncated,
        fps=choices.fps,
        compute_dtype=dtype,
        stored_dtype=feature_dtype,
    )


def as_tuned(
    tuned: TunedBackbone, choices: Choices, handling: Handling, device: str, compile: bool
) -> tuple[Backbone, FeatureSpec]:
    """A tuned backbone, used as its run did.

    Raises:
        ConfigError: a choice that the run has decided otherwise.
    """
    spec, where = tuned.spec, str(tuned.file.parent)
    for name, asked in zip(choices._fields, choices, strict=True):
        free = name == "stride" and spec.representation == "snippet"
        if asked is not None and not free and asked != getattr(spec, name):
            raise ConfigError(
                "The end-to-end run decides how its features are made.",
                f"{where}: {name} {getattr(spec, name)}, asked for {asked}",
                f"Leave {name} out, or name other weights.",
            )
    truncated, dtype, feature_dtype = handling
    model = load_exactly(
        replace(spec, compute_dtype=dtype),
        KnownWeights(tuned.file),
        device=device,
        compile=compile,
        run=where,
    )
    spec = replace(
        spec,
        stride=choices.stride or spec.stride,
        truncated=truncated,
        compute_dtype=dtype,
        stored_dtype=feature_dtype,
    )
    return model, spec


def _recipe(pixels: str | PixelRecipe, own: PixelRecipe) -> PixelRecipe:
    """A pixel recipe by name, at the picture size of the backbone's own.

    Raises:
        ConfigError: unknown, or pictures of another number of channels.
    """
    if isinstance(pixels, str):
        pixels = replace(_named_recipe(pixels), size=own.size)
    if pixels.channels != own.channels:
        raise ConfigError(
            "The pixel recipe does not fit the backbone.",
            f"{pixels.colour}: {pixels.channels} channels, the backbone takes {own.channels}",
            "Leave --pixels out: the backbone brings its own.",
        )
    return pixels


def _named_recipe(pixels: str) -> PixelRecipe:
    if pixels not in PIXEL_RECIPES:
        raise ConfigError(
            f"Unknown pixel recipe '{pixels}'.",
            todo=f"Known: {', '.join(nearest(pixels, PIXEL_RECIPES) or PIXEL_RECIPES)}.",
        )
    return PIXEL_RECIPES[pixels]
