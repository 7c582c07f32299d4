"""The key layouts in which VideoMAE weights are published, renamed to the official one (ours).

Layouts: official (VideoMAE, VideoMAE V2), Hugging Face (`VideoMAEForVideoClassification`) and
mmaction2 with OpenTAD. `remap_official_keys` tells them apart by the name of the patch embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tadpipe.backbones.protocol import RemappedState
from tadpipe.backbones.tia import AdapterConfig
from tadpipe.errors import CheckpointError

HUGGINGFACE_FC_NORM_EPS = 1e-5  # its fc_norm is built with torch's default, whatever the config

# the patch embedding's weight under each layout; what stands before it is the file's prefix
ANCHORS = {
    "official": "patch_embed.proj.weight",
    "mmaction": "patch_embed.projection.weight",
    "huggingface": "embeddings.patch_embeddings.projection.weight",
}
PREFIXES = {
    "official": r"(module\.)?(model\.|backbone\.)?",
    "mmaction": r"(module\.)?((backbone\.)?model\.)?(backbone\.)?",
    "huggingface": r"(module\.)?(videomae\.)?",
}
PRETRAINING = re.compile(
    r"(module\.)?(decoder\.|encoder_to_decoder\.|encoder\.(patch_embed|blocks|norm)\.|mask_token$)"
)
DETECTOR = re.compile(r"(module\.)?backbone\.model\.backbone\.")  # prefix in a whole detector

ADAPTER = re.compile(r"(blocks|ladders\.adapters)\.(\d+)\.(?:adapter\.)?down_proj\.weight")

HUGGINGFACE_NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
HUGGINGFACE_BIASES = {  # as in files on the hub, and as transformers 5 names them
    "attention.attention.q_bias": "attn.q_bias",
    "attention.attention.v_bias": "attn.v_bias",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
}
MMACTION_NAMES = {"mlp.layers.0.0": "mlp.fc1", "mlp.layers.1": "mlp.fc2"}


def remap_official_keys(state: Mapping[str, Tensor]) -> RemappedState:
    """Rename a VideoMAE state dict of any published layout to our (the official) names.

    Returns:
        The renamed state, with the head under `head.*` if there is one, and the builder arguments
        that the layout or the keys imply (`fc_norm_eps`, `init_values`, `final_norm`), with the
        adapters under "adapters" if there are any. Unknown keys are kept under their own names, so
        that a strict load can list them.
    Raises:
        CheckpointError: not a VideoMAE, a pretraining checkpoint, or one without `fc_norm`.
    """
    refuse_pretraining(state)
    layout, prefix = detect_layout(state)
    if layout == "official":
        renamed = {key.removeprefix(prefix): value for key, value in state.items()}
    elif layout == "mmaction":
        renamed = _from_mmaction(state, prefix)
    else:
        renamed = _from_huggingface(state)
    adapters = adapters_in(renamed)
    has_norm = "fc_norm.weight" in renamed
    if not has_norm and (adapters is None or adapters.kind != "ladder"):
        raise CheckpointError(
            "These VideoMAE weights have no fc_norm, the norm behind the pooled features.",
            f"{layout} layout, {len(state)} entries",
            "A bare `VideoMAEModel` lacks it; its mean token is not the official feature. "
            "Take the fine-tuned classification model instead "
            "(`VideoMAEForVideoClassification`).",
        )
    arguments: dict[str, Any] = {}
    if adapters is not None:
        arguments["adapters"] = adapters
    if not has_norm:
        arguments["final_norm"] = False
    if layout == "huggingface":
        arguments["fc_norm_eps"] = HUGGINGFACE_FC_NORM_EPS
    if "blocks.0.gamma_1" in renamed:
        arguments["init_values"] = 1.0  # only "above 0" matters: the values come from the file
    return RemappedState(layout, renamed, arguments)


def adapters_in(state: Mapping[str, Tensor]) -> AdapterConfig | None:
    """The adapters whose weights are in a renamed state, by their keys and shapes.

    AdaTAD's release stores neither the dilation nor whether z is kept beside its convolved form;
    both are taken as published (1, kept). A ladder numbers its adapters by position and stands
    beside the last blocks.
    """
    downs = {
        (match[1], int(match[2])): value.shape  # [H, C]
        for key, value in state.items()
        if (match := ADAPTER.fullmatch(key)) and value.ndim == 2
    }
    if not downs:
        return None
    ladder = any(owner != "blocks" for owner, _ in downs)
    indices = sorted(index for _, index in downs)
    if ladder:
        depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        indices = [depth - len(indices) + index for index in indices]
    hidden, channels = next(iter(downs.values()))
    taps = [value.shape[2] for key, value in state.items() if key.endswith(".dwconv.weight")]
    return AdapterConfig(
        kind="ladder" if ladder else ("tia" if taps else "plain"),
        ratio=hidden / channels,
        kernel=taps[0] if taps else 3,
        blocks=tuple(indices),
    )


def refuse_pretraining(state: Mapping[str, Tensor]) -> None:
    """Raise if the weights are an encoder with the decoder that reconstructs masked pixels."""
    found = sorted(key for key in state if PRETRAINING.match(key))
    if found:
        raise CheckpointError(
            "These are pretraining weights (masked autoencoder), not a fine-tuned model.",
            f"found {', '.join(found[:3])}" + (", ..." if len(found) > 3 else ""),
            "They have no fc_norm and their features were never trained to tell actions apart. "
            "Use a checkpoint fine-tuned for classification (names with 'finetuned' or 'ft').",
        )


def detect_layout(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Name of the layout and the prefix that stands before the backbone's keys."""
    for layout, anchor in ANCHORS.items():
        for key in state:
            prefix = key.removesuffix(anchor)
            if key.endswith(anchor) and re.fullmatch(PREFIXES[layout], prefix):
                return layout, prefix
    raise CheckpointError(
        "These weights are not a VideoMAE in a known key layout.",
        f"{len(state)} entries, the first are {', '.join(sorted(state)[:4])}",
        f"A VideoMAE has one of {', '.join(ANCHORS.values())} (after a known prefix).",
    )


