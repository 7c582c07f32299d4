"""A small TriDet as its release would save it, and a store and labels it fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.tridet import TriDet, TriDetConfig
from tests.unit.pipeline.tiny_store import CHANNELS, CLIP, STRIDE, make_store

CLASSES = 2
TABLES: dict[str, Any] = {
    "dataset": {
        "num_classes": CLASSES,
        "input_dim": CHANNELS,
        "max_seq_len": 32,
        "feat_stride": STRIDE,
        "num_frames": CLIP,
        "default_fps": None,
        "trunc_thresh": 0.5,
        "crop_ratio": [0.9, 1.0],
    },
    "model": {
        "backbone_type": "SGP",
        "backbone_arch": [1, 1, 2],
        "regression_range": [[0, 4], [4, 8], [8, 10000]],
        "n_sgp_win_size": 3,
        "k": 1.5,
        "embd_dim": 16,
        "fpn_dim": 16,
        "head_dim": 8,
        "head_num_layers": 2,
        "sgp_mlp_dim": 24,
        "num_bins": 4,
        "max_buffer_len_factor": 4.0,
        "use_trident_head": True,
    },
    "train_cfg": {"init_loss_norm": 100},
    "test_cfg": {
        "pre_nms_topk": 50,
        "min_score": 0.001,
        "max_seg_num": 20,
        "nms_sigma": "5e-1",  # as PyYAML reads 5e-1
    },
}
CONFIG = TriDetConfig(
    in_channels=CHANNELS,
    num_classes=CLASSES,
    window_len=32,
    embed_layers=1,
    stem_layers=1,
    branch_layers=2,
    embed_dim=16,
    neck_dim=16,
    head_dim=8,
    head_layers=2,
    mlp_dim=24,
    num_bins=4,
    sgp_windows=3,
    sgp_factor=1.5,
    max_buffer_len_factor=4.0,
    regression_ranges=((0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)),
)


def small_tridet(seed: int = 0) -> TriDet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TriDet(CONFIG, DecodeConfig())
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model.eval()


def official_state(seed: int = 0) -> dict[str, Tensor]:
    """Names of the release: what is in our mixer is in its block."""
    state = small_tridet(seed).state_dict()
    return {name.replace(".mixer.", "."): value for name, value in state.items()}


def training_state() -> dict[str, Any]:
    """Averaged weights of seed 0, plain ones of seed 1."""
    return {
        "epoch": 7,
        "state_dict_ema": {f"module.{k}": v for k, v in official_state(0).items()},
        "state_dict": {f"module.{k}": v for k, v in official_state(1).items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
    }


def write_files(folder: Path) -> None:
    """epoch_007.pth.tar, official.yaml, store.zarr, labels.txt and annotations.json."""
    torch.save(training_state(), folder / "epoch_007.pth.tar")
    (folder / "official.yaml").write_text(yaml.safe_dump(TABLES), encoding="utf-8")
    (folder / "labels.txt").write_text("jump\nrun\n", encoding="utf-8")
    make_store(folder / "store.zarr", videos=2)
    database = {
        f"video {i}": {
            "subset": "training" if i < 4 else "testing",
            "annotations": [{"segment": [1.0, 2.0], "label": ["walk", "run"][i % 2]}],
        }
        for i in range(6)
    }
    for video in database.values():
        for action in video["annotations"]:
            action["label_id"] = ["run", "walk"].index(action["label"])
    text = json.dumps({"database": database})
    (folder / "annotations.json").write_text(text, encoding="utf-8")
