"""Cases of the kind `r2plus1d`: TSP's R(2+1)D, every stage."""

from __future__ import annotations

import torch

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.r2plus1d import NORM_EPS, R2Plus1d, remap_official_keys
from tadpipe.config import PixelRecipe
from tests.parity.case import Case
from tests.parity.recipe_cases import (
    Shapes,
    Tolerance,
    check_arrays,
    check_end_points,
    check_weights,
    drawn_input,
    drawn_weights,
    traced,
    with_norm_buffers,
)


def run(case: Case) -> None:
    config = case.config["config"]
    case.claim("norm eps", float(config.get("bn_eps", NORM_EPS)) == NORM_EPS)
    model = R2Plus1d(name="parity", pixels=PixelRecipe(), blocks=config["layers"])
    shapes: Shapes = case.config.get("state_dict") or with_norm_buffers(model.state_dict())
    state = drawn_weights(shapes, int(config["base_seed"]))
    check_weights(case, state)
    remapped = remap_official_keys({f"backbone.{key}": value for key, value in state.items()})
    load_strictly(model, remapped.state, remapped.layout, "")
    case.claim("strict load", True)
    model.eval()

    clips = drawn_input(case)
    stages = {f"layer{i}": getattr(model, f"layer{i}") for i in range(1, 5)}
    outputs = traced({"stem": model.stem, **stages})
    with torch.inference_mode():
        ours = {"trunk": model.feature_map(clips), "features": model(clips)}
    tolerance = Tolerance.of(case)
    check_end_points(case, outputs, tolerance)
    check_arrays(case, ours, tolerance)
