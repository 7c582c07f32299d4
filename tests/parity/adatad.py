"""Cases of the kind `adatad`: adapters alone, and backbones with them from frames to gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.protocol import RemappedState
from tadpipe.backbones.representation import as_clips, frame_features
from tadpipe.backbones.tia import (
    AdapterConfig,
    PlainAdapter,
    TemporalInformativeAdapter,
    add_adapters,
)
from tadpipe.backbones.tuning import set_tuning
from tadpipe.backbones.videomae import VideoMAE, remap_official_keys
from tadpipe.config import PixelRecipe
from tests.parity.case import Case
from tests.parity.videomae import NORM_EPS, UnsupportedCaseError, grad_norm_rtol, pair, tolerances

MEAN = (123.675, 116.28, 103.53)  # ImageNet, 0..255
STD = (58.395, 57.12, 57.375)
UNUSED = "fc_norm."  # the release lists it among what trains, but nothing reads it


def run(case: Case) -> None:
    if "frames_uint8" in case:
        run_backbone(case)
    else:
        run_modules(case)


# --- adapters alone ----------------------------------------------------------------------------


def run_modules(case: Case) -> None:
    config = case.config["config"]
    x = case.tensor("x")
    dim, ratio = int(config["embed_dims"]), float(config["mlp_ratio"])
    window = (-1, int(config["temporal_size"]), int(config["h"]) * int(config["w"]), dim)
    kernel, dilation = int(config["kernel_size"]), int(config["dilation"])
    tia = TemporalInformativeAdapter(dim, ratio=ratio, kernel=kernel, dilation=dilation)
    beside = TemporalInformativeAdapter(
        dim, ratio=ratio, kernel=kernel, dilation=dilation, skip=False
    )
    plain = PlainAdapter(dim, ratio=ratio)
    check_initial_values(case, tia)
    for name, file, module in (
        ("tia", "tia.safetensors", tia),
        ("ladder", "tia.safetensors", beside),
        ("plain", "plain.safetensors", plain),
    ):
        load_strictly(module, case.weights(file), file, "")
        case.claim(f"{name}: strict load", True)
        with torch.no_grad():
            case.check(name, module(x.reshape(window)).reshape(x.shape), **tolerances(case))


def check_initial_values(case: Case, tia: TemporalInformativeAdapter) -> None:
    """Zeros and gamma exactly; the stored standard deviations are one random draw."""
    stored = case.config["initial_values"]
    case.compare("up_proj weight", tia.up_proj.weight.abs().max(), stored["up_proj_weight_absmax"])
    case.compare("up_proj bias", tia.up_proj.bias.abs().max(), stored["up_proj_bias_absmax"])
    case.compare("gamma", tia.gamma.item(), stored["gamma"])
    for name, weight in (
        ("down_std", tia.down_proj.weight),
        ("dwconv_std", tia.dwconv.weight),
        ("conv_std", tia.conv.weight),
    ):
        case.compare(name, weight.std(), stored[name], rtol=0.6)


# --- backbones ---------------------------------------------------------------------------------


def run_backbone(case: Case) -> None:
    remapped = remap_official_keys(case.weights())
    adapters = remapped.arguments.get("adapters", AdapterConfig(kind="none"))
    model = build(case, remapped, adapters)
    load_strictly(model, remapped.state, str(case.path), "")
    case.claim("strict load", True)
    set_tuning(model, "full" if adapters.kind == "none" else "adapter", representation="frame")
    model.train()
    compare_trained(case, model)

    config = case.config["config"]
    frames = normalised(case.tensor("frames_uint8"))
    mask = case.tensor("masks")
    traced = trace(model)
    clips, clips_per_window = as_clips(frames, model.clip_len)
    with torch.no_grad():  # blocks that are recomputed are not called as a whole
        model.feature_map(clips, clips_per_window)
    case.claim("chunks", clips_per_window == int(config["chunk_num"]))
    tolerance = tolerances(case)
    case.check("feat_map", model.feature_map(clips, clips_per_window), **tolerance)
    for index in range(len(model.blocks)):
        case.check(f"block_{index}", traced[f"blocks.{index}"], **tolerance)
    features = frame_features(model, frames, int(config["window_size"]), mask)
    case.check("features", features, **tolerance)
    loss = (features * case.tensor("loss_weights")).sum()
    case.check("loss", loss, **tolerance)
    loss.backward()
    compare_gradients(case, model)
    if "border_probe_abs_change_per_step" in case:
        compare_border(case, model)


def build(case: Case, remapped: RemappedState, adapters: AdapterConfig) -> VideoMAE:
    """Our model from the release's constructor arguments and what its keys say."""
    config = case.config["config"]
    if config["norm_cfg"] != {"type": "LN", "eps": NORM_EPS}:
        raise UnsupportedCaseError(f"norm_cfg = {config['norm_cfg']}")
    dim = int(config["embed_dims"])
    model = VideoMAE(
        name="parity",
        pixels=PixelRecipe(),
        image_size=pair(config["img_size"]),
        patch_size=int(config["patch_size"]),
        dim=dim,
        depth=int(config["depth"]),
        heads=int(config["num_heads"]),
        mlp_dim=int(dim * config["mlp_ratio"]),
        clip_len=int(config["num_frames"]),
        qkv_bias=bool(config["qkv_bias"]),
        drop_path=float(config["drop_path_rate"]),
        init_values=float(remapped.arguments.get("init_values", 0)),
        final_norm=bool(remapped.arguments.get("final_norm", True)),
    )
    if adapters.kind != "none":
        case.claim("blocks with adapters", list(adapters.blocks) == config["adapter_index"])
        ratio = float(config.get("adapter_mlp_ratio", 0.25))
        case.claim("adapter width", int(dim * ratio) == int(dim * adapters.ratio))
    recompute = bool(config.get("with_cp", False))
    add_adapters(model, replace(adapters, checkpoint=recompute))
    return model


