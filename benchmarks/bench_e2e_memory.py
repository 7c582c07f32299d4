"""End to end: memory of one training step of the backbone, by representation and gradient mode.

Modes: full tuning of one long window (frame) or of single snippets, AdaTAD's adapters (TIA), the
ladder, and EGS on 0.1, 0.3 or all of the snippets. Two figures, both without what exists before
the step (weights, optimiser, input): the most bytes autograd holds at one time for the backward
pass (saved-tensor hooks), and the peak of all live tensors over forward and backward (a dispatch
mode that follows every storage). On the CPU the tensors are "meta" ones: the same operators, the
same shapes, no memory and no arithmetic, so that every size up to g fits; `--check` runs a small
size for real and compares. The step ends in a pooled loss; a detector would add the same to all.
"Offloaded": what the forward pass saves waits in other memory; it counts as saved, not in the peak.
A snippet begins every 4 frames, hence frames / 4 of them; frame modes cut frames / 16 clips.
`--device cuda` measures the paper's table instead: weights, AdamW and ActionFormer included, bf16.
Run: python benchmarks/bench_e2e_memory.py [--json PATH] [--sizes s,b] [--check] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensor_memory import Box, LiveTensors, Tally, elsewhere, flash_attention_for_cpu
from torch import Tensor, nn

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.representation import frame_features, snippet_features
from tadpipe.backbones.tia import AdapterConfig, add_adapters
from tadpipe.backbones.tuning import set_tuning
from tadpipe.config import write_atomically
from tadpipe.detectors.actionformer import ActionFormer, ActionFormerConfig
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.protocol import Targets
from tadpipe.registry import resolve
from tadpipe.training.egs import EgsConfig, egs_backward

GIB = 2**30
SNIPPET_STRIDE = 4  # frames
MICRO_BATCH = 4  # snippets of EGS that pass together, the release's
FEW_SNIPPETS = 8  # two micro-batches
SIZES = ("s", "b", "l", "h", "g")


class Mode(NamedTuple):
    """One way to train."""

    name: str
    adapter: AdapterConfig
    tune: str  # "full" or "adapter"
    ratio: float | None = None  # of EGS; None = one pass
    offload: bool = False  # what the forward pass saves goes to other memory until it is needed

    @property
    def by_snippet(self) -> bool:
        return self.ratio is not None or "snippet" in self.name


STORED, AGAIN = AdapterConfig(kind="none"), AdapterConfig(kind="none", checkpoint=True)
MODES = (
    Mode("full, frame", STORED, "full"),
    Mode("full, frame, recomputed", AGAIN, "full"),
    Mode("full, snippet", STORED, "full"),
    Mode("AdaTAD", AdapterConfig(), "adapter"),
    Mode("AdaTAD, recomputed", AdapterConfig(checkpoint=True), "adapter"),
    Mode("AdaTAD, rec., offloaded", AdapterConfig(checkpoint=True), "adapter", offload=True),
    Mode("ladder", AdapterConfig(kind="ladder"), "adapter"),
    Mode("ladder, recomputed", AdapterConfig(kind="ladder", checkpoint=True), "adapter"),
    Mode("EGS 0.1", STORED, "full", 0.1),
    Mode("EGS 0.3", STORED, "full", 0.3),
    Mode("EGS 1.0", STORED, "full", 1.0),
)
BY_NAME = {mode.name: mode for mode in MODES}


# --- one step ----------------------------------------------------------------------------------


def make_backbone(size: str, mode: Mode, device: str) -> Backbone:
    with torch.device(device):
        model: Backbone = resolve("backbone", BACKBONES, f"videomae-{size}")()
        add_adapters(model, mode.adapter)
    model.reset_buffers()
    if device == "meta":
        assert isinstance(model, nn.Module)
        model.to("meta")
    representation = "snippet" if mode.by_snippet else "frame"
    set_tuning(model, mode.tune, representation=representation)  # type: ignore[arg-type]  # names
    return model


def pooled_loss(features: Tensor) -> dict[str, Tensor]:
    return {"loss": features.square().mean()}


def step(
    mode: Mode, model: Backbone, pixels: Tensor, forward: AbstractContextManager[None]
) -> None:
    """Forward and backward; pixels are a window of frames or the clips of the snippets.

    Args:
        forward: entered for the forward pass of a window of frames.
    """
    if mode.ratio is not None:
        count = pixels.shape[1]
        chosen = torch.arange(max(1, round(mode.ratio * count)))[None]  # which ones costs the same
        config = EgsConfig(mode.ratio, micro_batch=MICRO_BATCH)
        assert isinstance(model, nn.Module)
        generator = torch.Generator()
        egs_backward(model, pixels, pooled_loss, config, generator=generator, snippets=chosen)
    elif mode.by_snippet:
        pooled_loss(snippet_features(model, pixels))["loss"].backward()
    else:
        with forward:
            features = frame_features(model, pixels, pixels.shape[2])
        pooled_loss(features)["loss"].backward()


def input_shape(mode: Mode, frames: int, side: int) -> tuple[int, ...]:
    if mode.by_snippet:
        return (1, frames // SNIPPET_STRIDE, 3, 16, side, side)
    return (1, 3, frames, side, side)


def measure(size: str, mode: Mode, frames: int, side: int, device: str = "meta") -> dict[str, Any]:
    """Saved and peak bytes of one step; a step in which every gradient is allocated anew."""
    model = make_backbone(size, mode, device)
    assert isinstance(model, nn.Module)
    pixels = torch.zeros(input_shape(mode, frames, side), device=device)
    before = [*model.parameters(), *model.buffers(), pixels]
    saved, live = Tally(before), Tally(before)

    def unpack(box: Box) -> Tensor:
        return box.tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: Box(tensor, saved), unpack)
    forward = elsewhere(saved) if mode.offload else nullcontext()
    with flash_attention_for_cpu(), hooks, LiveTensors(live):
        step(mode, model, pixels, forward)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "size": size,
        "mode": mode.name,
        "frames": frames,
        "side": side,
        "snippets": frames // SNIPPET_STRIDE if mode.by_snippet else None,
        "saved_bytes": saved.peak,
        "peak_bytes": live.peak,
        "weights_bytes": weights,
        "trained_parameters": trained,
        "adamw_bytes": 8 * trained,
    }


# --- what must hold ----------------------------------------------------------------------------


def check_order(rows: list[dict[str, Any]]) -> None:
    """Ladder < AdaTAD < full, and EGS at 0.3 at least 66 % below full; of one size and input."""
    by_mode = {row["mode"]: row for row in rows}
    for key in ("saved_bytes", "peak_bytes"):
        for suffix in ("", ", recomputed"):
            ladder, adapter, full = (
                by_mode[f"{name}{suffix}"][key] for name in ("ladder", "AdaTAD", "full, frame")
            )
            assert ladder < adapter < full, (rows[0], key, suffix, ladder, adapter, full)
        sampled = by_mode.get("EGS 0.3", by_mode["EGS 1.0"])[key]  # no ratio costs more than 1.0
        snippets = by_mode["full, snippet"][key]
        assert sampled <= 0.34 * snippets, (rows[0], key, sampled, snippets)


def check_flat(few: dict[str, Any], many: dict[str, Any]) -> None:
    """EGS on all snippets: the memory of 512 is that of 64."""
    for key in ("saved_bytes", "peak_bytes"):
        assert many[key] <= 1.1 * few[key], (key, few[key], many[key])


def check_against_real() -> list[dict[str, Any]]:
    """A small size run for real holds the same bytes as its meta twin."""
    rows = []
    for mode in MODES:
        meta, real = (measure("tiny", mode, 64, 32, device) for device in ("meta", "cpu"))
        for key in ("saved_bytes", "peak_bytes"):
            gap = abs(meta[key] - real[key]) / real[key]
            assert gap < 0.02, (mode.name, key, meta[key], real[key])
        rows.append({"mode": mode.name, "meta": meta["peak_bytes"], "real": real["peak_bytes"]})
    return rows


# --- the paper's table on a GPU ----------------------------------------------------------------


class PaperRow(NamedTuple):
    """A line of AdaTAD's memory tables, GB per video."""

    size: str
    kind: str
    frames: int
    side: int
    paper_gb: float


