"""Small made-up videos for store tests: rows that follow from a seed, never the same twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from tadpipe.config import PixelRecipe
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.writer import StoreWriter

Array = np.ndarray[Any, Any]
CHANNELS = 6
SPEC = FeatureSpec("tiny", "0" * 64, CHANNELS, clip_len=16, stride=4, pixels=PixelRecipe(size=8))


def spec(**changes: Any) -> FeatureSpec:
    return replace(SPEC, **changes)


def content(seed: int) -> str:
    return hashlib.sha256(f"video {seed}".encode()).hexdigest()


def rows(seed: int, count: int | None = None, dtype: str = "float16") -> Array:
    """[n, C]; n follows from the seed too unless it is given."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 150)) if count is None else count
    return draw.normal(size=(count, CHANNELS)).astype(dtype)


def times(count: int) -> Array:
    return (np.arange(count) * 4 + 8) / 30.0


def add(
    writer: StoreWriter, name: str, seed: int, features: Array | None = None, **changes: Any
) -> None:
    features = rows(seed) if features is None else features
    facts: dict[str, Any] = {
        "t0": 8 / 30,
        "dt": Fraction(4, 30),
        "fps": Fraction(30),
        "frames": 4 * len(features) + 12,
        "duration_sec": (4 * len(features) + 12) / 30,
    }
    stamps = changes.pop("times", times(len(features)))
    writer.add(name, content(seed), features, stamps, **{**facts, **changes})


def fill(store: FeatureStore, seeds: Iterable[int], part_rows: int = 32_768) -> None:
    """Videos named v0, v1, ... after their seeds."""
    with store.writer(SPEC, part_rows=part_rows) as writer:
        for seed in seeds:
            add(writer, f"v{seed}", seed)
