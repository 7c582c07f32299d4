"""DPS: CPU seconds and working memory of an ETAD training step on a share of the proposals.

The published model (T = D = 128, C = 512, width 256) takes one optimiser step with AdamW per
measurement; the baseline is the same step on the full proposal set. Every ratio runs in a process
of its own, because the peak of resident memory never falls. Working memory is that peak minus the
memory held before the step, after the optimiser's moments exist; saved tensors are what autograd
keeps between forward and backward.
Run: python benchmarks/bench_dps.py [--json PATH] [--repeats N] [--ratios 0.06,1]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tadpipe.config import write_atomically
from tadpipe.detectors.etad import Etad, EtadConfig
from tadpipe.detectors.protocol import Targets

MIB = 2**20


def batch(count: int, channels: int, length: int) -> tuple[Tensor, Tensor, Targets]:
    """Random features with two actions per video."""
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(count, channels, length, generator=generator)
    starts = torch.rand(count, 2, generator=generator) * 0.5 * length
    ends = starts + 2 + torch.rand(count, 2, generator=generator) * 0.5 * length
    segments = list(torch.stack((starts, ends), dim=2))
    labels = [torch.zeros(2, dtype=torch.int64)] * count
    mask = torch.ones(count, length, dtype=torch.bool)
    return feats, mask, Targets(segments, labels)


class SavedBytes:
    """Counts the bytes of distinct storages that autograd keeps for the backward pass."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.seen = {p.untyped_storage().data_ptr() for p in parameters}
        self.total = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def train_step(
    model: Etad,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor, Targets],
    generator: torch.Generator,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    feats, mask, targets = data
    outputs = model(feats, mask, generator=generator)
    losses = model.loss(outputs, targets, generator=generator)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()


def resident_mib() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def measure(ratio: float, count: int, length: int, repeats: int) -> dict[str, Any]:
    """Steps of one ratio in this process; the first one, on few proposals, only warms up."""
    torch.manual_seed(0)
    config = EtadConfig(512, 1, window_len=length, max_duration=length, dps_ratio=ratio)
    warm_up = Etad(EtadConfig(512, 1, window_len=length, max_duration=length, dps_ratio=0.002))
    model = Etad(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    data = batch(count, 512, length)
    generator = torch.Generator().manual_seed(0)
    train_step(
        warm_up, torch.optim.AdamW(warm_up.parameters()), data, generator
    )  # thread pools, kernels
    for parameter in model.parameters():  # the moments belong to the training, not to a step
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    del warm_up
    gc.collect()
    before_mib = resident_mib()
    cpu_sec = []
    for _ in range(repeats):
        start = time.process_time()
        train_step(model, optimizer, data, generator)
        cpu_sec.append(time.process_time() - start)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    saved = SavedBytes(list(model.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        outputs = model(data[0], data[1], generator=generator)
        model.loss(outputs, data[2], generator=generator)
    return {
        "ratio": ratio,
        "proposals": outputs.stages[0].proposals.shape[1],
        "cpu_sec_median": statistics.median(cpu_sec),
        "cpu_sec_min": min(cpu_sec),
        "saved_mib": saved.total / MIB,
        "before_mib": before_mib,
        "peak_mib": peak_mib,
        "working_mib": peak_mib - before_mib,
    }


def measure_elsewhere(ratio: float, args: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--child", str(ratio)]
    command += ["--batch", str(args.batch), "--length", str(args.length)]
    command += ["--repeats", str(args.repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    full = rows[-1]
    print("ratio  proposals  CPU s median (min)   less  saved MiB   less  working MiB   less")
    for row in rows:
        less = {key: 1 - row[key] / full[key] for key in ("saved_mib", "working_mib")}
        print(
            f"{row['ratio']:5.2f}  {row['proposals']:9}  {row['cpu_sec_median']:9.2f}"
            f" ({row['cpu_sec_min']:6.2f})  {full['cpu_sec_median'] / row['cpu_sec_median']:5.1f}x"
            f"  {row['saved_mib']:9.0f}  {less['saved_mib']:5.1%}"
            f"  {row['working_mib']:11.0f}  {less['working_mib']:5.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, dest="json_path", help="write the figures here")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="videos per step")
    parser.add_argument("--length", type=int, default=128, help="snippets, and longest proposal")
    parser.add_argument("--ratios", default="0.06,0.2,1", help="the last one is the baseline")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if args.child is not None:
        print(json.dumps(measure(args.child, args.batch, args.length, args.repeats)))
        return
    rows = [measure_elsewhere(float(ratio), args) for ratio in args.ratios.split(",")]
    show(rows)
    report = {
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "batch": args.batch,
        "length": args.length,
        "repeats": args.repeats,
        "rows": rows,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if args.json_path is not None:
        write_atomically(args.json_path, text + "\n")


if __name__ == "__main__":
    main()