PAPER = (
    PaperRow("s", "tia", 768, 160, 2.5),
    PaperRow("b", "tia", 768, 160, 4.9),
    PaperRow("l", "tia", 768, 160, 11.0),
    PaperRow("h", "tia", 768, 160, 19.2),
    PaperRow("g", "tia", 768, 160, 29.9),
    PaperRow("s", "none", 768, 160, 2.8),
    PaperRow("b", "none", 768, 160, 5.6),
    PaperRow("l", "none", 768, 160, 13.1),
    PaperRow("s", "ladder", 768, 160, 1.8),
    PaperRow("b", "ladder", 768, 160, 4.0),
    PaperRow("l", "ladder", 768, 160, 8.1),
    PaperRow("g", "ladder", 768, 160, 22.8),
    PaperRow("g", "ladder", 768, 224, 30.0),
    PaperRow("g", "ladder", 1536, 224, 43.6),
)


def gpu_row(row: PaperRow, device: str, steps: int) -> dict[str, Any]:
    """Peak of allocated memory and seconds of whole training steps, ActionFormer included.

    Frozen weights are bf16 where nothing but adapters trains; adapters, norms, sums, detector and
    AdamW's moments are float32 under autocast to bf16.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    full = row.kind == "none"
    name = f"videomae-{row.size}"
    model = load_backbone(name, "random", device=device, dtype="fp32" if full else "bf16")
    ratio = 0.125 if (row.kind, row.size) == ("ladder", "g") else 0.25
    kind: Any = row.kind
    add_adapters(model, AdapterConfig(kind=kind, ratio=ratio, checkpoint=True))
    set_tuning(model, "full" if full else "adapter", representation="frame")
    assert isinstance(model, nn.Module)
    model.train()
    config = ActionFormerConfig(model.out_channels, 20, window_len=768, attention_windows=1)
    detector = ActionFormer(config, DecodeConfig()).to(device).train()
    trained = [p for p in (*model.parameters(), *detector.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    frames = torch.randint(
        0, 256, (1, 3, row.frames, row.side, row.side), dtype=torch.uint8, device=device
    )
    mask = torch.ones(1, 768, dtype=torch.bool, device=device)
    segments = torch.tensor([[10.0, 60.0], [200.0, 420.0]], device=device)
    targets = Targets([segments], [torch.zeros(2, dtype=torch.int64, device=device)])
    seconds = []
    for _ in range(steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            pixels = (frames - 114.0) / 57.0
            features = frame_features(model, pixels, 768, mask)
            del pixels
        losses = detector.loss(detector(features, mask), targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9
    return {
        **row._asdict(),
        "ours_gb": peak_gb,
        "ratio": peak_gb / row.paper_gb,
        "step_sec": min(seconds[1:]),
    }


def gpu_table(device: str, steps: int, sizes: set[str]) -> list[dict[str, Any]]:
    rows = []
    print("size  adapter  frames  side   paper GB   ours GB  ratio   s per step")
    for row in PAPER:
        if row.size in sizes:
            done = gpu_row(row, device, steps)
            rows.append(done)
            print(
                f"{row.size:4}  {row.kind:7}  {row.frames:6}  {row.side:4}  {row.paper_gb:9.1f}"
                f"  {done['ours_gb']:8.2f}  {done['ratio']:5.2f}  {done['step_sec']:11.2f}",
                flush=True,
            )
    return rows


# --- tables ------------------------------------------------------------------------------------


def grid(sizes: list[str]) -> list[tuple[str, int, int]]:
    """(size, frames, side): frames and resolution vary for S, the size at the paper's input."""
    lines = [(size, 768, 160) for size in sizes]
    if "s" in sizes:
        lines += [("s", frames, 160) for frames in (96, 192, 384, 1536)]
        lines += [("s", 768, 224)]
    return lines


