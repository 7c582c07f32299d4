"""Videos on which the decoder hangs: typed ledger rows, and a run that ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tadpipe.pipeline.extract import extract
from tadpipe.store.feature_store import FeatureStore
from tadpipe.video import process
from tests.corpus import make_video

# A decoder that waits for ever instead of opening what has "hang" in its name.
BOOT = """
import sys, threading
sys.path[:] = sys.argv[3:]
from tadpipe.video import worker
opens = worker.open_frames
worker.open_frames = lambda path, *rest, **named: (
    threading.Event().wait() if "hang" in path else opens(path, *rest, **named)
)
worker.main()
"""


def test_ten_videos_that_hang_are_ten_rows_and_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "BOOT", BOOT)
    (tmp_path / "in").mkdir()
    for i in range(10):
        make_video(tmp_path / "in" / f"hang{i}.mp4", frames=2 + i, size=(64, 48))
    report = extract(
        [tmp_path / "in"],
        store=tmp_path / "s.zarr",
        backbone="videomae-tiny",
        weights="random",
        device="cpu",
        decoders=5,
        decode_timeout_sec=0.3,
    )
    assert report.exit_code == 3
    store = FeatureStore.open(tmp_path / "s.zarr")
    rows = {row.name: (row.status, row.reason) for _, row in store.backend.attempts()}
    assert rows == {f"hang{i}": ("failed", "decode-timeout") for i in range(10)}
