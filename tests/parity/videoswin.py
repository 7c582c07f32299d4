"""Cases of the kind `videoswin`: both layouts, padded and shrunken windows, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.representation import frame_features
from tadpipe.backbones.videoswin import PATCH, VideoSwin, remap_official_keys
from tadpipe.config import PixelRecipe
from tests.parity.case import Case
from tests.parity.recipe_cases import (
    Shapes,
    Tolerance,
    check_arrays,
    check_end_points,
    check_loss_gradients,
    check_weights,
    drawn_input,
    drawn_weights,
)

INDEX = "relative_position_index"


def run(case: Case) -> None:
    layout = "mmaction" if case.config["layout"].startswith("mmaction2") else "official"
    model = built(case.config["config"])
    case.compare(
        "parameters", sum(p.numel() for p in model.parameters()), case.config["parameters"]
    )
    state = weights(case, model, layout)
    check_weights(case, state)
    remapped = remap_official_keys({f"backbone.{key}": value for key, value in state.items()})
    case.claim("layout", remapped.layout == layout)
    window = remapped.arguments.get("window", list(model.window))
    case.claim("window", list(model.window) in (window, [4, 3, 3]))
    load_strictly(model, remapped.state, layout, "")
    case.claim("strict load", True)
    model.eval()
    compare(case, model)


def built(config: dict[str, Any]) -> VideoSwin:
    assert tuple(config["patch_size"]) == PATCH
    return VideoSwin(
        name="parity",
        pixels=PixelRecipe(),
        channels=int(config["embed_dims"]),
        depths=config["depths"],
        heads=config["num_heads"],
        window=config["window_size"],
    )


def compare(case: Case, model: VideoSwin) -> None:
    clips = drawn_input(case)
    model.set_clip_len(clips.shape[2])
    tolerance = Tolerance.of(case)
    check_end_points(case, stage_outputs(model, clips), tolerance)
    features = model(clips)
    cells = model.feature_map(clips)
    ours = {
        "trunk": cells,
        "features": features,
        "frames": frame_features(model, clips, cells.shape[2]),
    }
    check_arrays(case, ours, tolerance)
    parameters = dict(model.named_parameters())

    def gradient_of(key: str) -> Tensor | None:
        return parameters[key.replace("norm3.", "norm.") if key.startswith("norm3.") else key].grad

    check_loss_gradients(case, features, gradient_of)


@torch.no_grad()
def stage_outputs(model: VideoSwin, clips: Tensor) -> dict[str, Tensor]:
    """Patches (channels first), and what leaves each block and each merging (channels last)."""
    x = model.patch_embed(clips)
    outputs = {"patch_embed": x.permute(0, 4, 1, 2, 3)}
    for i, stage in enumerate(model.stages()):
        for j, block in enumerate(stage.blocks):
            x = block(x, model.relative_index)
            outputs[f"layer{i}_block{j}"] = x
        if stage.downsample is not None:
            x = stage.downsample(x)
            outputs[f"layer{i}_merged"] = x
    return outputs


def weights(case: Case, model: VideoSwin, layout: str) -> dict[str, Tensor]:
    """The stored file, else the recipe; the index of positions counts as a key and is ours."""
    if (case.path / "weights.safetensors").exists():
        state = case.weights()
    else:
        shapes: Shapes | None = case.config.get("state_dict")
        state = drawn_weights(
            shapes or their_shapes(model, layout), int(case.config["config"]["base_seed"])
        )
        for key in [key for key in state if key.endswith(INDEX)]:
            state[key] = model.relative_index
    stored = [value for key, value in state.items() if key.endswith(INDEX)]
    case.claim("index of positions", all(torch.equal(v, model.relative_index) for v in stored))
    return state


def their_shapes(model: VideoSwin, layout: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for key, value in model.state_dict().items():
        name = f"norm3.{key.removeprefix('norm.')}" if key.startswith("norm.") else key
        shapes[name if layout == "mmaction" else key] = tuple(value.shape)
        if key.endswith("relative_position_bias_table"):
            index = key.replace("relative_position_bias_table", INDEX)
            shapes[index] = tuple(model.relative_index.shape)
    return shapes
