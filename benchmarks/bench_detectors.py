"""Detectors at THUMOS size: forward, training step, inference with NMS, memory, matmul share.

Every detector has the widths of its thumos14 preset on 2048 channels and one sequence of its
window. Floating point operations are those that torch.utils.flop_counter sees in our forward pass
(matrix products, convolutions and attention, not FFTs), so work that is saved does not count; the
share is their rate over that of as many operations in 2048 x 2048 matrix products, measured between
the repeats: a busy machine disturbs both for as long. The baseline is the same model on torch's own
1d layers. Every measurement has a process of its own; memory is the peak of resident memory in the
first run (/proc/self/status, reset before it) less what was resident before. Times are CPU seconds,
the least of the repeats.
Run: python benchmarks/bench_detectors.py [--json PATH] [--repeats N] [--detectors a,b] [--compile]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tadpipe.config import write_atomically
from tadpipe.detectors import DETECTORS
from tadpipe.detectors.actionformer import local_attention
from tadpipe.detectors.parts.conv import GridConv1d, GridGroupNorm, MaxPool
from tadpipe.detectors.parts.nms import batched_nms
from tadpipe.detectors.protocol import Targets
from tadpipe.pipeline.detect import candidates
from tadpipe.pipeline.presets import load_preset
from tadpipe.registry import resolve

CHANNELS, CLASSES, ACTIONS = 2048, 20, 15
MATMUL = 2048  # rows and columns of the product that gives the machine's rate
# Parameters: counted from the official models where one is published, ours otherwise.
PARAMETERS = {
    "actionformer": 29_251_612,
    "tridet": 15_989_604,
    "dyfadet": 28_572_456,
    "cltdr-gmg": 21_908_384,
}
GOALS = {"actionformer": 0.6, "tridet": 0.6, "dyfadet": 0.5, "cltdr-gmg": 0.5}
ATTENTION_LENGTHS = (2304, 4608, 9216)


def build(name: str) -> tuple[nn.Module, Any]:
    """The detector of the thumos14 preset with random weights, and the preset."""
    preset = load_preset(f"{name}/thumos14_i3d")
    cls = resolve("detector", DETECTORS, name)
    classes = 1 if name.startswith("etad") else CLASSES
    torch.manual_seed(0)
    model = cls(preset.model_config(CHANNELS, classes, name), preset.decode)
    count = sum(p.numel() for p in model.parameters())
    assert count == PARAMETERS.get(name, count), (name, count)
    return model, preset


def inputs(model: nn.Module) -> tuple[Tensor, Tensor, Targets]:
    """One sequence of a whole window with some actions."""
    length: int = model.config.window_len
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(1, CHANNELS, length, generator=generator)
    mask = torch.ones(1, length, dtype=torch.bool)
    start = 0.9 * length * torch.rand(ACTIONS, 1, generator=generator)
    segments = torch.cat((start, start + 0.02 * length), dim=1)
    labels = torch.randint(0, model.config.num_classes, (ACTIONS,), generator=generator)
    return feats, mask, Targets([segments], [labels])


def cpu_sec(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_mib(run: Callable[[], object]) -> float:
    """Resident memory that `run` adds at its highest."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget earlier peaks
    before = status_mib("VmRSS")
    run()
    return status_mib("VmHWM") - before


def status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


def measure_forward(name: str, repeats: int) -> dict[str, Any]:
    """Forward pass in float32 and bf16, and the machine's rate, by turns."""
    model, _ = build(name)
    model.eval()
    feats, mask, _ = inputs(model)
    left, right = torch.randn(2, MATMUL, MATMUL)

    def half() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(feats, mask)

    with torch.inference_mode():
        memory = peak_mib(lambda: model(feats, mask))
        with FlopCounterMode(display=False) as counter:
            model(feats, mask)
        half()
        flops = counter.get_total_flops()
        products = max(1, round(flops / (2 * MATMUL**3)))
        times: dict[str, list[float]] = {"product": [], "forward": [], "bf16": []}
        for _ in range(repeats):
            times["product"].append(cpu_sec(lambda: [left @ right for _ in range(products)]))
            times["forward"].append(cpu_sec(lambda: model(feats, mask)))
            times["bf16"].append(cpu_sec(half))
        with_torchs_layers()
        model(feats, mask)
        plain = min(cpu_sec(lambda: model(feats, mask)) for _ in range(repeats))
    rate = products * 2 * MATMUL**3 / min(times["product"])
    forward = min(times["forward"])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "length": feats.shape[2],
        "gflop": flops / 1e9,
        "forward_sec": forward,
        "bf16_sec": min(times["bf16"]),
        "torchs_layers_sec": plain,
        "matmul_gflops": rate / 1e9,
        "share": flops / forward / rate,
        "forward_mib": memory,
    }


def with_torchs_layers() -> None:
    """The baseline: torch's own 1d layers, which copy features that lie time first."""
    GridConv1d.forward = nn.Conv1d.forward  # type: ignore[method-assign]
    GridGroupNorm.forward = nn.GroupNorm.forward  # type: ignore[method-assign]
    MaxPool.forward = lambda self, x: F.max_pool1d(  # type: ignore[method-assign]
        x, self.stride + 1, self.stride, (self.stride + 1) // 2
    )


