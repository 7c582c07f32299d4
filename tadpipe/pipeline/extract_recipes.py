"""Named recipes of released features: what `tadpipe extract --recipe` decides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.datasets.feature_recipes import FEATURE_RECIPES, FeatureRecipe
from tadpipe.errors import ConfigError
from tadpipe.registry import known
from tadpipe.store.metadata import FeatureSpec

if TYPE_CHECKING:  # it loads torch, which `tadpipe store info` can do without
    from tadpipe.pipeline.extract_spec import Choices

FREE = "pixels"  # may be chosen where the release does not say


def with_recipe(choices: Choices, name: str) -> Choices:
    """The choices of a named recipe; its pixels have the size that the release has.

    Args:
        choices: what was asked for beside it; None where the recipe may decide.
    Raises:
        ConfigError: unknown name, or a choice that contradicts the recipe.
    """
    known("recipe", FEATURE_RECIPES, name)
    recipe = FEATURE_RECIPES[name]
    decided: dict[str, Any] = {}
    for field, asked in choices._asdict().items():
        stated = getattr(recipe, field)
        if field == FREE and stated is None:
            decided[field] = asked
            continue
        if asked is not None and asked != stated:
            raise ConfigError(
                "The recipe decides how its features are made.",
                f"{name}: {field} {'of the file' if stated is None else stated}, asked for {asked}",
                f"Leave --{field.replace('_', '-')} out, or --recipe.",
            )
        decided[field] = PIXEL_RECIPES[stated] if field == FREE else stated
    return choices._replace(**decided)


def recipes_of(spec: FeatureSpec) -> list[str]:
    """The recipes that features of this spec follow; whose weights made them, the hash tells."""
    return [name for name, recipe in FEATURE_RECIPES.items() if _follows(spec, recipe)]


def _follows(spec: FeatureSpec, recipe: FeatureRecipe) -> bool:
    fields = ("backbone", "stride", "clip_len", "frame_interval", "anchor", "fps")
    if any(getattr(spec, field) != getattr(recipe, field) for field in fields):
        return False
    if spec.pixels is None or spec.adapter_sha256 or spec.representation != "snippet":
        return False
    if recipe.pixels is None:
        return True
    wanted = PIXEL_RECIPES[recipe.pixels]
    if wanted.channels == spec.pixels.channels == 2:  # computed or read, flow is flow
        wanted = replace(wanted, colour=spec.pixels.colour)
    return spec.pixels == wanted
