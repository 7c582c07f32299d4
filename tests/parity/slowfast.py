"""Cases of the kind `slowfast`: three layouts, both rules of the slow frames, two poolings."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as nnf
from torch import Tensor

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.representation import frame_features
from tadpipe.backbones.slowfast import (
    R50_BLOCKS,
    R101_BLOCKS,
    STAGES,
    SlowFast,
    pooled,
    slow_frames,
)
from tadpipe.backbones.slowfast_keys import FAST_ANCHORS, remap_official_keys, renamed_state
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
LAYOUTS = {"mmaction2": "mmaction", "PySlowFast": "pyslowfast", "pytorchvideo": "pytorchvideo"}
PREFIXES = {"mmaction": "backbone.", "pyslowfast": "", "pytorchvideo": ""}


def run(case: Case) -> None:
    config = case.config["config"]
    layout = layout_of(case)
    state = weights(case, layout)
    check_weights(case, state)
    remapped = remap_official_keys({PREFIXES[layout] + k: v for k, v in state.items()})
    case.claim("layout", remapped.layout == layout)
    arguments = remapped.arguments
    case.claim("lateral kernel", arguments["lateral_kernel"] == config["fusion_kernel"])
    case.claim("lateral norm", arguments["lateral_norm"] == config["lateral_norm"])
    model = SlowFast(
        name="parity",
        pixels=PixelRecipe(),
        blocks=blocks_of(config),
        alpha=int(config["alpha"]),
        width=int(config["base_channels"]),
        beta_inv=int(config["beta_inv"]),
        num_classes=int(config.get("num_classes", 0)),
        **arguments,
    )
    load_strictly(model, remapped.state, layout, "")
    case.claim("strict load", True)
    check_parameters(case, model)
    model.eval()
    compare(case, model, layout)


def layout_of(case: Case) -> str:
    return LAYOUTS[case.config["layout"].split(" ")[0]]


def blocks_of(config: Mapping[str, object]) -> tuple[int, ...]:
    stated = config.get("stage_blocks")
    return tuple(stated) if isinstance(stated, list) else BLOCKS[int(str(config["depth"]))]


def check_parameters(case: Case, model: torch.nn.Module) -> None:
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    case.compare("parameters", sum(sizes.values()), case.config["parameters"])
    if "parameters_without_head" in case.config:
        headless = sum(size for name, size in sizes.items() if not name.startswith("head."))
        case.compare("parameters without head", headless, case.config["parameters_without_head"])


def compare(case: Case, model: SlowFast, layout: str) -> None:
    clips = drawn_input(case)
    count = clips.shape[2]
    model.set_clip_len(count)
    outputs = stage_outputs(model, clips, joined=layout == "pytorchvideo")
    with torch.no_grad():
        slow, fast = model.pathways(clips, fixed_step=model.fixed_step)
        frame_slow, frame_fast = slow.mean(dim=(3, 4)), fast.mean(dim=(3, 4))
        lines = [
            nnf.interpolate(line, size=count // 2, mode="linear", align_corners=False)
            for line in (frame_slow, frame_fast)
        ]
        frames = torch.cat(lines, dim=1)
        if model.fixed_step:  # the public way has a fixed step for every layout
            frames = frame_features(model, clips, count // 2)
    features = model(clips)
    ours = {
        "slow_frame_index": slow_frames(count, model.alpha, fixed_step=model.fixed_step),
        "trunk_slow": slow,
        "trunk_fast": fast,
        "frame_slow": frame_slow,
        "frame_fast": frame_fast,
        "frames": frames,
        "features": features,
        "features_global_mean": torch.cat((pooled(slow), pooled(fast)), dim=1),
    }
    if "logits" in case:
        ours["logits"] = model.classify(clips)
    tolerance = Tolerance.of(case)
    check_end_points(case, outputs, tolerance)
    check_arrays(case, ours, tolerance)
    parameters = dict(model.named_parameters())

    def gradient_of(key: str) -> Tensor | None:
        (name,) = renamed_state({key: torch.empty(0)}, layout, "")
        return parameters[name].grad

    # Gradients in float64: in float32 an activation may fall on the other side of a ReLU's zero,
    # which moves the norm of a gradient by up to 0.4 %; in float64 ours agree to 0.02 %.
    check_loss_gradients(case, model.double()(clips), gradient_of)


@torch.no_grad()
def stage_outputs(model: SlowFast, clips: Tensor, *, joined: bool) -> dict[str, Tensor]:
    """Maps after the stems, lateral connections and stages.

    Args:
        joined: pytorchvideo's names, whose slow maps have the lateral ones behind them.
    """
    index = slow_frames(clips.shape[2], model.alpha, fixed_step=model.fixed_step)
    slow, fast = model.slow_path.stem(clips[:, :, index]), model.fast_path.stem(clips)
    outputs = {}
    for number in range(5):
        if number:
            slow = model.slow_path.stage(number, slow, recompute=False)
            fast = model.fast_path.stage(number, fast, recompute=False)
        name = f"layer{number}" if number else "stem"
        name = f"block{number}" if joined else name
        own = slow
        if number < len(STAGES):
            slow = model.slow_path.joined(number, slow, fast)
            outputs[f"lateral_{name}"] = slow[:, own.shape[1] :].clone()
        outputs[f"{name}_slow"] = (slow if joined else own).clone()
        outputs[f"{name}_fast"] = fast.clone()
    return outputs


def weights(case: Case, layout: str) -> dict[str, Tensor]:
    """The stored file, else the recipe on the case's key list or on ours in its layout."""
    if (case.path / "weights.safetensors").exists():
        return case.weights()
    shapes: Shapes | None = case.config.get("state_dict")
    if shapes is None:
        shapes = with_norm_buffers(
            {their_name(k, layout): v for k, v in empty(case).state_dict().items()}
        )
    if layout in FAST_ANCHORS and case.path.parent.name == "slowfast":
        case.claim("key list", FAST_ANCHORS[layout] in shapes)
    return drawn_weights(shapes, int(case.config["config"]["base_seed"]))


