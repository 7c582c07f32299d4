"""The same extraction started twice at once: both end well, and the store is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.verify import verify
from tests.corpus import make_video

VIDEOS = 4


@pytest.mark.slow
def test_two_runs_of_one_extraction_at_once_give_one_right_store(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(VIDEOS):
        make_video(folder / f"v{number}.mp4", frames=60 + number)
    words = ["extract", str(folder), "--backbone", "videomae-tiny", "--weights", "random"]
    command = [sys.executable, "-m", "tadpipe", *words, "--store", str(tmp_path / "x.zarr")]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    store = FeatureStore.open(tmp_path / "x.zarr")
    (fid,) = store.specs()
    assert set(store.videos(fid)) == {f"v{number}" for number in range(VIDEOS)}
    assert verify(store, deep=True) == []
    status = store.status()
    assert (len(status.failed), status.waiting_in_spool) == (0, 0)


@pytest.mark.slow
def test_second_run_into_an_hdf5_store_is_told_or_comes_after(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(VIDEOS):
        make_video(folder / f"v{number}.mp4", frames=60 + number)
    words = ["extract", str(folder), "--backbone", "videomae-tiny", "--weights", "random"]
    command = [sys.executable, "-m", "tadpipe", *words, "--store", str(tmp_path / "x.h5")]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(run.communicate()[1], run.returncode) for run in runs]
    for error, code in ended:
        assert code == 0 or "Another process is writing to this HDF5 store." in error
        assert "Traceback" not in error
    assert 0 in [code for _, code in ended]
    store = FeatureStore.open(tmp_path / "x.h5")
    (fid,) = store.specs()
    assert set(store.videos(fid)) == {f"v{number}" for number in range(VIDEOS)}
    assert verify(store, deep=True) == []
