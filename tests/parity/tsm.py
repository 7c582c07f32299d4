"""Cases of the kind `tsm`: the official and mmaction2's layout, outputs and gradients."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.tsm import R50_BLOCKS, R101_BLOCKS, Tsm, remap_official_keys
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
    with_norm_buffers,
)

BLOCKS = {50: R50_BLOCKS, 101: R101_BLOCKS}


def run(case: Case) -> None:
    config = case.config["config"]
    official = "official" in str(case.config.get("layout", ""))
    model = Tsm(
        name="parity",
        pixels=PixelRecipe(),
        blocks=config.get("stage_blocks") or BLOCKS[int(config["depth"])],
        base_width=int(config.get("base_channels", 64)),
        num_classes=int(config.get("num_classes", 0)) if official else 0,
    )
    case.claim("shift of one channel in eight", int(config.get("shift_div", 8)) == 8)
    headless = sum(p.numel() for name, p in model.named_parameters() if "head" not in name)
    stated = case.config.get("parameters_without_head", case.config.get("parameters", headless))
    case.compare("parameters", headless, int(stated))
    state = weights(case, model, official)
    check_weights(case, state)
    prefix = "module." if official else ""
    remapped = remap_official_keys({prefix + key: value for key, value in state.items()})
    case.claim("layout", remapped.layout == ("official" if official else "mmaction"))
    load_strictly(model, remapped.state, remapped.layout, "")
    case.claim("strict load", True)
    model.eval()
    compare(case, model)


def compare(case: Case, model: Tsm) -> None:
    clips = drawn_input(case)
    outputs = stage_outputs(model, clips)
    cells = model.feature_map(clips)
    frames = cells.mean(dim=(3, 4))  # [B, C, T]
    features = model(clips)
    ours = {"trunk": outputs["layer4"], "frames": frames, "features": features}
    if "logits" in case:
        ours["logits"] = model.classify(clips)
    tolerance = Tolerance.of(case)
    check_end_points(case, outputs, tolerance)
    check_arrays(case, ours, tolerance)
    parameters = dict(model.named_parameters())

    def gradient_of(key: str) -> Tensor | None:
        # the shift of one key alone says nothing about the others, so rename without the check
        parameter = parameters.get(our_name(key))
        return None if parameter is None else parameter.grad

    # In float64, as for SlowFast: activations beside a ReLU's zero move float32's by 0.2 %.
    check_loss_gradients(case, model.double()(clips.double()), gradient_of)


def stage_outputs(model: Tsm, clips: Tensor) -> dict[str, Tensor]:
    """Maps after the stem and each stage, [B*T, C, h, w]."""
    frames = clips.shape[2]
    with torch.no_grad():
        x = model.stem(clips.transpose(1, 2).flatten(0, 1))
        outputs = {"stem": x.clone()}
        for i in range(1, 5):
            for block in getattr(model, f"layer{i}"):
                x = block(x, frames)
            outputs[f"layer{i}"] = x.clone()
    return outputs


def weights(case: Case, model: Tsm, official: bool) -> dict[str, Tensor]:
    """The stored file, else the recipe on the case's key list or on ours in its layout."""
    if (case.path / "weights.safetensors").exists():
        return case.weights()
    shifted = {
        f"layer{i}.{j}.conv1"
        for i in range(1, 5)
        for j, block in enumerate(getattr(model, f"layer{i}"))
        if block.shifts
    }
    if "shifted_convs" in case.config:
        stated = {
            re.sub(r"(\.conv)?\.net\.weight$", "", key) for key in case.config["shifted_convs"]
        }
        case.claim("shifted blocks", {key.removeprefix("base_model.") for key in stated} == shifted)
    shapes: Shapes = case.config.get("state_dict") or with_norm_buffers(
        {their_name(key, shifted, official): value for key, value in model.state_dict().items()}
    )
    return drawn_weights(shapes, int(case.config["config"]["base_seed"]))


def their_name(key: str, shifted: set[str], official: bool) -> str:
    """Our name of a tensor in the layout of mmaction2 or of the official release."""
    for unit in shifted:
        key = re.sub(rf"^{re.escape(unit)}\.conv\.", f"{unit}.conv.net.", key)
    if not official:
        return key
    key = re.sub(r"^head\.", "new_fc.", key)
    key = re.sub(r"downsample\.conv\.", "downsample.0.", key)
    key = re.sub(r"downsample\.bn\.", "downsample.1.", key)
    key = re.sub(r"conv(\d)\.bn\.", r"bn\1.", key)
    key = re.sub(r"(conv\d)\.conv\.", r"\1.", key)
    return key if key.startswith("new_fc.") else f"base_model.{key}"


def our_name(key: str) -> str:
    """The inverse of `their_name`, for both layouts, without its check of the whole file."""
    key = key.removeprefix("base_model.").replace(".net.", ".")
    key = re.sub(r"^new_fc\.", "head.", key)
    key = re.sub(r"downsample\.0\.", "downsample.conv.", key)
    key = re.sub(r"downsample\.1\.", "downsample.bn.", key)
    key = re.sub(r"(^|\.)bn(\d)\.", r"\1conv\2.bn.", key)
    return re.sub(r"(conv\d)\.weight$", r"\1.conv.weight", key)
