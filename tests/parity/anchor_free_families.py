"""What differs between one-stage detectors in the parity runner: one row of FAMILIES each.

A row says how the official `model` table becomes our config, how stored raw outputs are named, how
official keys are renamed and what a vote weighs in NMS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from tadpipe.detectors import actionformer as actionformer_module
from tadpipe.detectors import tridet as tridet_module
from tadpipe.detectors.actionformer import ActionFormer, ActionFormerConfig
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.protocol import AnchorFreeOutputs
from tadpipe.detectors.tridet import TriDet, TriDetConfig

# Common to the configurations of all official releases.
Official = dict[str, Any]


Raw = Callable[[Any, Mapping[str, Any]], dict[str, Sequence[Tensor]]]


class Family(NamedTuple):
    """What differs between detectors."""

    build: Callable[[Official, DecodeConfig], nn.Module]
    raw: Raw  # a_<name>_l<level>, from the outputs and what the model's children returned
    remap: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    vote_weight: Literal["score*tiou", "score"]


def actionformer(model: Official, decode: DecodeConfig) -> ActionFormer:
    """The official `model` table in our words."""
    train = model["train_cfg"]
    embed, stem, branch = model["backbone_arch"]
    config = ActionFormerConfig(
        in_channels=as_tuple(model["input_dim"]),
        num_classes=model["num_classes"],
        window_len=model["max_seq_len"],
        backbone="conv" if model["backbone_type"] == "conv" else "transformer",
        embed_layers=embed,
        stem_layers=stem,
        branch_layers=branch,
        scale_factor=model["scale_factor"],
        embed_dim=as_tuple(model["embd_dim"]),
        embed_kernel=model["embd_kernel_size"],
        embed_norm=model["embd_with_ln"],
        num_heads=model["n_head"],
        attention_windows=as_tuple(model["n_mha_win_size"]),
        abs_pos=model["use_abs_pe"],
        rel_pos=model["use_rel_pe"],
        neck=model["fpn_type"],
        neck_dim=model["fpn_dim"],
        neck_norm=model["fpn_with_ln"],
        start_level=model["fpn_start_level"],
        regression_ranges=ranges(model),
        head_dim=model["head_dim"],
        head_kernel=model["head_kernel_size"],
        head_layers=model["head_num_layers"],
        head_norm=model["head_with_ln"],
        max_buffer_len_factor=model["max_buffer_len_factor"],
        centre_radius=centre_radius(train),
        loss_weight=train["loss_weight"],
        prior_prob=train["cls_prior_prob"],
        empty_classes=tuple(train["head_empty_cls"]),
        label_smoothing=train["label_smoothing"],
        dropout=train["dropout"],
        drop_path=train["droppath"],
        init_loss_norm=train["init_loss_norm"],
    )
    return ActionFormer(config, decode)


def actionformer_raw(
    outputs: AnchorFreeOutputs, seen: Mapping[str, Any]
) -> dict[str, Sequence[Tensor]]:
    return {"cls_logits": outputs.logits, "offsets": [x[:, :, 0] for x in outputs.offsets]}


def tridet(model: Official, decode: DecodeConfig) -> TriDet:
    return TriDet(TriDetConfig(**sgp_family(model)), decode)


def sgp_family(model: Official) -> dict[str, Any]:
    """The `model` table of the TriDet release in our words."""
    train = model["train_cfg"]
    embed, stem, branch = model["backbone_arch"]
    return {
        "in_channels": model["input_dim"],
        "num_classes": model["num_classes"],
        "window_len": model["max_seq_len"],
        "backbone": "conv" if model["backbone_type"] == "conv" else "sgp",
        "embed_layers": embed,
        "stem_layers": stem,
        "branch_layers": branch,
        "scale_factor": model["scale_factor"],
        "embed_dim": model["embd_dim"],
        "embed_kernel": model["embd_kernel_size"],
        "embed_norm": model["embd_with_ln"],
        "sgp_windows": as_tuple(model["n_sgp_win_size"]),
        "sgp_factor": model["k"],
        "mlp_dim": model["sgp_mlp_dim"],
        "downsample": model["downsample_type"],
        "conv_init_std": model["init_conv_vars"],
        "abs_pos": model["use_abs_pe"],
        "neck": model["fpn_type"],
        "neck_dim": model["fpn_dim"],
        "neck_norm": model["fpn_with_ln"],
        "regression_ranges": ranges(model),
        "head_dim": model["head_dim"],
        "head_kernel": model["head_kernel_size"],
        "head_layers": model["head_num_layers"],
        "head_norm": model["head_with_ln"],
        "trident": model["use_trident_head"],
        "boundary_kernel": model["boudary_kernel_size"],
        "num_bins": model["num_bins"],
        "iou_power": model["iou_weight_power"],
        "max_buffer_len_factor": model["max_buffer_len_factor"],
        "centre_radius": centre_radius(train),
        "loss_weight": train["loss_weight"],
        "prior_prob": train["cls_prior_prob"],
        "empty_classes": tuple(train["head_empty_cls"]),
        "label_smoothing": train["label_smoothing"],
        "input_noise": model["input_noise"],
        "drop_path": train["droppath"],
        "init_loss_norm": train["init_loss_norm"],
    }


def tridet_raw(outputs: AnchorFreeOutputs, seen: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
    """Offsets are stored before the bins are decoded."""
    raw: dict[str, Sequence[Tensor]] = {
        "cls_logits": outputs.logits,
        "offsets": [x.transpose(1, 2) for x in seen["reg_head"]],
    }
    if "start_head" in seen:
        raw |= {"start_logits": seen["start_head"], "end_logits": seen["end_head"]}
    return raw


FAMILIES = {
    "actionformer": Family(
        actionformer, actionformer_raw, actionformer_module.remap_official_keys, "score*tiou"
    ),
    "tridet": Family(tridet, tridet_raw, tridet_module.remap_official_keys, "score"),
}


def centre_radius(train: Official) -> float:
    return train["center_sample_radius"] if train["center_sample"] == "radius" else 0.0


def ranges(model: Official) -> tuple[tuple[float, float], ...]:
    return tuple((float(low), float(high)) for low, high in model["regression_range"])


def as_tuple(value: int | Sequence[int]) -> int | tuple[int, ...]:
    return value if isinstance(value, int) else tuple(value)
