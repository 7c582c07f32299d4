"""Weights are found again by their hash: a file where it was seen, random ones by their seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tadpipe.pipeline.known_weights import (
    KnownWeights,
    cache_file,
    find_weights,
    remember_weights,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_file_is_found_until_it_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "weights: random.pth"
    file.write_bytes(b"x")
    remember_weights("a" * 64, KnownWeights(file))
    assert find_weights("a" * 64) == KnownWeights(file)
    file.unlink()
    assert find_weights("a" * 64) is None


def test_random_weights_are_found_by_their_seed() -> None:
    remember_weights("b" * 64, KnownWeights("random", 3))
    assert find_weights("b" * 64) == KnownWeights("random", 3)


def test_damaged_cache_is_an_empty_one() -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text("{")
    assert find_weights("c" * 64) is None
    remember_weights("c" * 64, KnownWeights("random"))
    assert find_weights("c" * 64) == KnownWeights("random")
