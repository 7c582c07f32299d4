"""Cases of the kind `i3d`: both key layouts, RGB and flow, every stage."""

from __future__ import annotations

import re

import torch

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.i3d import BRANCHES, I3d, remap_official_keys
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

RGB, FLOW = PixelRecipe(), PixelRecipe(colour="flow-tvl1")


def run(case: Case) -> None:
    config = case.config["config"]
    channels = int(config.get("in_channels", config["input_shape"][1]))
    classes = int(config.get("num_classes", 400))
    shapes: Shapes = case.config.get("state_dict") or official_shapes(case, channels, classes)
    state = drawn_weights(shapes, int(config["base_seed"]))
    check_weights(case, state)
    remapped = remap_official_keys(state)
    static = any(".batch3d." in key for key in shapes)
    case.claim("layout", remapped.layout == ("batch3d" if static else "official"))
    model = I3d(name="parity", pixels=FLOW if channels == 2 else RGB, num_classes=classes,
                norm_eps=float(remapped.arguments["norm_eps"]),
                static_padding=bool(remapped.arguments["static_padding"]))  # fmt: skip
    load_strictly(model, remapped.state, remapped.layout, "")
    case.claim("strict load", True)
    model.eval()

    clips = drawn_input(case)
    outputs = traced(dict(model.stages.named_children()))
    with torch.inference_mode():
        ours = {"trunk": model.feature_map(clips)}
        if "features" in case:
            pooled = model.pooled(clips)
            # this layout's script stores the mean over time
            ours["features"] = model(clips) if static else pooled
            ours["logits"] = model.classify(clips)
    tolerance = Tolerance.of(case)
    check_end_points(case, outputs, tolerance)
    check_arrays(case, ours, tolerance)


def official_shapes(case: Case, channels: int, classes: int) -> Shapes:
    """Key list of a case that states none, in the layout its checked weights belong to."""
    with torch.device("meta"):
        model = I3d(
            name="keys", pixels=FLOW if channels == 2 else RGB, num_classes=classes
        ).state_dict()
    static = any("batch3d" in key or "conv3d_" in key for key in case.config["weights_check"])
    rename = batch3d_name if static else official_name
    return with_norm_buffers({rename(key): value for key, value in model.items()})


def official_name(key: str) -> str:
    return re.sub(r"^head\.", "logits.conv3d.", key.removeprefix("stages."))


def batch3d_name(key: str) -> str:
    name = re.sub(r"^head\.", "conv3d_0c_1x1.conv3d.", key.removeprefix("stages."))
    name = (
        name.replace("Conv3d_", "conv3d_").replace("Mixed_", "mixed_").replace(".bn.", ".batch3d.")
    )
    for theirs, ours in BRANCHES.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name
