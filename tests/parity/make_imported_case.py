"""Make the committed case of an imported checkpoint: python -m tests.parity.make_imported_case.

A small ActionFormer with the convolutional encoder under the official names, and the detections of
two videos in seconds, computed step by step in float64 by loops that share no code with tadpipe.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "own" / "imported" / "actionformer_conv"
Array = np.ndarray[Any, Any]
WIDTH, INPUT, CLASSES, WINDOW = 8, 6, 3, 16
FPS, STRIDE, SPAN = 25.0, 4, 16
LENGTHS = (16, 11)
TEST = {
    "pre_nms_thresh": 0.05,
    "pre_nms_topk": 30,
    "iou_threshold": 0.1,
    "min_score": 0.02,
    "max_seg_num": 15,
    "nms_method": "soft",
    "nms_sigma": 0.5,
    "duration_thresh": 0.05,
    "multiclass_nms": True,
    "voting_thresh": 0.0,
}
MODEL = {
    "backbone_type": "conv",
    "fpn_type": "identity",
    "backbone_arch": [1, 1, 1],
    "scale_factor": 2,
    "regression_range": [[0, 4], [4, 10000]],
    "n_head": 2,
    "n_mha_win_size": -1,
    "embd_kernel_size": 3,
    "embd_dim": WIDTH,
    "embd_with_ln": False,
    "fpn_dim": WIDTH,
    "fpn_with_ln": False,
    "fpn_start_level": 0,
    "head_dim": WIDTH,
    "head_kernel_size": 3,
    "head_num_layers": 2,
    "head_with_ln": False,
    "max_buffer_len_factor": 2.0,
    "use_abs_pe": False,
    "use_rel_pe": False,
    "input_dim": INPUT,
    "num_classes": CLASSES,
    "max_seq_len": WINDOW,
    "train_cfg": {"droppath": 0.1, "init_loss_norm": 100},
    "test_cfg": TEST,
}


def main() -> None:
    random = np.random.default_rng(5)
    weights = draw_weights(random)
    arrays = {}
    for number, length in enumerate(LENGTHS):
        feats = random.normal(0, 1, (INPUT, length)).astype(np.float32)
        rows = detections(feats.astype(np.float64), weights)
        arrays[f"feats_{number}"] = feats
        for name, column in zip(("segments", "scores", "labels"), rows, strict=True):
            arrays[f"{name}_{number}"] = column
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FOLDER / "io.npz", **arrays)
    save_file(weights, FOLDER / "weights.safetensors")
    config = {
        "source": "recomputed in float64 by tests/parity/make_imported_case.py",
        "detector": "actionformer",
        "config": {"model": MODEL},
        "fps": FPS,
        "stride": STRIDE,
        "span": SPAN,
        "durations": [duration_sec(length) for length in LENGTHS],
    }
    (FOLDER / "case.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def duration_sec(length: int) -> float:
    """Up to the end of the last snippet."""
    return ((length - 1) * STRIDE + SPAN) / FPS


def draw_weights(random: np.random.Generator) -> dict[str, Array]:
    weights: dict[str, Array] = {}

    def conv(name: str, outputs: int, inputs: int, kernel: int = 3, bias: float = 0.0) -> None:
        scale = 1.2 / math.sqrt(inputs * kernel)
        drawn = random.normal(0, scale, (outputs, inputs, kernel))
        weights[f"{name}.conv.weight"] = drawn.astype(np.float32)
        weights[f"{name}.conv.bias"] = random.normal(bias, 0.1, outputs).astype(np.float32)

    conv("backbone.embd.0", WIDTH, INPUT)
    for block in ("backbone.stem.0", "backbone.branch.0"):
        conv(f"{block}.conv1", 2 * WIDTH, WIDTH)
        conv(f"{block}.conv2", WIDTH, 2 * WIDTH)
    conv("backbone.branch.0.downsample", WIDTH, WIDTH, kernel=1)
    for head, last, outputs in (
        ("cls_head", "cls_head.cls_head", CLASSES),
        ("reg_head", "reg_head.offset_head", 2),
    ):
        conv(f"{head}.head.0", WIDTH, WIDTH)
        conv(last, outputs, WIDTH, bias=-1.0 if head == "cls_head" else 1.0)
    for level, scale in enumerate((1.3, 0.8)):
        weights[f"reg_head.scale.{level}.scale"] = np.array(scale, np.float32)
    return weights


def convolve(x: Array, mask: Array, weights: dict[str, Array], name: str, step: int = 1) -> Array:
    """Output by output; steps behind the end of the video become 0."""
    kernel, bias = weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]
    half = kernel.shape[2] // 2
    out = np.zeros((len(kernel), x.shape[1] // step))
    for t in range(out.shape[1]):
        for i in range(kernel.shape[2]):
            at = t * step + i - half
            if 0 <= at < x.shape[1]:
                out[:, t] += kernel[:, :, i].astype(np.float64) @ x[:, at]
        out[:, t] = (out[:, t] + bias) * mask[t * step]
    return out


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def detections(feats: Array, w: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Segments in seconds, scores and class numbers, by falling score."""
    length = feats.shape[1]
    x = np.zeros((INPUT, WINDOW))
    x[:, :length] = feats
    mask = np.arange(WINDOW) < length
    x = relu(convolve(x, mask, w, "backbone.embd.0"))
    levels = []
    for block, step in (("backbone.stem.0", 1), ("backbone.branch.0", 2)):
        inner = relu(convolve(x, mask, w, f"{block}.conv1", step))
        past = x if step == 1 else convolve(x, mask, w, f"{block}.downsample", step)
        mask = mask[::step]
        x = relu(convolve(inner, mask, w, f"{block}.conv2") + past)
        levels.append((x, mask))
    rows = []
    for level, (x, mask) in enumerate(levels):
        rows += candidates(level, x, mask, w)
    kept = sorted(soft_nms(rows), key=lambda row: -row[2])[: TEST["max_seg_num"]]
    seconds = [
        [min(max((p * STRIDE + SPAN / 2) / FPS, 0.0), duration_sec(length)) for p in row[:2]]
        for row in kept
    ]
    return (
        np.array(seconds).reshape(-1, 2),
        np.array([row[2] for row in kept]),
        np.array([row[3] for row in kept], np.int64),
    )


