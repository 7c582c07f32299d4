"""NMS: CPU milliseconds of class-aware and class-agnostic soft-NMS against a plain Python loop.

Random candidates around a few actions per class. The baseline is soft-NMS as its paper prints it,
one class after the other, candidate by candidate, run to its end, joined, sorted and cut; both keep
the same candidates. Run: python benchmarks/bench_nms.py [--json PATH] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tadpipe.config import write_atomically
from tadpipe.detectors.parts.nms import NmsConfig, batched_nms
from tadpipe.detectors.protocol import GridDetections

AGNOSTIC = NmsConfig(multiclass=False, max_segments=100, sigma=0.75, vote_threshold=0.9)
PROBLEMS = {  # candidates, classes, config, whether the baseline runs as well
    "class-aware": (2_000, 20, NmsConfig(), True),
    "class-aware, THUMOS14": (12_000, 20, NmsConfig(), True),
    "class-aware, large": (40_000, 20, NmsConfig(), False),
    "class-aware, 2,000 kept": (40_000, 20, NmsConfig(max_segments=2000), False),
    "hard": (40_000, 20, NmsConfig(method="hard"), False),
    "agnostic, votes": (2_000, 1, AGNOSTIC, False),
    "agnostic, votes, large": (40_000, 1, AGNOSTIC, False),
}


def candidates(count: int, classes: int, seed: int = 0) -> GridDetections:
    """Segments scattered around 12 actions per class on a grid of 2,304 steps."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    action = rng.integers(0, 12, count)
    centres = rng.uniform(0, 2304, (classes, 12))[labels, action] + rng.normal(0, 4, count)
    lengths = rng.uniform(4, 60, (classes, 12))[labels, action] * rng.uniform(0.5, 1.5, count)
    segments = np.stack([centres - lengths / 2, centres + lengths / 2], axis=1)
    scores = rng.beta(0.5, 4, count)
    return GridDetections(
        torch.from_numpy(segments.astype(np.float32)),
        torch.from_numpy(scores.astype(np.float32)),
        torch.from_numpy(labels),
    )


def plain_loop(dets: GridDetections, config: NmsConfig) -> list[int]:
    """Rows kept by class-aware Gaussian soft-NMS, in plain Python."""
    segments, scores = dets.segments.tolist(), dets.scores.tolist()
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(dets.labels.tolist()):
        by_class.setdefault(label, []).append(row)
    kept: list[tuple[float, int]] = []
    for rows in by_class.values():
        rest = [(scores[row], row) for row in rows]
        while rest:
            best, row = max(rest)
            kept.append((best, row))
            start, end = segments[row]
            decayed = []
            for score, other in rest:
                if other == row:
                    continue
                left, right = segments[other]
                shared = max(0.0, min(end, right) - max(start, left))
                overlap = shared / (end - start + right - left + 2e-6 - shared)
                score *= math.exp(-overlap * overlap / config.sigma)
                if score >= config.min_score:
                    decayed.append((score, other))
            rest = decayed
    kept.sort(reverse=True)
    return [row for _, row in kept[: config.max_segments]]


def cpu_ms(call: Callable[[], object], repeats: int) -> list[float]:
    """CPU milliseconds of each repeat, after one warm-up."""
    call()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        spent.append((time.process_time() - start) * 1e3)
    return spent


def same_rows(dets: GridDetections, found: GridDetections, rows: list[int]) -> bool:
    """Whether the loop kept the same segments; float32 may swap equal scores."""
    ours = {tuple(segment) for segment in found.segments.tolist()}
    theirs = {tuple(dets.segments[row].tolist()) for row in rows}
    return len(ours ^ theirs) <= 2


def measure(name: str, repeats: int) -> dict[str, Any]:
    count, classes, config, with_baseline = PROBLEMS[name]
    dets = candidates(count, classes)
    ours = cpu_ms(lambda: batched_nms(dets, config), repeats)
    row: dict[str, Any] = {
        "problem": name,
        "candidates": count,
        "classes": classes,
        "kept": len(batched_nms(dets, config).scores),
        "repeats": repeats,
        "cpu_ms_median": statistics.median(ours),
        "cpu_ms_min": min(ours),
        "baseline_ms_min": None,
        "ratio": None,
    }
    if with_baseline:
        start = time.process_time()
        rows = plain_loop(dets, config)
        row["baseline_ms_min"] = (time.process_time() - start) * 1e3
        row["ratio"] = row["baseline_ms_min"] / row["cpu_ms_min"]
        assert same_rows(dets, batched_nms(dets, config), rows)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, options.repeats) for name in PROBLEMS]
    print("| problem | candidates | classes | kept | CPU ms median (min) | plain loop ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        loop = "-" if row["ratio"] is None else f"{row['baseline_ms_min']:.0f}"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.0f}x"
        print(
            f"| {row['problem']} | {row['candidates']:,} | {row['classes']} | {row['kept']:,} | "
            f"{row['cpu_ms_median']:.1f} ({row['cpu_ms_min']:.1f}) | {loop} | {ratio} |"
        )
    document = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "rows": rows,
    }
    print(json.dumps(document))
    if options.json is not None:
        write_atomically(options.json, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
