"""Parity of DyFADet; the format of its cases is read by `unpadded_batch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tadpipe.detectors.dyfadet import Dyfadet, DyfadetConfig, remap_official_keys
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.protocol import AnchorFreeOutputs
from tests.parity.anchor_free_families import as_tuple
from tests.parity.case import Case
from tests.parity.unpadded_batch import UnpaddedFamily, plain_step
from tests.parity.unpadded_batch import run as run_unpadded

ACTIVATIONS = {"grelu": "gelu", "lrelu": "lrelu"}  # anything else is ReLU
GATES = {"GeReTanH": "geretanh", "ReTanH": "retanh", "ReLU": "relu", "Sigmoid": "sigmoid"}


def run(case: Case) -> None:
    """Every array of the case, those inside the dynamic heads included."""
    built: list[Dyfadet] = []

    def build(model: dict[str, Any], decode: DecodeConfig) -> Dyfadet:
        built.append(dyfadet(model, decode))
        return built[0]

    def raw(outputs: AnchorFreeOutputs, seen: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
        plain = {"cls_logits": outputs.logits, "offsets": [x[:, :, 0] for x in outputs.offsets]}
        return plain | inside_heads(built[0], seen["neck"], outputs.masks)

    run_unpadded(
        case,
        UnpaddedFamily(
            build=build,
            raw=raw,
            remap=remap_official_keys,
            points=lambda outputs: outputs,
            step=plain_step,
        ),
    )


@torch.no_grad()
def inside_heads(
    model: Dyfadet, features: list[Tensor], masks: list[Tensor]
) -> dict[str, Sequence[Tensor]]:
    """Outputs of the dynamic layers, and of the scale paths of the first class layer.

    The paths are run on all levels here; the model leaves out those nobody receives from.
    """
    found: dict[str, Sequence[Tensor]] = {}
    for name, trunk in (("cls", model.cls_trunk), ("reg", model.reg_trunk)):
        if trunk is None:
            continue
        levels = features
        for depth, layer in enumerate(trunk):
            if name == "cls" and depth == 0:
                for side, path in enumerate(layer.dynamic_convs):
                    found[f"cls_layer0_dfa{side}"] = [
                        path(x, mask) for x, mask in zip(levels, masks, strict=True)
                    ]
            levels = layer(levels, masks)
            found[f"{name}_layer{depth}"] = levels
    return found


def dyfadet(model: dict[str, Any], decode: DecodeConfig) -> Dyfadet:
    """The official `model` table in our words."""
    train, head = model["train_cfg"], model["dyn_head"]
    radius = train["center_sample_radius"] if train["center_sample"] == "radius" else 0.0
    embed, stem, branch = model["backbone_arch"]
    config = DyfadetConfig(
        in_channels=model["input_dim"],
        num_classes=model["num_classes"],
        window_len=model["max_seq_len"],
        backbone="conv" if model["backbone_type"] == "conv" else "dyne",
        embed_layers=embed,
        stem_layers=stem,
        branch_layers=branch,
        scale_factor=model["scale_factor"],
        embed_dim=model["embd_dim"],
        embed_kernel=model["embd_kernel_size"],
        embed_norm=model["embd_with_ln"],
        dyne_windows=as_tuple(model["n_encoder_win_size"]),
        dyne_factor=model["k"],
        mlp_dim=model["mlp_dim"],
        conv_init_std=model["init_conv_vars"],
        abs_pos=model["use_abs_pe"],
        neck=model["fpn_type"],
        neck_dim=model["fpn_dim"],
        neck_norm=model["fpn_with_ln"],
        regression_ranges=tuple(
            (float(low), float(high)) for low, high in model["regression_range"]
        ),
        dynamic_head=model["dyn_head_flag"],
        dynamic_type=head["dyn_type"],
        gate=GATES[head["type"]],  # type: ignore[arg-type]  # one of the literals
        gate_tau=head["tau"],
        head_activation=ACTIVATIONS.get(model["head_act"], "relu"),  # type: ignore[arg-type]
        head_dim=model["head_dim"],
        head_kernel=model["head_kernel_size"],
        head_layers=model["head_num_layers"],
        max_buffer_len_factor=model["max_buffer_len_factor"],
        centre_radius=radius,
        loss_weight=train["loss_weight"],
        prior_prob=train["cls_prior_prob"],
        empty_classes=tuple(train["head_empty_cls"]),
        label_smoothing=train["label_smoothing"],
        input_noise=model["input_noise"],
        drop_path=train["droppath"],
        init_loss_norm=train["init_loss_norm"],
    )
    return Dyfadet(config, decode)