def empty(case: Case) -> SlowFast:
    """The network of a case, for its names and shapes."""
    config = case.config["config"]
    blocks = blocks_of(config)
    leading = config.get("num_block_temp_kernel") or [[count, count] for count in blocks]
    with torch.device("meta"):
        return SlowFast(
            name="shapes",
            pixels=PixelRecipe(),
            blocks=blocks,
            alpha=int(config["alpha"]),
            width=int(config["base_channels"]),
            beta_inv=int(config["beta_inv"]),
            lateral_kernel=int(config["fusion_kernel"]),
            lateral_norm=bool(config["lateral_norm"]),
            slow_temporal=(0, 0, leading[2][0], leading[3][0]),
            fast_temporal=[pair[1] for pair in leading],
            num_classes=int(config.get("num_classes", 0)),
        )


def their_name(key: str, layout: str) -> str:
    """Our name of a tensor under mmaction2 (the same) or PySlowFast."""
    if layout == "mmaction":
        return key
    paths = {"slow": "0", "fast": "1"}
    if key.startswith("head."):
        return key.replace("head.", "head.projection.")
    if match := re.match(r"(slow|fast)_path\.conv1\.(.*)", key):
        return f"s1.pathway{paths[match[1]]}_stem.{match[2]}"
    if match := re.match(r"slow_path\.(?:conv1|layer(\d))_lateral\.(conv|bn)\.(.*)", key):
        part = "conv_f2s" if match[2] == "conv" else "bn"
        return f"s{int(match[1] or 0) + 1}_fuse.{part}.{match[3]}"
    match = re.match(
        r"(slow|fast)_path\.layer(\d)\.(\d+)\.(conv\d|downsample)\.(conv|bn)\.(.*)", key
    )
    assert match
    branch = {"conv1": "branch2.a", "conv2": "branch2.b", "conv3": "branch2.c"}.get(
        match[4], "branch1"
    )
    norm = "_bn" if match[5] == "bn" else ""
    place = f"s{int(match[2]) + 1}.pathway{paths[match[1]]}_res{match[3]}"
    return f"{place}.{branch}{norm}.{match[6]}"
