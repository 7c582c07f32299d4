"""The demo's data: untrimmed H.264 videos whose action classes are patterns of motion.

One bright actor moves over a textured background with dim clutter. What it does decides the class;
how it looks, where it stands, how large it is and how it is turned do not: a single frame says
nothing. Between actions it rests, drifts, or moves without a label (one-way moves, trembling).
Order: tables -> plan_videos (what happens when) -> actor_track (where the actor is) -> rendering
and encoding -> make_demo_videos. Shapes: T frames, H x W pixels, RGB. Times are in seconds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from tadpipe.config import digest, write_atomically
from tadpipe.errors import ConfigError
from tadpipe.pipeline.progress import SILENT, Progress

Floats = NDArray[np.float64]

GENERATOR_VERSION = 1  # part of the settings' digest: raised whenever other pictures come out
ANNOTATIONS_FILE = "annotations.json"
VIDEO_FOLDER = "videos"
DEMO_MINUTES = 20.0
FPS = 15
WIDTH, HEIGHT = 128, 96
VIDEO_SEC = (18.0, 32.0)  # shortest and longest video
ACTION_SEC = (1.0, 6.0)  # log-uniform
IDLE_SEC = (0.6, 2.5)
DISTRACTOR_SEC = (0.8, 2.0)
DISTRACTOR_SHARE = 0.35  # of the pauses between two actions that hold one
RAMP_SEC = 0.15  # in which a motion reaches its full amplitude, and loses it
MARGIN = 34  # pixels between the border and the actor's place of rest
CLUTTER = 5  # dim blobs per video

# A class never mirrors into another one, so horizontal flips keep the label.
CLASSES = ("circle", "sweep", "bounce", "spin", "pulse", "eight")
DISTRACTORS = ("glide", "turn", "grow", "tremble")

Box = tuple[float, float, float, float]  # left, top, right, bottom in units of a shape's radius
BLOB_BOXES: tuple[Box, ...] = ((-0.9, -0.7, 0.9, 0.7),)
SPLIT_SHARES = {"training": 0.64, "validation": 0.1, "test": 0.26}


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


class Event(NamedTuple):
    """The actor does `motion` in frames [start, end); `label` is None for idling, distractors."""

    motion: str
    start: int
    end: int
    label: str | None


class VideoPlan(NamedTuple):
    """One video before it is drawn."""

    name: str
    subset: str
    frames: int
    actor: tuple[Box, ...]  # the union of these
    colour: tuple[int, int, int]
    events: tuple[Event, ...]
    seed: tuple[int, ...]  # of everything random that is not decided here


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
                if event.motion in DISTRACTORS
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
                    events=_events(rng, deck, frames),
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


def _events(rng: np.random.Generator, deck: Iterator[str], frames: int) -> tuple[Event, ...]:
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
            add(DISTRACTORS[int(rng.integers(len(DISTRACTORS)))], rng.uniform(*DISTRACTOR_SEC))
            add("idle", float(rng.uniform(*IDLE_SEC)))
        shortest, longest = (math.log(bound) for bound in ACTION_SEC)
        seconds = math.exp(rng.uniform(shortest, longest))
        if events[-1].end + round((seconds + IDLE_SEC[0]) * FPS) > frames:
            add("idle", frames / FPS)
            return tuple(events)
        label = next(deck)
        add(label, seconds, label)


class Track(NamedTuple):
    """The actor over time; every array is [T]."""

    x: Floats  # centre, pixels
    y: Floats
    turn: Floats  # radians
    size: Floats  # factor on the radius


def actor_track(plan: VideoPlan, rng: np.random.Generator) -> Track:
    """Where the actor is: a slow path between places of rest, plus the motion of each event."""
    x, y, turn, log_size = (np.empty(plan.frames) for _ in range(4))
    at_x = rng.uniform(MARGIN, WIDTH - MARGIN)
    at_y = rng.uniform(MARGIN, HEIGHT - MARGIN)
    angle, log_at = rng.uniform(0, 2 * math.pi), rng.uniform(-0.2, 0.2)
    for event in plan.events:
        count = event.end - event.start
        seconds = count / FPS
        ease = _smoothstep((np.arange(count) + 1) / count)  # 0 -> 1
        reach = 40.0 if event.motion == "glide" else 3.0 * seconds  # pixels
        way = rng.uniform(0, 2 * math.pi)
        to_x = float(np.clip(at_x + reach * math.cos(way), MARGIN, WIDTH - MARGIN))
        to_y = float(np.clip(at_y + reach * math.sin(way), MARGIN, HEIGHT - MARGIN))
        turned = rng.uniform(1.5, 3.2) if event.motion == "turn" else rng.uniform(0, 0.2) * seconds
        to_angle = angle + turned * rng.choice((-1.0, 1.0))
        log_to = rng.uniform(-0.3, 0.3) if event.motion == "grow" else log_at
        rows = slice(event.start, event.end)
        move = MOTIONS.get(event.motion)
        offset = np.zeros((4, count)) if move is None else _excursion(move, count, rng)
        x[rows] = at_x + (to_x - at_x) * ease + offset[0]
        y[rows] = at_y + (to_y - at_y) * ease + offset[1]
        turn[rows] = angle + (to_angle - angle) * ease + offset[2]
        log_size[rows] = log_at + (log_to - log_at) * ease + offset[3]
        at_x, at_y, angle, log_at = to_x, to_y, to_angle + offset[2, -1], log_to
    return Track(x, y, turn, np.exp(log_size))


Move = Callable[[Floats, np.random.Generator], Floats]


def _excursion(move: Move, count: int, rng: np.random.Generator) -> Floats:
    """x, y, turn and log size, [4, T], of a motion that fades in and out at its ends."""
    t = (np.arange(count) + 0.5) / FPS
    offset = move(t, rng)
    fade = np.minimum(np.minimum(t, t[::-1]) / RAMP_SEC, 1.0)
    return np.stack((offset[0] * fade, offset[1] * fade, offset[2], offset[3] * fade))


def _smoothstep(share: Floats) -> Floats:
    return share * share * (3 - 2 * share)


def _phase(t: Floats, rng: np.random.Generator, period: tuple[float, float]) -> Floats:
    """Angle of a periodic motion with a random period (seconds), start and direction."""
    direction = rng.choice((-1.0, 1.0))
    start = rng.uniform(0, 2 * math.pi)
    return start + direction * 2 * math.pi * t / rng.uniform(*period)


def _amplitude(rng: np.random.Generator) -> float:
    return float(rng.uniform(13.0, 19.0))  # pixels


def _circle(t: Floats, rng: np.random.Generator) -> Floats:
    phase, a = _phase(t, rng, (0.65, 1.05)), _amplitude(rng)
    return np.stack((a * np.cos(phase), a * np.sin(phase), 0 * t, 0 * t))


def _sweep(t: Floats, rng: np.random.Generator) -> Floats:
    phase, a = _phase(t, rng, (0.6, 1.0)), _amplitude(rng)
    return np.stack((a * np.sin(phase), 0 * t, 0 * t, 0 * t))


def _bounce(t: Floats, rng: np.random.Generator) -> Floats:
    phase, a = _phase(t, rng, (0.6, 1.0)), _amplitude(rng)
    return np.stack((0 * t, a * np.sin(phase), 0 * t, 0 * t))


def _spin(t: Floats, rng: np.random.Generator) -> Floats:
    phase = _phase(t, rng, (0.6, 1.0))
    return np.stack((0 * t, 0 * t, phase - phase[0], 0 * t))


def _pulse(t: Floats, rng: np.random.Generator) -> Floats:
    phase, a = _phase(t, rng, (0.6, 1.0)), rng.uniform(0.3, 0.45)
    return np.stack((0 * t, 0 * t, 0 * t, a * np.sin(phase)))


def _eight(t: Floats, rng: np.random.Generator) -> Floats:
    phase, a = _phase(t, rng, (0.95, 1.4)), _amplitude(rng)
    return np.stack((a * np.sin(phase), 0.7 * a * np.sin(2 * phase), 0 * t, 0 * t))


def _tremble(t: Floats, rng: np.random.Generator) -> Floats:
    jitter = rng.normal(0, 1.2, (2, t.size))
    return np.stack((jitter[0], jitter[1], 0 * t, 0 * t))


MOTIONS: dict[str, Move] = {
    "circle": _circle,
    "sweep": _sweep,
    "bounce": _bounce,
    "spin": _spin,
    "pulse": _pulse,
    "eight": _eight,
    "tremble": _tremble,
}


class Scene:
    """Draws any frame of a planned video."""

    def __init__(self, plan: VideoPlan) -> None:
        rng = np.random.default_rng(plan.seed)
        self.track = actor_track(plan, rng)
        self.background = _background(rng)
        self.boxes = plan.actor
        self.colour = np.array(plan.colour, np.float32)
        area = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in plan.actor)
        self.radius = float(rng.uniform(18.0, 22.0)) / math.sqrt(area)
        self.clutter = [_Blob.random(rng) for _ in range(CLUTTER)]

    def frame(self, index: int) -> NDArray[np.uint8]:
        """RGB picture, [H, W, 3]."""
        picture = self.background.copy()
        for blob in self.clutter:
            place = blob.at(index / FPS)
            _paint(picture, place, blob.radius, blob.turn, BLOB_BOXES, blob.colour)
        track = self.track
        place = (float(track.x[index]), float(track.y[index]))
        radius, turn = self.radius * float(track.size[index]), float(track.turn[index])
        _paint(picture, place, radius, turn, self.boxes, self.colour)
        return picture.astype(np.uint8)


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth dark texture, float32 [H, W, 3]."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    picture = np.empty((HEIGHT, WIDTH, 3))
    picture[:] = rng.uniform(25, 60, 3)
    for _ in range(4):
        wave = rng.uniform(0.03, 0.16, 2)
        phase = rng.uniform(0, 2 * math.pi)
        picture += np.sin(columns * wave[0] + rows * wave[1] + phase)[..., None] * rng.uniform(
            0, 6, 3
        )
    return picture.astype(np.float32)


@dataclass(frozen=True)
class _Blob:
    """A dim box that drifts on a slow ellipse."""

    centre: tuple[float, float]
    sway: tuple[float, float]  # pixels
    period_sec: tuple[float, float]
    phase: float
    radius: float
    turn: float
    colour: NDArray[np.float32]

    @classmethod
    def random(cls, rng: np.random.Generator) -> _Blob:
        return cls(
            centre=(rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)),
            sway=(rng.uniform(5, 40), rng.uniform(5, 40)),
            period_sec=(rng.uniform(3, 9), rng.uniform(3, 9)),
            phase=rng.uniform(0, 2 * math.pi),
            radius=rng.uniform(6, 14),
            turn=rng.uniform(0, math.pi),
            colour=rng.uniform(55, 105, 3).astype(np.float32),
        )

    def at(self, time_sec: float) -> tuple[float, float]:
        angles = (2 * math.pi * time_sec / period + self.phase for period in self.period_sec)
        (x, y), (sway_x, sway_y) = self.centre, self.sway
        return x + sway_x * math.sin(next(angles)), y + sway_y * math.cos(next(angles))


def _paint(
    picture: NDArray[np.float32],
    place: tuple[float, float],
    radius: float,
    turn: float,
    boxes: tuple[Box, ...],
    colour: NDArray[np.float32],
) -> None:
    """Blend a shape into the picture; its edges are one pixel soft."""
    reach = radius * 1.35 + 1  # a corner of the unit square, and the soft edge
    left, right = max(int(place[0] - reach), 0), min(int(place[0] + reach) + 2, WIDTH)
    top, bottom = max(int(place[1] - reach), 0), min(int(place[1] + reach) + 2, HEIGHT)
    if left >= right or top >= bottom:
        return
    across = np.arange(left, right, dtype=np.float32) - np.float32(place[0])
    down = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(place[1])
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    u, v = cos * across + sin * down, cos * down - sin * across  # the shape's own axes, pixels
    depth = np.full(u.shape, -np.inf, np.float32)  # distance to the nearest edge, > 0 inside
    r = np.float32(radius)
    for x0, y0, x1, y1 in boxes:
        middle_u, half_u = r * np.float32((x0 + x1) / 2), r * np.float32((x1 - x0) / 2)
        middle_v, half_v = r * np.float32((y0 + y1) / 2), r * np.float32((y1 - y0) / 2)
        inside = np.minimum(half_u - np.abs(u - middle_u), half_v - np.abs(v - middle_v))
        np.maximum(depth, inside, out=depth)
    cover = np.clip(depth + np.float32(0.5), 0, 1)[..., None]
    patch = picture[top:bottom, left:right]
    patch += cover * (colour - patch)


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
