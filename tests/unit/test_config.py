"""What the errors of configurations say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tadpipe.config import PixelRecipe, build
from tadpipe.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    epochs: int = 30
    warmup_epochs: int = 5


def test_unknown_key_is_answered_with_values_and_defaults() -> None:
    with pytest.raises(ConfigError, match=r"epochs \(now 7\), warmup_epochs \(default 5\)"):
        build(Schedule, {"epoch": 3, "epochs": 7}, "x.toml")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "one value per channel"),
        ({"resize": "fixed"}, "resize_to belongs"),
        ({"resize_to": (128, 171)}, "resize_to belongs"),
        ({"resize": "fixed", "resize_to": (128, 171)}, "neither below the size"),
    ],
)
def test_pixel_recipe_refuses_settings_that_do_not_go_together(
    wrong: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        PixelRecipe(size=224, **wrong)


def test_flow_has_two_channels() -> None:
    assert [PixelRecipe(colour=c).channels for c in ("rgb", "bgr", "flow-tvl1")] == [3, 3, 2]
