"""A small store on disk with annotations, and settings that train on it in about a second.

An action of class k is a run of rows in which channel k is high; the rest is noise.
"""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tadpipe.config import PixelRecipe
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec

CHANNELS, STRIDE, CLIP, FPS = 4, 4, 16, 30
SPEC = FeatureSpec(
    backbone="made-up",
    weights_sha256="0" * 64,
    channels=CHANNELS,
    clip_len=CLIP,
    stride=STRIDE,
    pixels=PixelRecipe(),
)
# A detector small enough for tests.
SMALL = (
    "model.window_len=32",
    "model.embed_dim=8",
    "model.neck_dim=8",
    "model.head_dim=8",
    "model.num_heads=2",
    "model.branch_layers=2",
    "model.stem_layers=1",
    "model.regression_ranges=[[0, 4], [4, 8], [8, 10000]]",
    "model.attention_windows=5",
    "training.learning_rate=0.003",
    "training.warmup_epochs=1",
    "training.epochs=3",
    "training.min_steps=0",
    "training.tensorboard=false",
    "nms.max_segments=20",
)


def features(rows: int, segments: list[tuple[int, int, int]], seed: int) -> np.ndarray[Any, Any]:
    """[rows, C]; segments are (first row, last row, class)."""
    values = np.random.default_rng(seed).normal(0, 0.1, (rows, CHANNELS))
    for first, last, label in segments:
        values[first : last + 1, label] += 2
    return values.astype(np.float16)


def row_sec(row: float) -> float:
    """Centre time of a row."""
    return (row * STRIDE + CLIP / 2) / FPS


def make_store(path: Path, *, videos: int = 6, rows: int = 40, spec: FeatureSpec = SPEC) -> Path:
    """`videos` training videos, two for validation and two for testing."""
    database: dict[str, Any] = {}
    store = FeatureStore.create(path)
    with store.writer(spec) as writer:
        for i in range(videos + 4):
            subset = "training" if i < videos else "validation" if i < videos + 2 else "testing"
            first = 5 + 3 * i % (rows - 20)
            segments = [(first, first + 8, i % 2)]
            length = rows + i  # videos differ in length
            duration_sec = ((length - 1) * STRIDE + CLIP) / FPS
            values = np.zeros((length, spec.channels), np.float16)
            made = features(length, segments, i)
            values[:, :CHANNELS] = made[:, : spec.channels]
            name = f"video {i}"
            writer.add(
                name,
                hashlib.sha256(values.tobytes()).hexdigest(),
                values,
                np.array([row_sec(row) for row in range(length)]),
                t0=row_sec(0),
                dt=Fraction(spec.stride, FPS),
                fps=Fraction(FPS),
                frames=(length - 1) * STRIDE + CLIP,
                duration_sec=duration_sec,
            )
            database[name] = {
                "subset": subset,
                "duration": duration_sec,
                "annotations": [
                    {"segment": [row_sec(a), row_sec(b)], "label": f"class {k}"}
                    for a, b, k in segments
                ],
            }
    store.set_annotations(json.dumps({"database": database}).encode())
    return path
