"""The key layouts of SlowFast and SlowOnly weights, renamed to mmaction2's (ours).

Layouts: mmaction2, PySlowFast (`model_state` of its `.pyth` files), pytorchvideo (torch hub) and
the Caffe2 names of PySlowFast's model zoo. What of the architecture the shapes tell comes with the
renamed state as builder arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tadpipe.backbones.block_adapters import adapters_of_blocks, block_count
from tadpipe.backbones.key_layouts import layout_of, without_prefix
from tadpipe.backbones.protocol import RemappedState
from tadpipe.errors import CheckpointError

# a weight that only this network has, under each layout
FAST_ANCHORS = {
    "mmaction": "fast_path.conv1.conv.weight",
    "pyslowfast": "s1.pathway1_stem.conv.weight",
    "pytorchvideo": "blocks.0.multipathway_blocks.1.conv.weight",
    "caffe2": "t_conv1_w",
}
SLOW_ANCHORS = {
    "mmaction": "conv1.conv.weight",
    "pyslowfast": "s1.pathway0_stem.conv.weight",
    "pytorchvideo": "blocks.0.conv.weight",
    "caffe2": "conv1_w",
}
PATHS = {"0": "slow_path", "1": "fast_path"}
ABC = {"a": "1", "b": "2", "c": "3"}
CAFFE2_NORM = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
CAFFE2_TRAINING = re.compile(r".*_momentum$|lr$|model_iter$")
STAGES = (1, 2, 3, 4)


def remap_official_keys(state: Mapping[str, Tensor]) -> RemappedState:
    """Rename a SlowFast state dict of any published layout.

    Returns:
        The renamed state; heads under `head.*`, their columns slow | fast. Arguments: whose rules
        clips follow, the laterals' kernel and norm, which blocks span three frames, adapters.
        Unknown keys keep their names, so that a strict load can list them.
    Raises:
        CheckpointError: not a SlowFast in a known layout.
    """
    layout, prefix = layout_of(state, FAST_ANCHORS, "SlowFast")
    renamed = renamed_state(state, layout, prefix)
    lateral = renamed.get("slow_path.conv1_lateral.conv.weight")
    last = renamed.get("fast_path.layer4.0.conv3.conv.weight")
    if lateral is None or last is None:
        raise CheckpointError(
            "These SlowFast weights have no lateral connection or no last stage.",
            f"{layout} layout, {len(state)} entries",
            "Take a checkpoint of the whole network.",
        )
    if layout == "mmaction" and "head.weight" in renamed:  # its columns are fast | slow
        fast, slow = renamed["head.weight"].tensor_split([last.shape[0]], dim=1)
        renamed["head.weight"] = torch.cat((slow, fast), dim=1)
    arguments: dict[str, Any] = {
        "release": "pyslowfast" if layout == "caffe2" else layout,
        "lateral_kernel": lateral.shape[2],
        "lateral_norm": "slow_path.conv1_lateral.bn.weight" in renamed,
        "slow_temporal": temporal_blocks(renamed, "slow_path."),
        "fast_temporal": temporal_blocks(renamed, "fast_path."),
    }
    blocks = [
        f"{path}.layer{stage}.{block}"
        for stage in STAGES
        for path in PATHS.values()
        for block in range(block_count(renamed, f"{path}.layer{stage}"))
    ]
    return RemappedState(layout, renamed, {**arguments, **adapters_of_blocks(renamed, blocks)})


def remap_slowonly_keys(state: Mapping[str, Tensor]) -> RemappedState:
    """Rename a SlowOnly state dict of any published layout, as `remap_official_keys`.

    Raises:
        CheckpointError: not a SlowOnly in a known layout, such as a SlowFast or a network of
            two-dimensional convolutions.
    """
    layout, prefix = layout_of(state, SLOW_ANCHORS, "SlowOnly")
    renamed = {
        key.removeprefix("slow_path."): value
        for key, value in renamed_state(state, layout, prefix).items()
    }
    stem = renamed["conv1.conv.weight"]
    if stem.ndim != 5 or any(key.startswith("fast_path.") for key in renamed):
        raise CheckpointError(
            "These are not weights of a SlowOnly.",
            f"{layout} layout, first convolution {list(stem.shape)}",
            "A SlowFast has a pathway more: use --backbone slowfast-r50 or slowfast-r101."
            if stem.ndim == 5
            else "It has convolutions over time; a TSM or TSN has none.",
        )
    arguments: dict[str, Any] = {
        "release": "pyslowfast" if layout == "caffe2" else layout,
        "temporal": temporal_blocks(renamed, ""),
    }
    blocks = [
        f"layer{stage}.{block}"
        for stage in STAGES
        for block in range(block_count(renamed, f"layer{stage}"))
    ]
    return RemappedState(layout, renamed, {**arguments, **adapters_of_blocks(renamed, blocks)})


def renamed_state(state: Mapping[str, Tensor], layout: str, prefix: str) -> dict[str, Tensor]:
    """A state dict under mmaction2's names of a SlowFast, heads under `head.`."""
    own = without_prefix(state, prefix)
    if layout == "mmaction":
        return own
    if layout == "pytorchvideo":
        return {_from_pytorchvideo(key): value for key, value in own.items()}
    if layout == "caffe2":
        own = {_from_caffe2(k): v for k, v in own.items() if not CAFFE2_TRAINING.match(k)}
    return {_from_pyslowfast(key): value for key, value in own.items()}