def _from_mmaction(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """mmaction2 and OpenTAD; they keep the position table, which the loader compares with ours.

    In the checkpoint of a whole detector its other parts (neck, heads) are left out.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if DETECTOR.fullmatch(prefix) and not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        name = re.sub(r"^(module\.)?cls_head\.fc_cls\.", "head.", name)
        name = re.sub(r"^patch_embed\.projection\.", "patch_embed.proj.", name)
        name = re.sub(r"^pos_embed$", "pos_table", name)
        for theirs, ours in MMACTION_NAMES.items():
            name = re.sub(rf"^(blocks\.\d+\.){re.escape(theirs)}\.", rf"\g<1>{ours}.", name)
        renamed[name] = value
    return renamed


def _from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face; separate query, key and value weights are stacked into one `qkv` [3D, D]."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(r"^module\.", "", key).removeprefix("videomae.")
        name = re.sub(r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj.", name)
        name = re.sub(r"^classifier\.", "head.", name)
        name = re.sub(r"^encoder\.layer\.", "blocks.", name)
        for theirs, ours in HUGGINGFACE_NAMES.items():
            name = re.sub(rf"^(blocks\.\d+\.){re.escape(theirs)}\.", rf"\g<1>{ours}.", name)
        for theirs, ours in HUGGINGFACE_BIASES.items():
            name = re.sub(rf"^(blocks\.\d+\.){re.escape(theirs)}$", rf"\g<1>{ours}", name)
        renamed[name] = value
    for index in {name.split(".")[1] for name in renamed if name.startswith("blocks.")}:
        theirs = f"blocks.{index}.attention.attention."
        parts = [f"{theirs}{part}.weight" for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            stacked = torch.cat([renamed.pop(part) for part in parts])
            renamed[f"blocks.{index}.attn.qkv.weight"] = stacked
    return renamed