def group_of(size: str, frames: int, side: int) -> list[dict[str, Any]]:
    """All modes on one input; EGS in full where that takes seconds, else on a few snippets.

    From the second micro-batch on all are alike, whatever the ratio and the number of snippets.
    """
    sampled = size == "s" and side == 160 and frames <= 384
    rows = [measure(size, mode, frames, side) for mode in MODES if sampled or mode.ratio is None]
    if not sampled:
        rows.append(measure(size, BY_NAME["EGS 1.0"], SNIPPET_STRIDE * FEW_SNIPPETS, side))
    return rows


def cpu_table(sizes: list[str]) -> dict[str, Any]:
    rows, flat = [], []
    for size, frames, side in grid(sizes):
        group = group_of(size, frames, side)
        show(f"videomae-{size}, {frames} frames, {side} x {side}", group)
        check_order(group)
        rows += group
    if "s" in sizes:
        counts = (64, 512)
        flat = [measure("s", BY_NAME["EGS 1.0"], SNIPPET_STRIDE * n, 160) for n in counts]
        show("videomae-s, 64 and 512 snippets, 160 x 160", flat)
        check_flat(*flat)
    return {"rows": rows, "flat": flat}


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    print("mode                       snippets  saved GiB   peak GiB  weights GiB  AdamW GiB")
    for row in rows:
        print(
            f"{row['mode']:25}  {row['snippets'] or '-':>8}  {row['saved_bytes'] / GIB:9.2f}"
            f"  {row['peak_bytes'] / GIB:9.2f}  {row['weights_bytes'] / GIB:11.2f}"
            f"  {row['adamw_bytes'] / GIB:9.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, dest="json_path", help="write the figures here")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--device", default="cpu", help="cuda measures the paper's table")
    parser.add_argument("--steps", type=int, default=4, help="with cuda; the first warms up")
    parser.add_argument("--check", action="store_true", help="compare a real small run")
    args = parser.parse_args()
    sizes = args.sizes.split(",")
    report: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if args.device != "cpu":
        report["gpu"] = torch.cuda.get_device_name(args.device)
        report["paper"] = gpu_table(args.device, args.steps, set(sizes))
    else:
        if args.check:
            report["check"] = check_against_real()
        report |= cpu_table(sizes)
    text = json.dumps(report, indent=1)
    print(text)
    if args.json_path is not None:
        write_atomically(args.json_path, text + "\n")


if __name__ == "__main__":
    main()