def temporal_blocks(state: Mapping[str, Tensor], path: str) -> list[int]:
    """Per stage, how many blocks span more than one frame."""
    found = []
    for stage in STAGES:
        count = block_count(state, f"{path}layer{stage}")
        kernels = [state.get(f"{path}layer{stage}.{j}.conv1.conv.weight") for j in range(count)]
        found.append(sum(kernel is not None and kernel.shape[2] > 1 for kernel in kernels))
    return found


def _from_pyslowfast(name: str) -> str:
    """`s1` is the stem, `sK` stage K - 1; `branch2` the residual branch, `branch1` the shortcut."""
    name = re.sub(r"^head\.projection\.", "head.", name)
    if match := re.match(r"s1\.pathway([01])_stem\.(.*)", name):
        return f"{PATHS[match[1]]}.conv1.{match[2]}"
    if match := re.match(r"s(\d)_fuse\.(conv_f2s|bn)\.(.*)", name):
        part = "conv" if match[2] == "conv_f2s" else "bn"
        return f"slow_path.{_place(int(match[1]) - 1)}_lateral.{part}.{match[3]}"
    if match := re.match(r"s(\d)\.pathway([01])_res(\d+)\.(.*)", name):
        rest = re.sub(r"^branch2\.([abc])_bn\.", lambda m: f"conv{ABC[m[1]]}.bn.", match[4])
        rest = re.sub(r"^branch2\.([abc])\.", lambda m: f"conv{ABC[m[1]]}.conv.", rest)
        rest = re.sub(r"^branch1_bn\.", "downsample.bn.", rest)
        rest = re.sub(r"^branch1\.", "downsample.conv.", rest)
        return f"{PATHS[match[2]]}.layer{int(match[1]) - 1}.{match[3]}.{rest}"
    return name


def _from_pytorchvideo(name: str) -> str:
    """`blocks.0` is the stem, `blocks.K` stage K; a network of one pathway does not number it."""
    if match := re.match(r"blocks\.[56]\.proj\.(.*)", name):
        return f"head.{match[1]}"
    if match := re.match(r"blocks\.0\.(?:multipathway_blocks\.([01])\.)?(conv|norm)\.(.*)", name):
        part = "conv" if match[2] == "conv" else "bn"
        return f"{PATHS[match[1] or '0']}.conv1.{part}.{match[3]}"
    if match := re.match(
        r"blocks\.(\d)\.multipathway_fusion\.(conv_fast_to_slow|norm)\.(.*)", name
    ):
        part = "bn" if match[2] == "norm" else "conv"
        return f"slow_path.{_place(int(match[1]))}_lateral.{part}.{match[3]}"
    pattern = r"blocks\.(\d)\.(?:multipathway_blocks\.([01])\.)?res_blocks\.(\d+)\.(.*)"
    if match := re.match(pattern, name):
        rest = re.sub(r"^branch2\.norm_([abc])\.", lambda m: f"conv{ABC[m[1]]}.bn.", match[4])
        rest = re.sub(r"^branch2\.conv_([abc])\.", lambda m: f"conv{ABC[m[1]]}.conv.", rest)
        rest = re.sub(r"^branch1_norm\.", "downsample.bn.", rest)
        rest = re.sub(r"^branch1_conv\.", "downsample.conv.", rest)
        return f"{PATHS[match[2] or '0']}.layer{match[1]}.{match[3]}.{rest}"
    return name


def _from_caffe2(name: str) -> str:
    """Names of the model zoo's older files to PySlowFast's; `t_` marks the fast pathway."""
    path = "pathway1" if name.startswith("t_") else "pathway0"
    plain = name.removeprefix("t_")
    if match := re.fullmatch(r"pred_([wb])", plain):
        return "head.projection." + ("weight" if match[1] == "w" else "bias")
    match = re.fullmatch(r"(.*?)(?:_w|_bn_(s|b|rm|riv))", plain)
    if not match:
        return name
    place, norm = match[1], match[2]
    leaf = CAFFE2_NORM[norm] if norm else "weight"
    if place in ("conv1", "res_conv1"):
        return f"s1.{path}_stem.{'bn' if norm else 'conv'}.{leaf}"
    if join := re.fullmatch(r"(?:pool1|res(\d)_\d+_branch2c_bn)_subsample", place):
        return f"s{join[1] or 1}_fuse.{'bn' if norm else 'conv_f2s'}.{leaf}"
    if inner := re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])", place):
        branch = inner[3] if inner[3] == "1" else f"2.{inner[3][1]}"
        return f"s{inner[1]}.{path}_res{inner[2]}.branch{branch}{'_bn' if norm else ''}.{leaf}"
    return name


def _place(stage: int) -> str:
    """The stem is 0."""
    return f"layer{stage}" if stage else "conv1"
