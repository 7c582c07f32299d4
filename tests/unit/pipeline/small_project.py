"""A handful of small videos with annotations, and settings that train end to end in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tadpipe.pipeline.e2e import train_e2e
from tadpipe.pipeline.e2e_result import E2EResult
from tests.corpus import make_video
from tests.unit.pipeline.tiny_store import SMALL

FPS = 30
FRAMES = 84  # of the first video; the others are a little longer
STEPS = 4  # of a run: two epochs of two batches
# Windows of 16 rows at stride 4 and small pictures; augmentation as it is by default.
SETTINGS = (
    *(item for item in SMALL if not item.startswith("model.window_len")),
    "model.window_len=16",
    "training.warmup_epochs=0",
    "training.epochs=2",
    "training.batch_size=2",
    "training.checkpoint_every=2",
    "e2e.picture_size=32",
)
# The frame representation with adapters that see across clips.
FRAMES_TIA = (
    "e2e.representation=frame",
    "e2e.frames_per_step=2",
    "e2e.adapter.kind=tia",
    "e2e.adapter.checkpoint=true",
    "windows.margin=none",
)


class SmallProject(NamedTuple):
    """Where things are."""

    videos: Path
    annotations: Path


def make_project(folder: Path, *, training: int = 4) -> SmallProject:
    """`training` videos to train on, one to validate and one to test on."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    database = {}
    for i in range(training + 2):
        subset = "training" if i < training else "validation" if i == training else "testing"
        frames = FRAMES + 5 * i
        make_video(videos / f"video {i}.mp4", frames=frames, size=(48, 40), fps=FPS, b_frames=0)
        start_sec = 0.4 + 0.1 * i
        database[f"video {i}"] = {
            "subset": subset,
            "duration": frames / FPS,
            "annotations": [{"segment": [start_sec, start_sec + 1.2], "label": f"class {i % 2}"}],
        }
    path = folder / "annotations.json"
    path.write_text(json.dumps({"database": database}))
    return SmallProject(videos, path)


def run(project: SmallProject, out: Path, *sets: str, **options: Any) -> E2EResult:
    """Train end to end on the project's videos, or on `videos`."""
    return train_e2e(
        [options.pop("videos", project.videos)],
        annotations=project.annotations,
        backbone="videomae-tiny",
        weights=options.pop("weights", "random"),
        sets=(*SETTINGS, *sets),
        out=out,
        device="cpu",
        seed=options.pop("seed", 3),
        **options,
    )
