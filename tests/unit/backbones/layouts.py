"""One small VideoMAE under each published key layout, renamed here from the official names."""

from __future__ import annotations

import torch
from torch import Tensor

from tadpipe.backbones.videomae import VideoMAE
from tadpipe.config import PixelRecipe

DIM, DEPTH, CLASSES = 12, 2, 5


def small_model(*, num_classes: int = 0, init_values: float = 0.0) -> VideoMAE:
    return VideoMAE(
        name="small",
        pixels=PixelRecipe(size=16),
        image_size=16,
        patch_size=8,
        dim=DIM,
        depth=DEPTH,
        heads=3,
        mlp_dim=24,
        clip_len=4,
        num_classes=num_classes,
        init_values=init_values,
    )


def official_state(*, init_values: float = 0.0) -> dict[str, Tensor]:
    """Random weights of `small_model` with a head, official names."""
    shapes = small_model(num_classes=CLASSES, init_values=init_values).state_dict()
    generator = torch.Generator().manual_seed(11)
    return {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}


def huggingface_state(*, bias_names: str = "hub", prefix: str = "videomae.") -> dict[str, Tensor]:
    """The same weights as a Hugging Face classification model; bias names "hub" or "v5"."""
    official = official_state()
    layer = f"{prefix}encoder.layer"
    biases = {"hub": ("q_bias", "v_bias"), "v5": ("query.bias", "value.bias")}[bias_names]
    state = {
        "fc_norm.weight": official["fc_norm.weight"],
        "fc_norm.bias": official["fc_norm.bias"],
        "classifier.weight": official["head.weight"],
        "classifier.bias": official["head.bias"],
    }
    for kind in ("weight", "bias"):
        patches = f"{prefix}embeddings.patch_embeddings.projection.{kind}"
        state[patches] = official[f"patch_embed.proj.{kind}"]
    for i in range(DEPTH):
        inner = f"{layer}.{i}.attention.attention"
        for part, weight in zip(
            ("query", "key", "value"), official[f"blocks.{i}.attn.qkv.weight"].chunk(3), strict=True
        ):
            state[f"{inner}.{part}.weight"] = weight
        state[f"{inner}.{biases[0]}"] = official[f"blocks.{i}.attn.q_bias"]
        state[f"{inner}.{biases[1]}"] = official[f"blocks.{i}.attn.v_bias"]
        for theirs, ours in (
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            for kind in ("weight", "bias"):
                state[f"{layer}.{i}.{theirs}.{kind}"] = official[f"blocks.{i}.{ours}.{kind}"]
    return state


def mmaction_state(*, prefix: str = "backbone.", init_values: float = 0.0) -> dict[str, Tensor]:
    """The same weights as mmaction2 keeps them, with the position table and the head."""
    state = {f"{prefix}pos_embed": small_model().pos_table.clone()}
    for key, value in official_state(init_values=init_values).items():
        name = key.replace("patch_embed.proj.", "patch_embed.projection.")
        name = name.replace("mlp.fc1", "mlp.layers.0.0").replace("mlp.fc2", "mlp.layers.1")
        name = name.replace("head.", "cls_head.fc_cls.")
        state[name if name.startswith("cls_head") else f"{prefix}{name}"] = value
    return state