def normalised(frames: Tensor) -> Tensor:
    """uint8 [b, 1, 3, T, H, W] -> float32 [b, 3, T, H, W]."""
    mean = torch.tensor(MEAN)[:, None, None, None]
    std = torch.tensor(STD)[:, None, None, None]
    return (frames[:, 0].float() - mean) / std


def trace(model: VideoMAE) -> dict[str, Tensor]:
    """What leaves each block, its adapter included, in the first forward pass."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: object, _inputs: object, output: Tensor) -> None:
            outputs.setdefault(name, output)

        return hook

    for index, block in enumerate(model.blocks):
        block.register_forward_hook(keep(f"blocks.{index}"))
    return outputs


def compare_trained(case: Case, model: VideoMAE) -> None:
    named = case.config["trainable_parameters"]
    everything = case.config["grad_norms_of_loss"]
    stored = {renamed(name) for name in (everything if named == "all" else named)}
    ours = {name for name, p in model.named_parameters() if p.requires_grad}
    stored = {name for name in stored if not name.startswith(UNUSED)}
    case.claim("same parameters train", ours == stored, f"differ: {sorted(ours ^ stored)[:4]}")


def renamed(official: str) -> str:
    name = official.removeprefix("model.backbone.")
    for theirs, ours in (
        ("patch_embed.projection.", "patch_embed.proj."),
        ("mlp.layers.0.0.", "mlp.fc1."),
        ("mlp.layers.1.", "mlp.fc2."),
    ):
        name = name.replace(theirs, ours)
    return name


def compare_gradients(case: Case, model: VideoMAE) -> None:
    """L2 norms per parameter; null = no gradient at all."""
    parameters = dict(model.named_parameters())
    stored = {renamed(n): norm for n, norm in case.config["grad_norms_of_loss"].items()}
    case.claim("gradients: same parameters", set(stored) == set(parameters))
    for name, norm in stored.items():
        gradient = parameters[name].grad
        if norm is None:
            case.claim(f"grad {name} is None", gradient is None)
        else:
            ours = 0.0 if gradient is None else gradient.norm()
            case.compare(f"grad {name}", ours, norm, rtol=grad_norm_rtol(case))
    for claim, names in (
        ("frozen_block_grads_are_none", [n for n in parameters if n.startswith("blocks.")]),
        ("patch_embed_grads_are_none", [n for n in parameters if n.startswith("patch_embed.")]),
    ):
        if case.config[claim] is not None:
            still = [n for n in names if ".adapter." not in n]
            nones = all(parameters[n].grad is None for n in still)
            case.claim(claim, nones == case.config[claim])


@torch.no_grad()
def compare_border(case: Case, model: VideoMAE) -> None:
    """How far a change of the last tubelet of clip 0 reaches, with an all-true mask."""
    frames = case.tensor("frames_uint8")
    inverted = frames.clone()
    last = slice(model.clip_len - model.tubelet_len, model.clip_len)
    inverted[:, :, :, last] = 255 - frames[:, :, :, last]
    length = int(case.config["config"]["window_size"])
    before, after = (frame_features(model, normalised(x), length) for x in (frames, inverted))
    change = (after - before).abs().amax(dim=(0, 1))
    case.check("border_probe_abs_change_per_step", change, **tolerances(case))