def measure_training(name: str, repeats: int, amp: bool, compiled: bool) -> dict[str, Any]:
    """Training steps with AdamW, in float32 or with bf16 autocast."""
    model, _ = build(name)
    feats, mask, targets = inputs(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for parameter in model.parameters():  # the moments belong to the training, not to a step
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    call = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            losses = model.loss(call(feats, mask), targets)
            total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()

    start = time.perf_counter()
    memory = peak_mib(step)
    first = time.perf_counter() - start
    times = [cpu_sec(step) for _ in range(repeats)]
    return {"train_sec": min(times), "train_mib": memory, "first_step_wall_sec": first}


def measure_inference(name: str, repeats: int) -> dict[str, Any]:
    """A whole video: windows, forward, candidates and NMS; random weights keep every candidate."""
    model, preset = build(name)
    model.eval()
    feats = inputs(model)[0][0]
    counts: list[int] = []

    def detect() -> None:
        found = candidates(model, feats, preset.windows.overlap)
        counts.append(len(found.scores))
        batched_nms(found, preset.nms)

    memory = peak_mib(detect)
    seconds = min(cpu_sec(detect) for _ in range(repeats))
    return {"inference_sec": seconds, "inference_mib": memory, "candidates": counts[0]}


def measure_attention(length: int, dense: bool) -> dict[str, Any]:
    """Local attention of ActionFormer's finest level, window 19, against a dense band mask."""
    query, key, value = torch.randn(3, 1, 4, length, 128)
    mask = torch.ones(1, length, dtype=torch.bool)

    def banded() -> None:
        steps = torch.arange(length)
        band = (steps[:, None] - steps).abs() <= 9
        F.scaled_dot_product_attention(query, key, value, band & mask[:, None, None])

    def local() -> None:
        local_attention(query, key, value, mask, 9)

    run = banded if dense else local
    with torch.inference_mode():
        memory = peak_mib(run)
        seconds = min(cpu_sec(run) for _ in range(3))
    return {"length": length, "sec": seconds, "mib": memory}


def child(argument: str, repeats: int) -> dict[str, Any]:
    what, name = argument.split(":")
    if what == "forward":
        return measure_forward(name, repeats)
    if what == "inference":
        return measure_inference(name, repeats)
    if what in ("local", "dense"):
        return measure_attention(int(name), what == "dense")
    return measure_training(name, repeats, amp="bf16" in what, compiled="compiled" in what)


def elsewhere(argument: str, repeats: int) -> dict[str, Any]:
    """`child` in a fresh process."""
    command = [sys.executable, __file__, "--child", argument, "--repeats", str(repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure_detector(name: str, repeats: int, compiled: bool) -> dict[str, Any]:
    few = max(2, repeats // 2)
    row = {"detector": name, **elsewhere(f"forward:{name}", repeats)}
    row |= elsewhere(f"training:{name}", few) | elsewhere(f"inference:{name}", few)
    half = elsewhere(f"training-bf16:{name}", few)
    row |= {"train_bf16_sec": half["train_sec"], "train_bf16_mib": half["train_mib"]}
    if compiled:
        quick = elsewhere(f"training-compiled:{name}", few)
        row["train_compiled_sec"] = quick["train_sec"]
        row["compile_wall_sec"] = quick["first_step_wall_sec"]
    return row


def show(rows: list[dict[str, Any]], attention: list[dict[str, Any]]) -> None:
    print(
        "| detector | parameters | T | GFLOP | forward s | share of matmul | goal "
        "| torch's layers |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        goal = f"{GOALS[row['detector']]:.0%}" if row["detector"] in GOALS else ""
        print(
            f"| {row['detector']} | {row['parameters']:,} | {row['length']} | "
            f"{row['gflop']:.1f} | {row['forward_sec']:.2f} | "
            f"{row['share']:.0%} of {row['matmul_gflops']:.0f} GFLOP/s | "
            f"{goal} | "
            f"{row['torchs_layers_sec'] / row['forward_sec']:.2f}x |"
        )
    print(
        "\n| detector | training step s | bf16 step | bf16 forward | compiled step "
        "| inference + NMS s | candidates | MiB forward | training | training bf16 | inference |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        compiled = row.get("train_compiled_sec")
        gain = "" if compiled is None else f"{row['train_sec'] / compiled:.2f}x"
        print(
            f"| {row['detector']} | {row['train_sec']:.2f} | "
            f"{row['train_sec'] / row['train_bf16_sec']:.2f}x | "
            f"{row['forward_sec'] / row['bf16_sec']:.2f}x | "
            f"{gain} | "
            f"{row['inference_sec']:.2f} | {row['candidates']} | {row['forward_mib']:.0f} | "
            f"{row['train_mib']:.0f} | {row['train_bf16_mib']:.0f} | {row['inference_mib']:.0f} |"
        )
    print("\n| attention T | local ms | MiB | dense band ms | MiB |\n|---|---|---|---|---|")
    for row in attention:
        local, dense = row["local"], row["dense"]
        print(
            f"| {row['length']} | {1e3 * local['sec']:.0f} | {local['mib']:.0f} | "
            f"{1e3 * dense['sec']:.0f} | {dense['mib']:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, dest="json_path", help="write the figures here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--detectors", default=",".join(DETECTORS))
    parser.add_argument("--compile", action="store_true", help="also torch.compile (minutes)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if args.child is not None:
        print(json.dumps(child(args.child, args.repeats)))
        return
    rows = [measure_detector(n, args.repeats, args.compile) for n in args.detectors.split(",")]
    attention = [
        {
            "length": length,
            "local": elsewhere(f"local:{length}", 1),
            "dense": elsewhere(f"dense:{length}", 1),
        }
        for length in ATTENTION_LENGTHS
    ]
    show(rows, attention)
    report = {
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rows": rows,
        "attention": attention,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if args.json_path is not None:
        write_atomically(args.json_path, text + "\n")


if __name__ == "__main__":
    main()
