"""Backbones: CPU seconds of one clip against the way the public releases run them, same weights.

For transformers the baseline is the attention of every public VideoMAE release, in a few lines: it
builds the N x N matrix of each head. For backbones of convolutions or attention windows it is one
clip per forward pass, as the public scripts have it, against the padded batch of `tadpipe extract`;
the same batch is also run with weights in the channels-last layout and, with --compile,
through torch.compile. Random weights, float32, inference mode.
Run: python benchmarks/bench_backbone.py [--json PATH] [--repeats N] [--batch N] [--threads N]
[--names A,B] [--compile]
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
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.videomae import VideoMAE
from tadpipe.backbones.videomae_blocks import Attention
from tadpipe.config import write_atomically
from tadpipe.pipeline.extract_spec import PADDED_BATCH

NAMES = ("videomae-tiny", "videomae-s", "videomae-b")
WINDOW_NAMES = (
    "i3d-rgb", "i3d-flow", "r2plus1d-34", "tsm-r50", "slowfast-r50", "slowfast-r101",
    "slowonly-r50", "videoswin-t", "videoswin-b",
)  # fmt: skip
ATTENTION_HEAD = """\
| backbone | tokens | SDPA, CPU s per clip: median (min) | eager: median (min) \
| eager / SDPA (minima) | clips per CPU s | largest difference |
|---|---|---|---|---|---|---|"""
BATCH_HEAD = """\
| backbone | clip | batch of {batch}, CPU s per clip: median (min) \
| one by one: median (min) | one / batch (minima) | channels-last (min) | batch / channels-last \
| compiled (min) | batch / compiled | clips per CPU s | largest difference, of values up to |
|---|---|---|---|---|---|---|---|---|---|---|"""


def eager_forward(layer: Attention, x: Tensor, *_window: int) -> Tensor:
    """Attention with softmax(q k^T) in memory; a clip's window is for shifted attention only."""
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


def laid_out(name: str, channels_last: bool) -> Backbone:
    """A backbone with the weights of its convolutions in that layout, whatever is its own."""
    model = load_backbone(name, "random")
    assert isinstance(model, torch.nn.Module)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in model.parameters():
        if weight.dim() in last:
            layout = last[weight.dim()] if channels_last else torch.contiguous_format
            weight.data = weight.data.contiguous(memory_format=layout)
    return model


class Batch:
    """A window backbone on one batch of clips, in each way that is to be compared."""

    def __init__(self, name: str, batch: int, compiled: bool) -> None:
        model = laid_out(name, channels_last=False)
        side = model.pixels.size
        clips = torch.randn(batch, model.pixels.channels, model.clip_len, side, side)
        self.ways: dict[str, tuple[Backbone, Tensor]] = {
            "batch": (model, clips),
            "one": (model, clips[:1]),
            "last": (laid_out(name, channels_last=True), clips),
        }
        if compiled:
            self.ways["compiled"] = (load_backbone(name, "random"), clips)
            self.ways["compiled"][0].compile_trunk()

    def features(self, way: str) -> Tensor:
        model, clips = self.ways[way]
        return model(clips)


def measure_batches(name: str, repeats: int, batch: int, compiled: bool) -> dict[str, Any]:
    case = Batch(name, batch, compiled)
    times: dict[str, list[float]] = {way: [] for way in case.ways}
    with torch.inference_mode():
        first = {way: case.features(way)[:1] for way in case.ways}  # also the warm-up
        for _ in range(repeats):  # in turns, so that other load strikes all
            for way in case.ways:
                before = time.process_time()
                rows = case.features(way)
                times[way].append((time.process_time() - before) / len(rows))
    model, clips = case.ways["batch"]
    assert isinstance(model, torch.nn.Module)
    return {
        "name": name,
        "clip": list(clips.shape[1:]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sec": {
            way: {"median": statistics.median(values), "minimum": min(values)}
            for way, values in times.items()
        },
        "batch_over": {way: min(times["batch"]) / min(values) for way, values in times.items()},
        "max_abs_difference": {
            way: float((rows - first["one"]).abs().max()) for way, rows in first.items()
        },
        "max_abs_feature": float(first["one"].abs().max()),
    }


def attention_line(row: dict[str, Any]) -> str:
    sdpa, eager = row["sdpa_sec"], row["eager_sec"]
    return (
        f"| {row['name']} | {row['tokens']} | {sdpa['median']:.4f} ({sdpa['minimum']:.4f}) "
        f"| {eager['median']:.4f} ({eager['minimum']:.4f}) | {row['ratio_of_minima']:.2f} "
        f"| {row['clips_per_cpu_sec']:.2f} | {row['max_abs_difference']:.1e} |"
    )


def batch_line(row: dict[str, Any]) -> str:
    sec, ratio = row["sec"], row["batch_over"]
    cells = [row["name"], " x ".join(map(str, row["clip"]))]
    cells += [f"{sec[way]['median']:.3f} ({sec[way]['minimum']:.3f})" for way in ("batch", "one")]
    cells.append(f"{1 / ratio['one']:.2f}")
    for way in ("last", "compiled"):
        cells += [f"{sec[way]['minimum']:.3f}", f"{ratio[way]:.2f}"] if way in sec else ["-", "-"]
    cells.append(f"{1 / sec['batch']['median']:.2f}")
    cells.append(f"{max(row['max_abs_difference'].values()):.1e}, {row['max_abs_feature']:.1e}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=PADDED_BATCH, help="clips of a full batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also compiled ones")
    parser.add_argument("--names", default=",".join(NAMES + WINDOW_NAMES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.names.split(",")
    report: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "batch": arguments.batch,
        "attention": [],
        "batches": [],
    }
    print(ATTENTION_HEAD)
    for name in [name for name in names if name not in WINDOW_NAMES]:
        report["attention"].append(measure(name, arguments.repeats))
        print(attention_line(report["attention"][-1]), flush=True)
    print(BATCH_HEAD.format(batch=arguments.batch))
    for name in [name for name in names if name in WINDOW_NAMES]:
        report["batches"].append(
            measure_batches(name, arguments.repeats, arguments.batch, arguments.compile)
        )
        print(batch_line(report["batches"][-1]), flush=True)
    print(json.dumps(report, indent=1))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
