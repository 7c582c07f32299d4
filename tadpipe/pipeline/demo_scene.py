"""What the demo's videos show: one bright actor on a dark texture with dim clutter, frame by frame.

What the actor does decides the class; how it looks, where it stands, how large it is and how it is
turned do not: a single frame says nothing.
Order: VideoPlan -> actor_track (where the actor is) -> the motions -> Scene (the pictures).
Shapes: T frames, H x W pixels, RGB. Times are in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Box = tuple[float, float, float, float]  # left, top, right, bottom in units of a shape's radius

FPS = 15
WIDTH, HEIGHT = 128, 96
MARGIN = 36  # pixels between the border and the actor's place of rest
RAMP_SEC = 0.3  # in which a motion reaches its full amplitude, and loses it
CLUTTER = 5  # dim blobs per video
BLOB_BOXES: tuple[Box, ...] = ((-0.9, -0.7, 0.9, 0.7),)
# No class mirrored at an axis or played backwards turns into another one.
CLASSES = ("circle", "sweep", "bounce", "spin", "pulse", "eight")


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
    return float(rng.uniform(12.0, 20.0))  # pixels


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
    phase, a = _phase(t, rng, (0.6, 1.0)), rng.uniform(0.25, 0.45)
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
        self.radius = float(rng.uniform(20.0, 24.0)) / math.sqrt(area)
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
            colour=rng.uniform(50, 95, 3).astype(np.float32),
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
