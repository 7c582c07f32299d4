"""Cases of the kind `videomae`: official, Hugging Face, and one model under three key layouts."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.protocol import RemappedState
from tadpipe.backbones.videomae import NORM_EPS, VideoMAE, remap_official_keys
from tadpipe.config import PixelRecipe
from tests.parity.case import Case

GRAD_NORM_RTOL = 1e-3  # where the case names none
LAYOUT_FILES = {
    "official": "official.safetensors",
    "mmaction": "mmaction.safetensors",
    "huggingface": "hf.safetensors",
}


class UnsupportedCaseError(ValueError):
    """A switch of the case that the model does not have."""


def run(case: Case) -> None:
    if "pixel_values" in case:
        run_huggingface(case)
    elif any((case.path / file).exists() for file in LAYOUT_FILES.values()):
        run_layouts(case)
    else:
        run_official(case)


def run_official(case: Case) -> None:
    config = case.config["config"]
    remapped = remap_official_keys(case.weights())
    case.claim("layout", remapped.layout in ("official", "mmaction"), remapped.layout)
    model = load(official_model(config, remapped), remapped)
    clips = case.tensor("input").requires_grad_(True)
    traced = trace(model)
    features = model(clips)
    logits = model.head(features)
    loss = logits.square().mean() + features.square().mean()
    loss.backward()

    tolerance = tolerances(case)
    ours = {
        "pos_embed": model.pos_table,
        "patch_embed_out": traced["patch_embed"],
        "features": features,
        "logits": logits,
        "loss": loss,
        **{f"block_{i}": traced[f"blocks.{i}"] for i in range(len(model.blocks))},
    }
    for name, value in ours.items():
        if name in case:
            case.check(name, value, **tolerance)
    if "feat_map" in case:
        case.check("feat_map", model.feature_map(clips.detach()), **tolerance)
    rtol = grad_norm_rtol(case)
    if "grad_input_norm" in case:
        assert clips.grad is not None
        case.check("grad_input_norm", clips.grad.norm(), rtol=rtol)
    compare_gradients(case, model, rtol)


def run_huggingface(case: Case) -> None:
    config = case.config["config"]
    for switch, supported in (("use_mean_pooling", True), ("hidden_act", "gelu")):
        if config.get(switch, supported) != supported:
            raise UnsupportedCaseError(f"{switch} = {config[switch]}")
    clips = case.tensor("pixel_values").transpose(1, 2)  # time before channel in this layout
    tolerance = tolerances(case)
    for file in case.config["weights_files"]:
        remapped = remap_official_keys(case.weights(file))
        case.claim(f"{file}: layout", remapped.layout == "huggingface", remapped.layout)
        stated = float(case.config.get("fc_norm_eps", remapped.arguments["fc_norm_eps"]))
        case.claim(f"{file}: fc_norm eps", remapped.arguments["fc_norm_eps"] == stated)
        model = load(huggingface_model(config, remapped), remapped)
        traced = trace(model)
        with torch.no_grad():
            features = model(clips)
            tokens = model.tokens(clips)
            logits = model.head(features)
        ours = {
            "hidden_0": traced["patch_embed"] + model.pos_table,
            **{f"hidden_{i + 1}": traced[f"blocks.{i}"] for i in range(len(model.blocks))},
            "last_hidden_state": tokens,
            "mean_pooled": tokens.mean(dim=1),
            "features": features,
            "logits": logits,
        }
        for name, value in ours.items():
            if name in case:
                case.check(name, value, label=f"{file}: {name}", **tolerance)


def run_layouts(case: Case) -> None:
    config = case.config["config"]
    clips = case.tensor("input")
    tolerance = tolerances(case)
    for layout, file in LAYOUT_FILES.items():
        if not (case.path / file).exists():
            continue
        remapped = remap_official_keys(case.weights(file))
        case.claim(f"{file}: layout", remapped.layout == layout, remapped.layout)
        model = load(official_model(config, remapped), remapped)
        model.fc_norm.eps = norm_eps(config)  # for the comparison across layouts
        with torch.no_grad():
            ours = {
                "features": model(clips),
                "logits": model.classify(clips),
                "feat_map": model.feature_map(clips),
            }
            for name, value in ours.items():
                if name in case:
                    case.check(name, value, label=f"{file}: {name}", **tolerance)
            if layout == "huggingface" and "hf_logits" in case:
                model.fc_norm.eps = float(remapped.arguments["fc_norm_eps"])
                case.check("hf_logits", model.classify(clips), **tolerance)


def official_model(config: dict[str, Any], remapped: RemappedState) -> VideoMAE:
    """Our model from an official constructor's arguments."""
    for switch, supported in (("use_learnable_pos_emb", False), ("use_mean_pooling", True)):
        if config.get(switch, supported) != supported:
            raise UnsupportedCaseError(f"{switch} = {config[switch]}")
    dim = int(config["embed_dim"])
    eps = norm_eps(config)
    return VideoMAE(
        name="parity",
        pixels=PixelRecipe(),
        image_size=pair(config["img_size"]),
        patch_size=int(config["patch_size"]),
        dim=dim,
        depth=int(config["depth"]),
        heads=int(config["num_heads"]),
        mlp_dim=int(dim * config["mlp_ratio"]),
        clip_len=int(config.get("all_frames", config.get("num_frames", 16))),
        tubelet_len=int(config.get("tubelet_size", 2)),
        num_classes=int(config.get("num_classes", 0)),
        qkv_bias=bool(config.get("qkv_bias", True)),
        init_values=float(config.get("init_values") or remapped.arguments.get("init_values", 0)),
        norm_eps=eps,
        fc_norm_eps=eps,
    )


