"""Extraction end to end: clips/s against the clip-by-clip loop, and against the backbone alone.

The baseline is the public way in a few lines: one decoder call per clip, its frames prepared anew,
a forward pass of one clip, one .npy per video; same backbone, weights, stride and clips. "Resident"
is the backbone on clips that are in memory already, in the batches of extraction: nothing can be
faster than that. All run in turns, video after video, and the features are compared. CPU seconds
are user + system of this process and of the decoders. Run:
python benchmarks/bench_extract.py [VIDEO...] [--names A,B] [--dtypes fp32,bf16] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_decode import PLAN, SHARED, Clips, PyavLoop, decord_loop, make_film

from tadpipe.backbones.pixels import prepare
from tadpipe.backbones.protocol import Backbone
from tadpipe.config import write_atomically
from tadpipe.pipeline.clip_batches import batch_of
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.extract import extract_features
from tadpipe.pipeline.extract_spec import Choices, as_chosen
from tadpipe.pipeline.video_files import find_videos
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec
from tadpipe.video.reader import probe

STAGES = ("decode", "prepare", "backbone", "write")


class Spent:
    """Wall and CPU seconds by name; `lap` adds to the one that is asked for."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), cpu_sec()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + cpu_sec() - cpu


def cpu_sec() -> float:
    """User and system seconds of this process and of its children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def load(name: str, dtype: Any, device: str) -> tuple[Backbone, FeatureSpec]:
    choices = Choices(name, PLAN.stride, None, None, None, None, None)
    handling: Any = ("skip", dtype, "float32")
    model, spec = as_chosen(choices, "random", handling, device, False, None, 0)
    if model.clip_len != PLAN.clip_len:
        raise SystemExit(f"{name} takes clips of {model.clip_len} frames; this bench cuts 16.")
    return model, spec


def one_call_per_clip(path: Path) -> Clips:
    """decord where it serves the file rightly, else a seek and a decode by PyAV for each clip."""
    return decord_loop(path) if probe(path).decord_safe else PyavLoop()(path)


def clip_by_clip(path: Path, model: Backbone, device: str, out: Path, spent: Spent) -> np.ndarray:
    """The naive loop over one video, with the time of its four stages."""
    clips, rows = one_call_per_clip(path), []
    while True:
        with spent.lap("decode"):
            clip = next(clips, None)
        if clip is None:
            break
        with spent.lap("prepare"):
            pixels = prepare(torch.from_numpy(np.stack(clip)), model.pixels, device)
        with spent.lap("backbone"), torch.inference_mode():
            rows.append(model(pixels.transpose(0, 1)[None])[0].cpu().numpy())
    features = np.stack(rows)
    with spent.lap("write"):
        np.save(out / f"{path.stem}.npy", features)
    return features


def resident(model: Backbone, count: int, device: str, batch: int) -> None:
    """As many clips through the backbone as a video has, from memory."""
    side = model.pixels.size
    clips = torch.zeros(batch, 3, PLAN.clip_len, side, side, device=device)
    with torch.inference_mode():
        for start in range(0, count, batch):
            rows = model(clips[: min(batch, count - start)])
    rows.cpu()


class Case:
    """One backbone and arithmetic over some videos: each way in turn, as often as asked."""

    def __init__(self, name: str, dtype: str, device: str) -> None:
        self.name, self.dtype, self.device = name, dtype, device
        self.model, self.spec = load(name, dtype, device)
        self.batch = self.spec.batch or batch_of(device)
        self.spent: dict[str, list[Spent]] = {"loop": [], "ours": [], "resident": []}
        self.clips = 0
        self.same = True

    def over(self, videos: Sequence[Path], work: Path) -> None:
        """One repeat: every video, every way."""
        parts = {way: Spent() for way in self.spent}
        self.clips = 0
        for path in videos:
            store = Path(tempfile.mkdtemp(dir=work)) / "s.zarr"
            with parts["ours"].lap("all"):
                report = extract_features(
                    find_videos([path]),
                    self.model,
                    self.spec,
                    store=store,
                    device=self.device,
                )
            ours = FeatureStore.open(store)[path.stem][:]
            loop = clip_by_clip(path, self.model, self.device, work, parts["loop"])
            with parts["resident"].lap("all"):
                resident(self.model, len(ours), self.device, self.batch)
            self.clips += report.total("rows")
            self.same = self.same and np.array_equal(ours, loop)
        for way, part in parts.items():
            self.spent[way].append(part)

    def row(self) -> dict[str, Any]:
        """Seconds per clip of each way (minimum over the repeats) and the ratios."""
        per_clip = {
            way: {
                clock: min(sum(getattr(part, clock).values()) for part in parts) / self.clips
                for clock in ("wall", "cpu")
            }
            for way, parts in self.spent.items()
        }
        stages = {
            stage: statistics.median(part.cpu[stage] for part in self.spent["loop"]) / self.clips
            for stage in STAGES
        }
        ours, loop, alone = (per_clip[way] for way in ("ours", "loop", "resident"))
        return {
            "name": self.name,
            "dtype": self.dtype,
            "device": self.device,
            "batch": self.batch,
            "clips": self.clips,
            "sec_per_clip": per_clip,
            "loop_stages_cpu_sec_per_clip": stages,
            "ratio": {clock: loop[clock] / ours[clock] for clock in ours},
            "ratio_if_all_but_the_backbone_were_free": sum(stages.values()) / alone["cpu"],
            "share_of_resident_speed": {clock: alone[clock] / ours[clock] for clock in ours},
            "same_bits": self.same,
        }


HEAD = """\
| backbone | clips | way | wall s/clip | CPU s/clip | clips/s (wall) | loop / ours, wall (CPU) \
| ours of resident speed, wall (CPU) |
|---|---|---|---|---|---|---|---|"""
BOUND_HEAD = """\
| backbone | loop: decode | prepare | backbone | write | resident | most that is possible \
| same bits |
|---|---|---|---|---|---|---|---|"""


def show(rows: Sequence[dict[str, Any]]) -> None:
    print(HEAD)
    for row in rows:
        name = f"{row['name']} {row['dtype']}"
        for way, spent in row["sec_per_clip"].items():
            ratio = alone = "-"
            if way == "ours":
                ratio = f"{row['ratio']['wall']:.2f}x ({row['ratio']['cpu']:.2f}x)"
                share = row["share_of_resident_speed"]
                alone = f"{share['wall']:.0%} ({share['cpu']:.0%})"
            print(
                f"| {name} | {row['clips']} | {way} | {spent['wall']:.4f} | {spent['cpu']:.4f} "
                f"| {1 / spent['wall']:.2f} | {ratio} | {alone} |"
            )
    print("\nCPU s per clip of the loop's stages; what is left when all but the backbone is free\n")
    print(BOUND_HEAD)
    for row in rows:
        stages = row["loop_stages_cpu_sec_per_clip"]
        print(
            f"| {row['name']} {row['dtype']} "
            + "".join(f"| {stages[stage]:.4f} " for stage in STAGES)
            + f"| {row['sec_per_clip']['resident']['cpu']:.4f} "
            f"| {row['ratio_if_all_but_the_backbone_were_free']:.2f}x "
            f"| {'yes' if row['same_bits'] else 'no'} |"
        )


def chosen_videos(given: Sequence[Path], folder: Path, frames: int) -> list[Path]:
    """Those named; else the shared clips and a generated film."""
    if given:
        return list(given)
    shared = sorted(SHARED.glob("*.mp4")) if SHARED.is_dir() else []
    return [make_film(folder / "generated.mp4", frames), *shared]


def machine() -> dict[str, Any]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "av", "numpy")},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--names", default="videomae-tiny,videomae-s")
    parser.add_argument("--dtypes", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=140, help="of the generated film")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        videos = chosen_videos(options.videos, Path(folder), options.frames)
        cases = [
            Case(name, dtype, device)
            for name in options.names.split(",")
            for dtype in options.dtypes.split(",")
        ]
        for case in cases:  # the first pass of anything is slower
            resident(case.model, 1, device, 1)
        for _ in range(options.repeats):
            for case in cases:
                case.over(videos, Path(folder))
    rows = [case.row() for case in cases]
    show(rows)
    document = {**machine(), "stride": PLAN.stride, "repeats": options.repeats, "rows": rows}
    document["videos"] = [path.name for path in videos]
    text = json.dumps(document, indent=1)
    print(text)
    if options.json:
        write_atomically(options.json, text + "\n")


if __name__ == "__main__":
    main()
