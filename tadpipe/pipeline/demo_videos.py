"""The demo's data: untrimmed H.264 videos whose action classes are patterns of motion.

What happens when is decided here: actions of all classes and lengths, and between them rest, drift
and moves without a label: one-way ones, trembling, and a class's own motion that breaks off.
Order: DemoVideoSettings -> make_demo_videos -> the annotation file -> plan_videos -> encode. The
pictures are drawn by `demo_scene`. Times are in seconds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tadpipe.config import digest, write_atomically
from tadpipe.errors import ConfigError
from tadpipe.pipeline.demo_scene import CLASSES, FPS, HEIGHT, WIDTH, Box, Event, Scene, VideoPlan
from tadpipe.pipeline.progress import SILENT, Progress

GENERATOR_VERSION = 1  # part of the settings' digest: raised whenever other pictures come out
ANNOTATIONS_FILE = "annotations.json"
VIDEO_FOLDER = "videos"
DEMO_MINUTES = 22.0
VIDEO_SEC = (18.0, 32.0)  # shortest and longest video
ACTION_SEC = (1.0, 6.0)  # log-uniform
IDLE_SEC = (0.4, 2.2)
DISTRACTOR_SHARE = 0.5  # of the pauses between two actions that hold one
DISTRACTOR_SEC = (0.8, 2.0)
FALSE_START = "false start"  # a class's motion that breaks off within one period
FALSE_START_SEC = (0.4, 0.7)
DISTRACTORS = ("glide", "turn", "grow", "tremble", FALSE_START, FALSE_START)
SPLIT_SHARES = {"training": 0.6, "validation": 0.1, "test": 0.3}


@dataclass(frozen=True)
class DemoVideoSettings:
    """What decides the bits of the videos, together with the version of the generator."""

    seed: int = 0
    minutes: float = DEMO_MINUTES  # of video in all splits together
    classes: int = len(CLASSES)  # the first so many of CLASSES

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= len(CLASSES):
            raise ConfigError(f"The demo has 2 to {len(CLASSES)} classes.", f"{self.classes}")
        if not 0 < self.minutes <= 24 * 60:
            raise ConfigError("The demo needs a positive number of minutes.", f"{self.minutes}")
        if self.seed < 0:
            raise ConfigError("Seeds are not negative.", f"seed = {self.seed}")

    @property
    def labels(self) -> tuple[str, ...]:
        return CLASSES[: self.classes]

    def digest(self) -> str:
        """Changes with every setting and with the generator."""
        return digest({"generator": GENERATOR_VERSION, **asdict(self)})


def make_demo_videos(
    folder: str | Path,
    *,
    seed: int = 0,
    minutes: float = DEMO_MINUTES,
    classes: int = len(CLASSES),
    progress: Progress = SILENT,
) -> Path:
    """Write `videos/*.mp4` and `annotations.json` into a folder.

    Every file appears whole or not at all. A repeated call keeps the files that the same settings
    made; each carries their digest in its comment field.

    Returns:
        The path of the annotations, ActivityNet-style JSON with the subsets `training`,
        `validation` and `test`.
    """
    settings = DemoVideoSettings(seed, minutes, classes)
    mark = settings.digest()
    videos = Path(folder) / VIDEO_FOLDER
    videos.mkdir(parents=True, exist_ok=True)
    plans = plan_videos(settings)
    progress.begin("demo videos", len(plans), "video")
    made = 0
    for plan in plans:
        path = videos / f"{plan.name}.mp4"
        if _comment(path) != mark:
            scene = Scene(plan)
            encode(path, map(scene.frame, range(plan.frames)), comment=mark)
            made += 1
        progress.advance()
    annotations = Path(folder) / ANNOTATIONS_FILE
    write_atomically(annotations, json.dumps(annotation_document(settings, plans), indent=1))
    seconds = sum(plan.frames for plan in plans) / FPS
    progress.end(
        f"{len(plans)} demo videos, {seconds / 60:.1f} minutes: {made} made, "
        f"{len(plans) - made} reused -> {videos}"
    )
    return annotations


def annotation_document(settings: DemoVideoSettings, plans: list[VideoPlan]) -> dict[str, Any]:
    """The annotation file's content; `demo` says how the splits were kept apart."""
    database = {
        plan.name: {
            "subset": plan.subset,
            "duration": plan.frames / FPS,
            "fps": float(FPS),
            "actor": {"boxes": plan.actor, "colour": plan.colour},
            "annotations": [
                {"segment": [event.start / FPS, event.end / FPS], "label": event.label}
                for event in plan.events
                if event.label is not None
            ],
            "unlabelled": [
                {"segment": [event.start / FPS, event.end / FPS], "motion": event.motion}
                for event in plan.events
                if event.label is None and event.motion != "idle"
            ],
        }
        for plan in plans
    }
    splits = {subset: sum(plan.subset == subset for plan in plans) for subset in SPLIT_SHARES}
    return {
        "version": "tadpipe demo",
        "demo": {
            "generator": GENERATOR_VERSION,
            "settings": asdict(settings),
            "digest": settings.digest(),
            "videos": splits,
            "leakage": "Every video has an actor, a background, clutter and random numbers of its "
            "own; the random numbers come from (seed, split, video). Nothing is shared.",
        },
        "database": database,
    }