Row = tuple[float, float, float, int]  # start and end on the grid, score, class


def candidates(level: int, x: Array, mask: Array, w: dict[str, Array]) -> list[Row]:
    inner = relu(convolve(x, mask, w, "cls_head.head.0"))
    logits = convolve(inner, mask, w, "cls_head.cls_head")
    inner = relu(convolve(x, mask, w, "reg_head.head.0"))
    scale = float(w[f"reg_head.scale.{level}.scale"])
    offsets = relu(scale * convolve(inner, mask, w, "reg_head.offset_head"))
    stride = 2**level
    rows = []
    for t in range(x.shape[1]):
        for label in range(CLASSES):
            score = float(mask[t]) / (1 + math.exp(-logits[label, t]))
            start, end = (t - offsets[0, t]) * stride, (t + offsets[1, t]) * stride
            if score > TEST["pre_nms_thresh"]:
                rows.append((start, end, score, label))
    rows = sorted(rows, key=lambda row: -row[2])[: TEST["pre_nms_topk"]]
    return [row for row in rows if row[1] - row[0] > TEST["duration_thresh"]]


def soft_nms(rows: list[Row]) -> list[Row]:
    """Class by class: the best stays, the scores of those that overlap fall."""
    kept = []
    for label in range(CLASSES):
        left = [row for row in rows if row[3] == label]
        while left:
            best = max(left, key=lambda row: row[2])
            left.remove(best)
            kept.append(best)
            decayed = [decay(row, best) for row in left]
            left = [row for row in decayed if row[2] >= TEST["min_score"]]
    return kept


def decay(row: Row, best: Row) -> Row:
    inter = max(0.0, min(row[1], best[1]) - max(row[0], best[0]) + 1e-6)
    tiou = inter / ((row[1] - row[0] + 1e-6) + (best[1] - best[0] + 1e-6) - inter)
    return (row[0], row[1], row[2] * math.exp(-(tiou**2) / TEST["nms_sigma"]), row[3])


if __name__ == "__main__":
    main()
