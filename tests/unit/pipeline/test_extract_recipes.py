"""Named recipes: the numbers of the released features, and nothing beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.datasets.conventions import CONVENTIONS
from tadpipe.datasets.feature_recipes import FEATURE_RECIPES
from tadpipe.errors import ConfigError
from tadpipe.pipeline import store_report
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.extract_recipes import recipes_of, with_recipe
from tadpipe.pipeline.extract_spec import Choices
from tadpipe.pipeline.names import names_of
from tadpipe.registry import resolve
from tadpipe.store.feature_store import FeatureStore
from tadpipe.video.snippets import SnippetPlan
from tests.corpus import make_video
from tests.unit.pipeline.tiny_store import SPEC

NOTHING = Choices(None, None, None, None, None, None, None)
TSP = Choices("r2plus1d-34", 16, 16, 1, "start", 15.0, PIXEL_RECIPES["tsp"])


@pytest.mark.parametrize("name", FEATURE_RECIPES)
def test_recipe_makes_what_the_convention_describes(name: str) -> None:
    recipe = FEATURE_RECIPES[name]
    convention = CONVENTIONS[name.removesuffix("-rgb").removesuffix("-flow")]
    plan = SnippetPlan(recipe.anchor, recipe.clip_len, recipe.frame_interval, recipe.stride)
    assert (plan.stride, plan.span_frames) == (convention.stride, convention.clip_len)
    assert plan.offset_frames == convention.offset
    assert recipe.fps in (None, convention.fps)
    with torch.device("meta"):
        backbone = resolve("backbone", BACKBONES, recipe.backbone)()
    streams = 2 if "i3d" in name else 1
    assert backbone.out_channels * streams == convention.channels
    backbone.set_clip_len(recipe.clip_len)
    if recipe.pixels is not None:
        assert PIXEL_RECIPES[recipe.pixels].channels == backbone.pixels.channels


def test_recipe_fills_what_was_left_open() -> None:
    assert with_recipe(NOTHING, "activitynet-tsp") == TSP
    assert with_recipe(NOTHING._replace(stride=16), "activitynet-tsp") == TSP


def test_pixels_are_free_where_the_release_does_not_say() -> None:
    assert with_recipe(NOTHING, "hacs-slowfast").pixels is None
    asked = NOTHING._replace(pixels="pyslowfast")
    assert with_recipe(asked, "hacs-slowfast").pixels == "pyslowfast"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"stride": 8}, "stride 16, asked for 8"),
        ({"backbone": "i3d-rgb"}, "backbone r2plus1d-34"),
        ({"clip_len": 8}, "Leave --clip-len out"),
        ({"fps": 30.0}, "fps 15"),
        ({"pixels": "i3d"}, "pixels tsp, asked for i3d"),
    ],
)
def test_choice_that_contradicts_the_recipe_is_refused(asked: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        with_recipe(NOTHING._replace(**asked), "activitynet-tsp")


def test_unknown_recipe_names_near_ones() -> None:
    with pytest.raises(ConfigError, match="Did you mean activitynet-tsp"):
        with_recipe(NOTHING, "activitynet-tps")


def test_recipes_are_listed_with_their_numbers() -> None:
    assert list(names_of("recipes")) == list(FEATURE_RECIPES)
    assert names_of("recipes")["activitynet-tsp"].endswith("16 frames every 16 at 15 fps")


def test_spec_tells_the_recipe_it_follows() -> None:
    spec = replace(SPEC, backbone="r2plus1d-34", stride=16, fps=15.0, pixels=PIXEL_RECIPES["tsp"])
    assert recipes_of(spec) == ["activitynet-tsp"]
    assert recipes_of(replace(spec, stride=8)) == []
    assert recipes_of(replace(spec, pixels=PIXEL_RECIPES["i3d"])) == []
    assert recipes_of(replace(spec, adapter_sha256="1" * 64)) == []
    assert recipes_of(replace(spec, pixels=None)) == []


def test_flow_read_from_files_follows_the_recipe_too() -> None:
    files = replace(PIXEL_RECIPES["i3d-flow"], colour="flow-files")
    spec = replace(SPEC, backbone="i3d-flow", stride=16, fps=25.0, pixels=files)
    assert recipes_of(spec) == ["activitynet-i3d-flow"]


def test_store_holds_what_the_recipe_says_and_names_it(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    make_video(video, frames=40)
    store = tmp_path / "s.zarr"
    extract([video], store=store, recipe="activitynet-tsp", weights="random", device="cpu", batch=1)
    (spec,) = FeatureStore.open(store).specs().values()
    assert (spec.backbone, spec.stride, spec.clip_len) == ("r2plus1d-34", 16, 16)
    assert (spec.fps, spec.pixels) == (15.0, PIXEL_RECIPES["tsp"])
    report = store_report.info(store)
    assert report["features"][0]["recipes"] == ["activitynet-tsp"]
    assert "made as by recipe: activitynet-tsp" in store_report.info_text(report)
