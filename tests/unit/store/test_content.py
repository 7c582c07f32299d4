"""A file is hashed once, and again when it changed."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from tadpipe.store.content import ContentIndex
from tadpipe.store.feature_store import FeatureStore


@pytest.fixture(params=[".zarr", ".h5"])
def store_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return FeatureStore.create(tmp_path / f"x{request.param}").path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")  # not UTF-8
    path.write_bytes(b"frames")
    return path


def test_second_run_reads_no_file(store_path: Path, video: Path) -> None:
    first, second = ContentIndex(store_path), ContentIndex(store_path)
    assert first.sha256(video) == hashlib.sha256(b"frames").hexdigest()
    third = ContentIndex(store_path)
    assert third.sha256(video) == first.sha256(video)
    assert (first.hashed, second.hashed, third.hashed) == (1, 0, 0)


def test_changed_file_is_hashed_again(store_path: Path, video: Path) -> None:
    ContentIndex(store_path).sha256(video)
    video.write_bytes(b"other!")
    os.utime(video, ns=(1, 1))
    assert ContentIndex(store_path).sha256(video) == hashlib.sha256(b"other!").hexdigest()


def test_torn_line_costs_only_itself(
    store_path: Path, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = ContentIndex(store_path)
    index.sha256(video)
    index.path.write_bytes(index.path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        again = ContentIndex(store_path)
    assert "unreadable line" in caplog.text
    again.sha256(video)
    assert ContentIndex(store_path).sha256(video) == again.sha256(video)


def test_dry_run_writes_nothing(tmp_path: Path, video: Path) -> None:
    index = ContentIndex(tmp_path / "no-store.zarr", remember=False)
    assert index.sha256(video) == index.sha256(video)
    assert index.hashed == 1
    assert not index.path.exists()
