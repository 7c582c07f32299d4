"""The backbone alone: options of arithmetic, batch and layout, and the share of the matmul rate.

First table: seconds per clip of every way to run a backbone on clips that are in memory, in turns,
and how far its features are from float32 in batches of one. Second table: clips/s at the device's
best batch against the measured rate of matrix products, and end to end from files. On a GPU run it
with the default names; on a CPU with small ones:
python benchmarks/bench_extract_device.py [--device cuda] [--names A,B] [--dtype bf16] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_decode import make_film
from bench_extract import cpu_sec, load, machine
from torch import Tensor

from tadpipe.backbones.videomae import VideoMAE
from tadpipe.config import write_atomically
from tadpipe.pipeline.clip_batches import batch_of
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.extract import extract_features
from tadpipe.pipeline.video_files import find_videos

GPU_NAMES = "videomae-s,videomae-b,videomae-l,videomae-g"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Way(NamedTuple):
    """One way to run a backbone."""

    dtype: str
    batch: int
    compiled: bool = False
    channels_last: bool = False

    def __str__(self) -> str:
        marks = [self.dtype, f"batch {self.batch}"]
        marks += ["compiled"] * self.compiled + ["channels-last"] * self.channels_last
        return ", ".join(marks)


class Runner:
    """A backbone run in one way, on clips in memory."""

    def __init__(self, name: str, way: Way, device: str) -> None:
        self.model, _ = load(name, way.dtype, device)
        side, channels = self.model.pixels.size, self.model.pixels.channels
        shape = (way.batch, channels, self.model.clip_len, side, side)
        self.clips = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        if way.channels_last:
            assert isinstance(self.model, torch.nn.Module)
            self.model.to(memory_format=torch.channels_last_3d)
            self.clips = self.clips.to(memory_format=torch.channels_last_3d)
        if way.compiled:
            self.model.compile_trunk()
        self.per_clip: dict[str, list[float]] = {"wall": [], "cpu": []}

    def features(self) -> Tensor:
        with torch.inference_mode():
            return self.model(self.clips).float().cpu()  # waits for the device

    def lap(self, passes: int) -> None:
        wall, cpu = time.perf_counter(), cpu_sec()
        with torch.inference_mode():
            for _ in range(passes):
                rows = self.model(self.clips)
            rows.cpu()
        clips = passes * len(self.clips)
        self.per_clip["wall"].append((time.perf_counter() - wall) / clips)
        self.per_clip["cpu"].append((cpu_sec() - cpu) / clips)


def ways_to_try(device: str, compiled: bool, batches: Sequence[int]) -> list[Way]:
    first = batch_of(device)
    ways = [Way("fp32", batch) for batch in batches]
    ways += [Way(dtype, first) for dtype in ("bf16", "fp16")]
    ways.append(Way("fp32", first, channels_last=True))
    if compiled:
        ways += [Way(dtype, first, compiled=True) for dtype in ("fp32", "bf16")]
    return ways


def options(name: str, ways: Sequence[Way], device: str, repeats: int) -> list[dict[str, Any]]:
    """Every way in turn, as often as asked; the fastest lap of each counts."""
    runners = {way: Runner(name, way, device) for way in ways}
    exact = Runner(name, Way("fp32", 1), device).features()[0]
    distance = {way: runner.features()[0] - exact for way, runner in runners.items()}  # warms up
    for _ in range(repeats):
        for runner in runners.values():
            runner.lap(1)
    return [
        {
            "name": name,
            "way": str(way),
            **{f"{clock}_sec_per_clip": min(laps) for clock, laps in runner.per_clip.items()},
            "relative_difference": float(distance[way].norm() / exact.norm()),
            "same_bits": not bool(distance[way].any()),
        }
        for way, runner in runners.items()
    ]


def matmul_rate(dtype: torch.dtype, device: str, side: int, repeats: int = 10) -> float:
    """Floating-point operations per second of a large matrix product."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    (a @ b)[0, 0].item()
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(5):
            c = a @ b
        c[0, 0].item()  # waits for the device
        best = max(best, 5 * 2 * side**3 / (time.perf_counter() - began))
    return best


def clip_flops(model: VideoMAE) -> float:
    """Operations in the matrix products of one clip: patches, attention and MLPs."""
    t, h, w = model.table_grid
    tokens, dim, depth = t * h * w, model.out_channels, len(model.blocks)
    hidden = model.blocks[0].mlp.fc1.out_features
    block = 2 * tokens * dim * (4 * dim + 2 * hidden) + 4 * tokens**2 * dim
    return depth * block + 2 * tokens * dim * model.patch_embed.proj.weight[0].numel()


def share_of_rate(
    name: str, way: Way, device: str, rate: float, film: Path, passes: int
) -> dict[str, Any]:
    """Clips/s from memory and from a file, and what they are of the matmul rate."""
    model, spec = load(name, way.dtype, device)
    assert isinstance(model, VideoMAE)
    runner = Runner(name, way, device)
    runner.features()
    runner.lap(passes)
    alone = 1 / runner.per_clip["wall"][0]
    del runner
    with tempfile.TemporaryDirectory() as folder:
        report = extract_features(
            find_videos([film]), model, spec, store=Path(folder) / "s.zarr", device=device,
            batch=way.batch,
        )  # fmt: skip
    assert report.progress is not None
    return {
        "name": name,
        "way": str(way),
        "gflop_per_clip": clip_flops(model) / 1e9,
        "clips_per_sec_in_memory": alone,
        "share_of_matmul_rate": alone * clip_flops(model) / rate,
        "clips_per_sec_from_files": report.progress.clips_per_sec,
        "device_waited": report.progress.device_waited,
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Rows of the same keys as a table."""
    if rows:
        print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print("| " + " | ".join(shown) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--names", default=None, help="[default: the sizes at 224 on a GPU]")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--batches", default=None, help="[default: 1,2,4 on the CPU, 16,32,64]")
    parser.add_argument("--compile", action="store_true", help="also compiled ones")
    parser.add_argument("--matmul-side", type=int, default=None)
    parser.add_argument("--frames", type=int, default=None, help="of the film, for end to end")
    parser.add_argument("--passes", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    device = resolve_device(given.device)
    small = torch.device(device).type == "cpu"
    names = (given.names or ("videomae-tiny" if small else GPU_NAMES)).split(",")
    batches = [int(n) for n in (given.batches or ("1,2,4" if small else "16,32,64")).split(",")]
    side = given.matmul_side or (1024 if small else 8192)
    document: dict[str, Any] = {**machine(), "device": device, "repeats": given.repeats}
    document["options"] = []
    for name in names:
        ways = ways_to_try(device, given.compile, batches)
        document["options"] += options(name, ways, device, given.repeats)
    show(document["options"])
    rate = matmul_rate(DTYPES[given.dtype], device, side)
    document["matmul_tflop_per_sec"] = rate / 1e12
    print(f"\n{given.dtype} matmul of side {side}: {rate / 1e12:.3f} Tflop/s\n")
    way = Way(given.dtype, max(batches))
    with tempfile.TemporaryDirectory() as folder:
        film = make_film(Path(folder, "film.mp4"), given.frames or (60 if small else 6000))
        passes = given.passes or (2 if small else 20)
        document["devices"] = [
            share_of_rate(name, way, device, rate, film, passes)
            for name in names
            if name.startswith("videomae")
        ]
    show(document["devices"])
    text = json.dumps(document, indent=1)
    print(text)
    if given.json:
        write_atomically(given.json, text + "\n")


if __name__ == "__main__":
    main()