def huggingface_model(config: dict[str, Any], remapped: RemappedState) -> VideoMAE:
    """Our model from a Hugging Face configuration; its fc_norm eps comes with the layout."""
    return VideoMAE(
        name="parity",
        pixels=PixelRecipe(),
        image_size=pair(config["image_size"]),
        patch_size=int(config["patch_size"]),
        dim=int(config["hidden_size"]),
        depth=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        mlp_dim=int(config["intermediate_size"]),
        clip_len=int(config.get("num_frames", 16)),
        tubelet_len=int(config.get("tubelet_size", 2)),
        num_classes=int(config.get("num_labels", 0)),
        qkv_bias=bool(config.get("qkv_bias", config.get("qv_bias", True))),
        norm_eps=float(config["layer_norm_eps"]),
        fc_norm_eps=float(remapped.arguments["fc_norm_eps"]),
    )


def load(model: VideoMAE, remapped: RemappedState) -> VideoMAE:
    """All of the file, head included, in evaluation mode."""
    load_strictly(model, remapped.state, remapped.layout, "")
    return model.eval()


def trace(model: VideoMAE) -> dict[str, Tensor]:
    """Outputs of the patch embedding and of each block, by module name."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    model.patch_embed.register_forward_hook(keep("patch_embed"))
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(keep(f"blocks.{index}"))
    return outputs


def compare_gradients(case: Case, model: VideoMAE, rtol: float) -> None:
    """L2 norms of the loss gradient per parameter; null = no gradient."""
    parameters = dict(model.named_parameters())
    stored = case.config.get("grad_norms_of_loss", {})
    case.claim("gradients: same parameters", set(stored) <= set(parameters))
    for name, norm in stored.items():
        if name in parameters:
            gradient = parameters[name].grad
            if norm is None:
                case.claim(f"grad {name}", gradient is None)
            else:
                ours = 0.0 if gradient is None else gradient.norm()
                case.compare(f"grad {name}", ours, norm, rtol=rtol)


def tolerances(case: Case) -> dict[str, float]:
    stated = case.config["tolerance"]
    return {"atol": float(stated["atol"]), "rtol": float(stated["rtol"])}


def grad_norm_rtol(case: Case) -> float:
    return float(case.config["tolerance"].get("grad_norm_rtol", GRAD_NORM_RTOL))


def norm_eps(config: dict[str, Any]) -> float:
    """Of an official configuration: a key of its own, or inside "LayerNorm eps=1e-6"."""
    stated = re.search(r"eps\s*=\s*([0-9.e+-]+)", str(config.get("norm_layer", "")))
    return float(config.get("eps", stated.group(1) if stated else NORM_EPS))


def pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
