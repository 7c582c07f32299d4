"""Cases of the kind `slowonly`: mmaction2's and PySlowFast's layout, outputs and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.representation import frame_features
from tadpipe.backbones.slowfast import STAGES
from tadpipe.backbones.slowfast_keys import remap_slowonly_keys, renamed_state
from tadpipe.backbones.slowonly import SlowOnly
from tadpipe.config import PixelRecipe
from tests.parity.case import Case
from tests.parity.recipe_cases import (
    Tolerance,
    check_arrays,
    check_end_points,
    check_loss_gradients,
    check_weights,
    drawn_input,
)
from tests.parity.slowfast import PREFIXES, blocks_of, check_parameters, layout_of, weights


def run(case: Case) -> None:
    config = case.config["config"]
    layout = layout_of(case)
    state = weights(case, layout)
    check_weights(case, state)
    remapped = remap_slowonly_keys({PREFIXES[layout] + k: v for k, v in state.items()})
    case.claim("layout", remapped.layout == layout)
    model = SlowOnly(
        name="parity",
        pixels=PixelRecipe(),
        blocks=blocks_of(config),
        width=int(config["base_channels"]),
        num_classes=int(config.get("num_classes", 0)),
        **remapped.arguments,
    )
    load_strictly(model, remapped.state, layout, "")
    case.claim("strict load", True)
    check_parameters(case, model)
    model.eval()
    clips = drawn_input(case)
    model.set_clip_len(clips.shape[2])
    tolerance = Tolerance.of(case)
    check_end_points(case, stage_outputs(model, clips), tolerance)
    features = model(clips)
    ours = {
        "trunk": model.feature_map(clips),
        "frames": frame_features(model, clips, clips.shape[2]),
        "features": features,
    }
    if "logits" in case:
        ours["logits"] = model.classify(clips)
    check_arrays(case, ours, tolerance)
    parameters = dict(model.named_parameters())

    def gradient_of(key: str) -> Tensor | None:
        (name,) = renamed_state({key: torch.empty(0)}, layout, "")
        return parameters[name.removeprefix("slow_path.")].grad

    check_loss_gradients(case, features, gradient_of)


@torch.no_grad()
def stage_outputs(model: SlowOnly, clips: Tensor) -> dict[str, Tensor]:
    """Maps after the stem and each stage."""
    x = model.stem(clips)
    outputs = {"stem": x.clone()}
    for number in STAGES:
        x = model.stage(number, x, recompute=False)
        outputs[f"layer{number}"] = x.clone()
    return outputs
