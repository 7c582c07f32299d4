"""A spec's id follows from everything that decides the numbers, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError
from tadpipe.store.metadata import FeatureSpec
from tests.unit.store.small_videos import SPEC, spec

CHANGES: dict[str, Any] = {
    "backbone": "x",
    "weights_sha256": "1",
    "channels": 7,
    "clip_len": 8,
    "stride": 5,
    "pixels": PixelRecipe(size=9),
    "adapter_sha256": "1",
    "frame_interval": 2,
    "edges": "repeat-edge",
    "decode_size": (320, 180),
    "rotation": "as-stored",
    "truncated": "keep",
    "fps": 15.0,
    "pooling": "max",
    "compute_dtype": "bf16",
    "batch": 4,
    "stored_dtype": "float32",
}
FRAME = {"representation": "frame", "window_len": 64, "overlap": 8, "row_spacing": 4.0}


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_every_setting_changes_the_id(key: str) -> None:
    assert spec(**{key: CHANGES[key]}).fid != SPEC.fid


def test_every_field_is_covered_here() -> None:
    assert {field.name for field in fields(FeatureSpec)} == {*CHANGES, *FRAME, "anchor"}


def test_id_survives_json() -> None:
    for one in (SPEC, spec(**CHANGES), spec(**FRAME)):
        again = FeatureSpec.from_mapping(json.loads(json.dumps(one.to_mapping())))
        assert (again, again.fid) == (one, one.fid)


def test_wrong_mapping_names_the_key() -> None:
    with pytest.raises(ConfigError, match="strid"):
        FeatureSpec.from_mapping({**SPEC.to_mapping(), "strid": 4})


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 0},
        {"anchor": "centre"},
        {"window_len": 64},
        {**FRAME, "overlap": 64},
        {**FRAME, "row_spacing": 0.0},
    ],
)
def test_settings_that_contradict_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        spec(**changes)


@pytest.mark.parametrize(
    ("changes", "offset"),
    [
        ({"frame_interval": 2}, 16.0),
        ({"anchor": "centre", "edges": "repeat-edge"}, 0.0),
        ({"anchor": "cell", "edges": "repeat-edge"}, 2.0),
    ],
)
def test_first_row_sits_where_the_anchor_says(changes: dict[str, Any], offset: float) -> None:
    assert spec(**changes).offset_frames == offset


def test_settings_tell_two_specs_apart() -> None:
    base = SPEC.settings()
    for key in ("stride", "backbone", "fps", "batch", "stored_dtype", "decode_size"):
        assert spec(**{key: CHANGES[key]}).settings() != base
    assert "every 4" in spec(**FRAME).settings()["frame features"]


def test_a_setting_that_came_later_moves_no_stored_features_while_at_rest() -> None:
    plain = FeatureSpec("videomae-b", "a" * 64, 768, 16, 4, PixelRecipe())
    assert plain.fid == "771004ce433698b2"  # of stores written before `resize_to`
    fixed = PixelRecipe(resize="fixed", resize_to=(256, 340))
    assert replace(plain, pixels=fixed).fid != replace(plain, pixels=None).fid != plain.fid


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (PixelRecipe(size=224, resize="short-side"), "short-side 224 float-bilinear"),
        (
            PixelRecipe(size=224, resize="short-side", resize_short_side=256),
            "short-side 224 float-bilinear, cut from a short side of 256",
        ),
        (
            PixelRecipe(size=112, resize="fixed", resize_to=(128, 171)),
            "fixed 112 float-bilinear, cut from 128 x 171",
        ),
        (PixelRecipe(size=64, colour="flow-files"), "squash 64 float-bilinear, flow-files"),
    ],
)
def test_pixels_that_differ_differ_in_words(recipe: PixelRecipe, words: str) -> None:
    assert spec(pixels=recipe).settings()["pixels"] == words


def test_settings_state_mean_and_std() -> None:
    recipe = PixelRecipe(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.25))
    words = spec(pixels=recipe).settings()["normalised"]
    assert words == "mean 0.5 0.4 0.3, std 0.2 0.2 0.25"
