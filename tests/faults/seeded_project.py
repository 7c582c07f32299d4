"""A small project with one defect of each of many kinds, for `validate` to find in one run.

Every video has its own number of frames, so that no two files are equal by accident.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tadpipe.store.feature_store import FeatureStore
from tests.corpus import make_video
from tests.unit.pipeline.tiny_store import CHANNELS, CLIP, SMALL, SPEC, STRIDE, row_sec

FPS, FRAMES = 30, 60
RUN, JUMP = ([0.3, 1.0], "run"), ([1.1, 1.7], "jump")
SETS = (*SMALL, "features.stride=8")  # the store has stride 4
NOT_STORED = ("lost", "unstored", "dup", "plain.mp4", "Early")


class Seed(NamedTuple):
    """A defect: what kind it is found as, where, and with which words."""

    kind: str
    severity: str
    where: str  # part of "file: place: message"


SEEDS = (
    Seed("repeated-video", "error", '["dup"]'),
    Seed("repeated-key", "error", '["key"].annotations[0]'),
    Seed("malformed-entry", "error", '["words"].annotations[0].segment'),
    Seed("empty-segment", "error", '["inverted"].annotations[0].segment'),
    Seed("negative-time", "error", '["early"].annotations[1].segment'),
    Seed("segment-beyond-duration", "warning", '["beyond"].annotations[0].segment'),
    Seed("repeated-segment", "warning", '["repeated"].annotations[1]'),
    Seed("several-labels", "note", '["two labels"]'),
    Seed("labels-alike", "warning", '"Run" and "run"'),
    Seed("label-not-in-class-map", "error", '["unmapped"]'),
    Seed("empty-split", "error", "No video is in subset 'nope'"),
    Seed("no-ground-truth", "warning", "'validation': 1 videos"),
    Seed("unused-subset", "warning", "'trainin'"),
    Seed("untrained-class", "warning", '"fly"'),
    Seed("no-actions", "note", '["nothing"]'),
    Seed("leak-name", "warning", '["plain"]'),
    Seed("leak-content", "error", '"copied" (test) = "plain" (training)'),
    Seed("names-alike", "warning", '"Early" (training)'),
    Seed("same-content", "warning", '"again" (training)'),
    Seed("same-actions", "warning", '["twin one"]'),
    Seed("missing-video", "error", "lost"),
    Seed("unreadable-video", "error", "broken.mp4"),
    Seed("truncated-video", "error", "cut.mp4"),
    Seed("short-video", "warning", "short.mp4"),
    Seed("duration-contradicts", "error", "stretched.mp4"),
    Seed("fps-contradicts", "warning", "paced.mp4"),
    Seed("segment-beyond-file", "warning", "past.mp4"),
    Seed("unannotated-video", "note", "spare.mp4"),
    Seed("damaged-features", "error", "bits"),
    Seed("odd-features", "warning", "loud"),
    Seed("nan-rows", "error", "holes"),
    Seed("constant-features", "error", "flat"),
    Seed("features-length", "warning", "lasting"),
    Seed("features-of-another-file", "warning", "replaced"),
    Seed("missing-features", "warning", "unstored"),
    Seed("unannotated-features", "note", "stray"),
    Seed("other-spec", "error", "stride 4 frames"),
    Seed("class-scores", "error", "scores.json"),
    Seed("longer-than-window", "warning", "beyond"),
    Seed("no-level", "warning", "blink"),
)


@dataclass(frozen=True)
class _Made:
    """A video of the project: how it is annotated and what its file is."""

    actions: tuple[Any, ...] = (RUN, JUMP)
    subset: str = "training"
    more: dict[str, Any] | None = None  # other keys of its entry; None as a value removes one
    spoil: Callable[[Path], object] | None = None  # what is done to the file
    frames: int | None = None


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


VIDEOS = {
    "plain": _Made(),
    "dup": _Made(),
    "dup again": _Made(spoil=Path.unlink),  # becomes the second "dup"
    "key": _Made((([0.2, 0.9], "jump"),)),
    "words": _Made(((["0.1", 1], "run"),)),
    "inverted": _Made((([1.5, 0.5], "run"),)),
    "early": _Made((RUN, ([-1.0, 0.5], "jump"))),
    "Early": _Made((([0.25, 0.75], "run"),), spoil=Path.unlink),
    "again": _Made((([0.25, 0.8], "run"),)),
    "beyond": _Made((([0.5, 7.0], "run"),)),
    "repeated": _Made((RUN, RUN)),
    "two labels": _Made((([0.3, 1.2], "run"), ([0.3, 1.2], "jump"))),
    "alike": _Made((([0.4, 1.2], "Run"),)),
    "unmapped": _Made((([0.4, 1.3], "swim"),)),
    "typo": _Made(subset="trainin"),
    "nothing": _Made(()),
    "watched": _Made((), subset="validation"),
    "tested": _Made((([0.5, 1.5], "fly"),), subset="test"),
    "plain.mp4": _Made((([0.6, 1.5], "run"),), subset="test", spoil=Path.unlink),
    "copied": _Made((([0.7, 1.5], "run"),), subset="test"),
    "twin one": _Made((RUN, ([1.2, 1.8], "run")), more={"duration": 2.5}, frames=75),
    "twin two": _Made((RUN, ([1.2, 1.8], "run")), more={"duration": 2.5}, frames=76),
    "lost": _Made(spoil=Path.unlink),
    "broken": _Made(spoil=lambda path: path.write_bytes(b"no video" * 999)),
    "cut": _Made(spoil=_half),
    "short": _Made((([0.1, 0.2], "run"),), frames=8),
    "stretched": _Made(more={"duration": 9.0}),
    "paced": _Made(more={"fps": 25.0}),
    "past": _Made((RUN, ([1.0, 4.0], "jump")), more={"duration": None}),
    "holes": _Made(),
    "flat": _Made(),
    "loud": _Made(),
    "bits": _Made(),
    "lasting": _Made(),
    "replaced": _Made(),
    "unstored": _Made(),
    "blink": _Made((([1.01, 1.03], "run"),)),
}


def make_seeded_project(folder: Path) -> None:
    """Write `labels.json`, its class map, `videos/` and `store.zarr`."""
    (folder / "videos").mkdir(parents=True)
    database, frames = {}, {}
    for i, (name, made) in enumerate(VIDEOS.items()):
        frames[name] = made.frames or FRAMES + i
        path = make_video(folder / "videos" / f"{name}.mp4", frames=frames[name], gop=8, b_frames=0)
        if made.spoil is not None:
            made.spoil(path)
        entry = {
            "subset": made.subset,
            "duration": frames[name] / FPS,
            "annotations": [{"segment": times, "label": label} for times, label in made.actions],
            **(made.more or {}),
        }
        database[name] = {key: value for key, value in entry.items() if value is not None}
    make_video(folder / "videos" / "spare.mp4", frames=50)
    for original, copy in (("plain", "copied"), ("early", "again")):
        shutil.copyfile(folder / "videos" / f"{original}.mp4", folder / "videos" / f"{copy}.mp4")
        frames[copy] = frames[original]
        database[copy]["duration"] = frames[original] / FPS
    text = json.dumps({"database": database}).replace('"dup again"', '"dup"')
    text = text.replace('"segment": [0.2, 0.9]', '"segment": [0, 9], "segment": [0.2, 0.9]')
    (folder / "labels.json").write_text(text, encoding="utf-8")
    (folder / "category_idx.txt").write_text("run\njump\nRun\nfly\n", encoding="utf-8")
    _make_store(folder / "store.zarr", frames)


def _make_store(path: Path, frames: dict[str, int]) -> None:
    store = FeatureStore.create(path)
    rng = np.random.default_rng(0)
    with store.writer(SPEC) as writer:
        for name in [*VIDEOS, "stray"]:
            if name in NOT_STORED or name == "dup again":
                continue
            seen = frames.get(name, FRAMES) - 3 * (name == "replaced")
            rows = max((seen - CLIP) // STRIDE + 1, 1) + 40 * (name == "lasting")
            values = rng.normal(size=(rows, CHANNELS)).astype(np.float16)
            values[2:4] = np.nan if name == "holes" else values[2:4]
            values = np.full_like(values, 0.5) if name == "flat" else values
            values *= 100 if name == "loud" else 1
            writer.add(
                name,
                hashlib.sha256(name.encode()).hexdigest(),
                values,
                np.array([row_sec(row) for row in range(rows)]),
                t0=row_sec(0),
                dt=Fraction(STRIDE, FPS),
                fps=Fraction(FPS),
                frames=seen,
                duration_sec=seen / FPS,
            )
    row = store["bits"].row
    part = store.path / "features" / SPEC.fid / "parts" / row.part / "features" / "c.0.0"
    content = bytearray(part.read_bytes())
    content[row.first_row * CHANNELS * 2 + 1] ^= 0xFF
    part.write_bytes(content)
