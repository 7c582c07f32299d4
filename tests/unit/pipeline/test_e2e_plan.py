"""What an end-to-end run decides first: options, windows that pixels can have, presets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tadpipe.errors import ConfigError
from tadpipe.pipeline.e2e_plan import E2EOptions, PixelPlan, pixel_preset, plan_pixels
from tadpipe.pipeline.names import names_of
from tadpipe.pipeline.presets import load_preset

PUBLISHED = [name for name in names_of("presets") if "/e2e_" in name]


def plan_of(name: str) -> PixelPlan:
    preset = pixel_preset(load_preset(name, ["e2e.adapter.ratio=0.5"]))
    return plan_pixels(preset, "videomae-tiny", "random", stride=None, device="cpu", seed=0)


@pytest.mark.parametrize(
    ("name", "rows", "frames", "interval"),
    [
        ("actionformer/e2e_thumos14", 768, 768, 4),
        ("actionformer/e2e_activitynet", 192, 768, 1),
        ("actionformer/e2e_epic_noun", 768, 6144, 2),
        ("actionformer/e2e_epic_verb", 768, 6144, 2),
        ("actionformer/e2e_ego4d", 1024, 8192, 2),
    ],
)
def test_published_recipes_have_their_windows(
    name: str, rows: int, frames: int, interval: int
) -> None:
    plan = plan_of(name)
    assert plan.grid.window_len == rows
    assert (plan.spec.window_len, plan.spec.frame_interval) == (frames, interval)
    assert plan.grid.resize == name.endswith("activitynet")
    assert plan.backbone.pixels.size == 160
    assert (plan.config.tune, plan.config.adapter.kind) == ("adapter", "tia")


def test_every_published_recipe_is_tested() -> None:
    assert len(PUBLISHED) == 5


@pytest.mark.parametrize(
    ("options", "tune", "kind"),
    [
        ({"adapter": "tia"}, "adapter", "tia"),
        ({"adapter": "none"}, "full", "none"),
        ({"tune": "frozen"}, "frozen", "none"),
        ({"tune": "full", "adapter": "tia"}, "full", "tia"),
        ({}, "adapter", "tia"),
    ],
)
def test_an_adapter_alone_trains_and_tuning_alone_has_none(
    options: dict[str, Any], tune: str, kind: str
) -> None:
    sets = E2EOptions(**options).as_sets()
    made = load_preset("actionformer/e2e_thumos14", sets).e2e
    assert (made.tune, made.adapter.kind) == (tune, kind)


@pytest.mark.parametrize(
    ("changes", "key", "wanted"),
    [
        ({"placement": "sliding", "crop_ratio": ()}, "placement", "random"),
        ({"fit": "thin"}, "fit", "pad"),
        ({"fit": "roi-align"}, "fit", "resize"),
    ],
)
def test_windows_of_stored_features_get_their_counterpart_and_say_so(
    changes: dict[str, Any], key: str, wanted: str, caplog: pytest.LogCaptureFixture
) -> None:
    preset = load_preset("actionformer/default")
    changed = pixel_preset(replace(preset, windows=replace(preset.windows, **changes)))
    assert getattr(changed.windows, key) == wanted
    assert f"end to end it is {wanted}" in caplog.text


def test_optical_flow_is_refused() -> None:
    preset = pixel_preset(load_preset("actionformer/default"))
    with pytest.raises(ConfigError, match="not optical flow"):
        plan_pixels(preset, "i3d-flow", "random", stride=4, device="cpu", seed=0)