def plan_videos(settings: DemoVideoSettings) -> list[VideoPlan]:
    """Decide lengths, actors and events of all videos."""
    average_sec = sum(VIDEO_SEC) / 2
    total = max(round(settings.minutes * 60 / average_sec), len(SPLIT_SHARES))
    counts = {name: max(round(total * share), 1) for name, share in SPLIT_SHARES.items()}
    counts["training"] = max(total - counts["validation"] - counts["test"], 1)
    plans = []
    for split, (subset, count) in enumerate(counts.items()):
        rng = np.random.default_rng((settings.seed, split))
        deck = _deck(rng, settings.labels)
        for i in range(count):
            frames = round(float(rng.uniform(*VIDEO_SEC)) * FPS)
            plans.append(
                VideoPlan(
                    name=f"demo_{subset}_{i:03d}",
                    subset=subset,
                    frames=frames,
                    actor=_actor(rng),
                    colour=_colour(rng),
                    events=_events(rng, settings.labels, deck, frames),
                    seed=(settings.seed, split, i),
                )
            )
    return plans


def _actor(rng: np.random.Generator) -> tuple[Box, ...]:
    """A bar with one or two arms that do not balance: its turn can be seen."""
    left = rng.uniform(-0.6, -0.1)
    right = left + rng.uniform(0.45, 0.65)
    boxes = [(left, -0.9, right, 0.9)]
    first_top = rng.choice((-0.9, 0.3))
    boxes.append((right, first_top, 0.9, first_top + rng.uniform(0.5, 0.7)))
    if rng.random() < 0.5:
        top = rng.uniform(-0.9, 0.5)
        boxes.append((max(left - 0.4, -0.9), top, left, top + 0.4))
    mirrored = rng.random() < 0.5
    return tuple(
        (float(-x1 if mirrored else x0), float(y0), float(-x0 if mirrored else x1), float(y1))
        for x0, y0, x1, y1 in boxes
    )


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Bright: every channel is above all background and clutter."""
    red, green, blue = (int(value) for value in rng.integers(180, 256, 3))
    return red, green, blue


def _deck(rng: np.random.Generator, labels: tuple[str, ...]) -> Iterator[str]:
    """Labels in random order, each equally often within a split."""
    while True:
        yield from (labels[i] for i in rng.permutation(len(labels)))


def _events(
    rng: np.random.Generator, labels: tuple[str, ...], deck: Iterator[str], frames: int
) -> tuple[Event, ...]:
    """Pauses and actions in turn until the video is full; it ends with a pause."""
    events: list[Event] = []

    def add(motion: str, seconds: float, label: str | None = None) -> None:
        start = events[-1].end if events else 0
        end = min(start + max(round(seconds * FPS), 1), frames)
        if end > start:
            events.append(Event(motion, start, end, label))

    while True:
        add("idle", float(rng.uniform(*IDLE_SEC)))
        if rng.random() < DISTRACTOR_SHARE:
            _add_distractor(rng, labels, add)
            add("idle", float(rng.uniform(*IDLE_SEC)))
        shortest, longest = (math.log(bound) for bound in ACTION_SEC)
        seconds = math.exp(rng.uniform(shortest, longest))
        if events[-1].end + round((seconds + IDLE_SEC[0]) * FPS) > frames:
            add("idle", frames / FPS)
            return tuple(events)
        label = next(deck)
        add(label, seconds, label)


def _add_distractor(
    rng: np.random.Generator, labels: tuple[str, ...], add: Callable[[str, float], None]
) -> None:
    """An unlabelled move: one-way, trembling, or a class's motion that breaks off."""
    motion = DISTRACTORS[int(rng.integers(len(DISTRACTORS)))]
    if motion == FALSE_START:
        add(labels[int(rng.integers(len(labels)))], float(rng.uniform(*FALSE_START_SEC)))
    else:
        add(motion, float(rng.uniform(*DISTRACTOR_SEC)))


def encode(path: Path, frames: Iterator[NDArray[np.uint8]], *, comment: str) -> None:
    """Write frames as H.264 in mp4; the file appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with av.open(str(partial), "w", format="mp4") as output:
            output.metadata["comment"] = comment
            stream = output.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.thread_count = 1
            stream.codec_context.gop_size = 2 * FPS
            stream.options = {"preset": "veryfast", "crf": "23"}
            for frame in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode(None))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _comment(path: Path) -> str | None:
    """The comment field of a finished video; None if there is none or it cannot be opened."""
    if not path.is_file():
        return None
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment")
    except av.FFmpegError:
        return None
