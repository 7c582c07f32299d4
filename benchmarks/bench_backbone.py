"""Backbones: CPU seconds of one clip, SDPA attention against eager softmax, same weights.

The baseline is the attention every public VideoMAE release runs, written in a few lines: it builds
the N x N matrix of each head. Random weights, float32, inference mode, one clip per forward pass.
Run: python benchmarks/bench_backbone.py [--json PATH] [--repeats N] [--threads N] [--names A,B]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.videomae import VideoMAE
from tadpipe.backbones.videomae_blocks import Attention
from tadpipe.config import write_atomically

NAMES = ("videomae-tiny", "videomae-s", "videomae-b")


def eager_forward(layer: Attention, x: Tensor) -> Tensor:
    """Attention with softmax(q k^T) in memory."""
    batch, tokens, dim = x.shape
    bias = torch.cat((layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias))
    qkv = torch.nn.functional.linear(x, layer.qkv.weight, bias)
    qkv = qkv.reshape(batch, tokens, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv.unbind(0)
    scores = (queries * (dim // layer.heads) ** -0.5) @ keys.transpose(-2, -1)
    mixed = (scores.softmax(dim=-1) @ values).transpose(1, 2)
    return layer.proj(mixed.reshape(batch, tokens, dim))


def with_eager_attention(model: VideoMAE) -> VideoMAE:
    for block in model.blocks:
        block.attn.forward = MethodType(eager_forward, block.attn)
    return model


def measure(name: str, repeats: int) -> dict[str, Any]:
    ours = load_backbone(name, "random")
    eager = load_backbone(name, "random")
    assert isinstance(ours, VideoMAE)
    assert isinstance(eager, VideoMAE)
    with_eager_attention(eager)
    side = ours.pixels.size
    clip = torch.randn(1, 3, ours.clip_len, side, side)
    times: dict[str, list[float]] = {"sdpa": [], "eager": []}
    with torch.inference_mode():
        difference = float((ours(clip) - eager(clip)).abs().max())  # also the warm-up
        for _ in range(repeats):  # in turns, so that other load strikes both
            for key, model in (("sdpa", ours), ("eager", eager)):
                before = time.process_time()
                model(clip)
                times[key].append(time.process_time() - before)
    medians = {key: statistics.median(values) for key, values in times.items()}
    t, h, w = ours.table_grid
    return {
        "name": name,
        "tokens": t * h * w,
        "parameters": sum(p.numel() for p in ours.parameters()),
        "sdpa_sec": {"median": medians["sdpa"], "minimum": min(times["sdpa"])},
        "eager_sec": {"median": medians["eager"], "minimum": min(times["eager"])},
        "ratio_of_minima": min(times["eager"]) / min(times["sdpa"]),
        "clips_per_cpu_sec": 1 / medians["sdpa"],
        "max_abs_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--names", default=",".join(NAMES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [measure(name, arguments.repeats) for name in arguments.names.split(",")]
    report = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "rows": rows,
    }
    print(
        "| backbone | tokens | SDPA, CPU s per clip: median (min) | eager: median (min) "
        "| eager / SDPA (minima) | clips per CPU s | largest difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        sdpa, eager = row["sdpa_sec"], row["eager_sec"]
        print(
            f"| {row['name']} | {row['tokens']} | {sdpa['median']:.4f} ({sdpa['minimum']:.4f}) "
            f"| {eager['median']:.4f} ({eager['minimum']:.4f}) | {row['ratio_of_minima']:.2f} "
            f"| {row['clips_per_cpu_sec']:.2f} | {row['max_abs_difference']:.1e} |"
        )
    print(json.dumps(report, indent=1))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
