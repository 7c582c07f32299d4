"""Batches: shuffled, seeded, the same from any step on."""

from __future__ import annotations

import pytest
import torch

from tadpipe.annotations import Action, Video
from tadpipe.datasets.loader import Batch, WindowLoader, read_ahead
from tadpipe.datasets.sources import FeatureSource
from tadpipe.datasets.windows import TrainingWindows, WindowConfig
from tadpipe.errors import ConfigError, StoreError
from tests.unit.datasets.in_memory import MemoryTable, ramp


def loader(videos: int = 7, *, batch_size: int = 2, seed: int = 0) -> WindowLoader:
    names = [f"v{i}" for i in range(videos)]
    table = MemoryTable({name: ramp(40 + i, start=100.0 * i) for i, name in enumerate(names)})
    annotated = {name: Video(name, "training", actions=(Action(1, 2, "a"),)) for name in names}
    windows = TrainingWindows(FeatureSource([table]), annotated, {"a": 0}, WindowConfig(), 32)
    return WindowLoader(windows, batch_size, seed=seed)


def same(a: Batch, b: Batch) -> bool:
    return (
        a.names == b.names
        and torch.equal(a.feats, b.feats)
        and torch.equal(a.mask, b.mask)
        and all(torch.equal(x, y) for x, y in zip(a.segments, b.segments, strict=True))
    )


def test_an_epoch_holds_every_video_once_but_the_incomplete_batch() -> None:
    batches = list(loader().batches(0, 3))
    names = [name for batch in batches for name in batch.names]
    assert loader().steps_per_pass == 3
    assert len(set(names)) == len(names) == 6


def test_epochs_are_shuffled_anew() -> None:
    first, second = (
        [name for batch in loader().batches(start, start + 3) for name in batch.names]
        for start in (0, 3)
    )
    assert first != second


def test_the_batches_from_any_step_on_are_those_of_an_uninterrupted_run() -> None:
    whole = list(loader().batches(0, 12))
    for start in (1, 5, 11):
        rest = list(loader().batches(start, 12))
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_seeds_differ_and_a_seed_repeats() -> None:
    assert same(loader(seed=3).batch(0), loader(seed=3).batch(0))
    assert not same(loader(seed=3).batch(0), loader(seed=4).batch(0))


def test_stopping_early_ends_the_reading_thread() -> None:
    batches = loader().batches(0, 1000)
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert list(batches) == []


def test_an_error_while_reading_ahead_reaches_the_caller() -> None:
    broken = loader()
    del broken.windows.source._tables[0].videos["v3"]  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="v3"):
        list(broken.batches(0, 6))


def test_fewer_videos_than_a_batch_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size=1"):
        loader(1, batch_size=2)


def test_nothing_is_made_after_what_failed() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        if step == 1:
            raise StoreError("The object storage does not answer.")
        return step

    batches = read_ahead(make, 0, 10, ahead=4)
    with pytest.raises(StoreError):
        list(batches)
    assert made == [0, 1]
