"""What a training step costs besides the detector: reading windows, and the model average.

Baselines, as the released trainers do it: load a video's whole `.npy`, cast it to float32 and cut
the window out of it; update the average entry by entry. CPU seconds, one thread, warm page cache.
Run: python benchmarks/bench_train.py [--json PATH] [--repeats N]
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tadpipe.annotations import Action, Video
from tadpipe.config import PixelRecipe, write_atomically
from tadpipe.datasets.loader import WindowLoader
from tadpipe.datasets.sources import FeatureSource
from tadpipe.datasets.windows import TrainingWindows, WindowConfig, choose_window, stack_padded
from tadpipe.detectors.actionformer import ActionFormer, ActionFormerConfig
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec
from tadpipe.training.ema import ModelEma
from tadpipe.training.loop import DetectorLearner, Trainer, TrainingConfig

VIDEOS, ROWS, CHANNELS, WINDOW = 8, 6000, 2048, 2304  # twelve minutes each at stride 4


def cpu_seconds(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """CPU seconds of one call, median and minimum."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return {"median": statistics.median(taken), "minimum": min(taken)}


def write_features(folder: Path) -> FeatureStore:
    """The same videos as a store and as one .npy each."""
    spec = FeatureSpec("random", "0" * 64, CHANNELS, 16, 4, PixelRecipe())
    rng = np.random.default_rng(0)
    store = FeatureStore.create(folder / "features.zarr")
    with store.writer(spec) as writer:
        for i in range(VIDEOS):
            rows = rng.normal(size=(ROWS, CHANNELS)).astype(np.float16)
            np.save(folder / f"v{i}.npy", rows)
            writer.add(
                f"v{i}",
                hashlib.sha256(rows.tobytes()).hexdigest(),
                rows,
                np.arange(ROWS) * 4 / 30,
                t0=0.0,
                dt=Fraction(4, 30),
                fps=Fraction(30),
                frames=ROWS * 4 + 12,
                duration_sec=ROWS * 4 / 30,
            )
    return store


def reading(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """One batch of two windows, from the store and from .npy files."""
    store = write_features(folder)
    videos = {
        f"v{i}": Video(f"v{i}", "training", actions=(Action(100.0, 110.0, "a"),))
        for i in range(VIDEOS)
    }
    source = FeatureSource([store.table()])
    windows = TrainingWindows(source, videos, {"a": 0}, WindowConfig(), WINDOW)
    loader = WindowLoader(windows, 2, seed=0)
    steps = iter(range(10_000))

    def from_npy() -> None:
        generator = torch.Generator().manual_seed(next(steps))

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator))

        parts = []
        for i in (0, 1):
            whole = np.load(folder / f"v{i}.npy").astype(np.float32)  # [T, C]
            feats = torch.from_numpy(np.ascontiguousarray(whole.T))
            window = choose_window(
                feats.shape[1],
                torch.tensor([[748.0, 823.0]]),
                torch.tensor([0]),
                max_len=WINDOW,
                keep_ratio=0.5,
                crop_ratio=(0.9, 1.0),
                offset_grid=2.0,
                draw=draw,
            )
            parts.append(feats[:, window.start : window.start + window.length])
        stack_padded(parts, WINDOW)

    return {
        "batch of 2 windows, store": cpu_seconds(lambda: loader.batch(next(steps)), repeats),
        "batch of 2 windows, .npy (baseline)": cpu_seconds(from_npy, repeats),
    }


def average(repeats: int) -> dict[str, dict[str, float]]:
    """One update of the model average, THUMOS14 model."""
    model = ActionFormer(ActionFormerConfig(CHANNELS, 20))
    ema, copied = ModelEma(model), copy.deepcopy(model)

    def entry_by_entry() -> None:
        with torch.no_grad():
            for mine, theirs in zip(
                copied.state_dict().values(), model.state_dict().values(), strict=True
            ):
                mine.copy_(0.999 * mine + (1 - 0.999) * theirs)

    return {
        "EMA of 29.3 M parameters": cpu_seconds(lambda: ema.update(model), repeats),
        "EMA, entry by entry (baseline)": cpu_seconds(entry_by_entry, repeats),
    }


def step(repeats: int) -> dict[str, dict[str, float]]:
    """A whole step of a small model, and the bare forward and backward inside it."""
    config = ActionFormerConfig(
        48, 20, window_len=256, embed_dim=64, neck_dim=64, head_dim=64, attention_windows=9
    )
    torch.manual_seed(0)
    rows = np.random.default_rng(0).normal(size=(400, 48)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.create(Path(folder, "small.zarr"))
        spec = FeatureSpec("random", "0" * 64, 48, 16, 16, PixelRecipe(), stored_dtype="float32")
        with store.writer(spec) as writer:
            for i in (0, 1):
                writer.add(
                    f"v{i}", str(i) * 64, rows + i, np.arange(400) * 16 / 30,
                    t0=0.0, dt=Fraction(16, 30), fps=Fraction(30), frames=6400, duration_sec=213.3,
                )  # fmt: skip
        videos = {
            f"v{i}": Video(f"v{i}", "training", actions=(Action(50.0, 60.0, "a"),)) for i in (0, 1)
        }
        windows = TrainingWindows(
            FeatureSource([store.table()]), videos, {"a": 0}, WindowConfig(), 256
        )
        loader = WindowLoader(windows, 2, seed=0)
        trainer = Trainer(
            DetectorLearner(ActionFormer(config), TrainingConfig(), "cpu"),
            TrainingConfig(),
            steps_per_epoch=1,
        )
        batch = loader.batch(0)
        model: nn.Module = trainer.model

        def bare() -> None:
            model.zero_grad(set_to_none=True)
            sum(trainer._losses(batch).values()).backward()  # type: ignore[union-attr]

        steps = iter(range(10_000))
        return {
            "training step with its batch": cpu_seconds(
                lambda: trainer.train_step(loader.batch(next(steps))), repeats
            ),
            "forward, loss and backward alone": cpu_seconds(bare, repeats),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = reading(Path(folder), arguments.repeats)
    rows |= average(arguments.repeats) | step(arguments.repeats)
    print(f"{'':<40} {'median':>10} {'minimum':>10}   CPU ms")
    for name, taken in rows.items():
        print(f"{name:<40} {1e3 * taken['median']:>10.2f} {1e3 * taken['minimum']:>10.2f}")
    names = list(rows)
    ratios = {
        f"{names[i + 1]} / {names[i]}": rows[names[i + 1]]["median"] / rows[names[i]]["median"]
        for i in (0, 2)
    }
    ratios["step / forward, loss and backward"] = (
        rows[names[4]]["median"] / rows[names[5]]["median"]
    )
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    document = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "sizes": {"videos": VIDEOS, "rows": ROWS, "channels": CHANNELS, "window": WINDOW},
        "repeats": arguments.repeats,
        "cpu_seconds": rows,
        "ratios": ratios,
    }
    print(json.dumps(document))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
