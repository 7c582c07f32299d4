"""Twelve broken files in one extraction: typed ledger rows or right features, exit code 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tadpipe.pipeline.extract import extract
from tadpipe.store.feature_store import FeatureStore
from tests.corpus import make_bad_videos, no_read_override

# reason of the failure, or the rows that must be there (stride 4, clips of 16 frames)
EXPECTED: dict[str, str | int] = {
    "zero_bytes": "not-a-video",
    "truncated": "truncated",
    "no_moov": "not-a-video",
    "audio_only": "no-video-stream",
    "wrong_extension": (54 - 16) // 4 + 1,
    "one_frame": "too-short",
    "huge_claimed_duration": (56 - 16) // 4 + 1,
    "variable_rate": (58 - 16) // 4 + 1,
    "permission_denied": "permission",
    "symlink_loop": "not-found",
    "same_content_twice": (54 - 16) // 4 + 1,
    "name_not_utf8": (62 - 16) // 4 + 1,
}


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_every_broken_file_is_recorded_and_the_run_goes_on(tmp_path: Path, suffix: str) -> None:
    files = make_bad_videos(tmp_path / "videos")
    path = tmp_path / f"s{suffix}"
    settings: dict[str, Any] = {"backbone": "videomae-tiny", "weights": "random", "device": "cpu"}
    with no_read_override():
        report = extract([tmp_path / "videos"], store=path, **settings)
    assert report.exit_code == 3
    assert len(report.videos) == len(files) == 12
    outcomes = {video.name: video for video in report.videos}
    store = FeatureStore.open(path)
    for name, expected in EXPECTED.items():
        alias = files[name].stem
        if isinstance(expected, str):
            assert (outcomes[alias].status, outcomes[alias].reason) == ("failed", expected)
            assert alias not in store.videos(report.fid)
        else:
            assert outcomes[alias].status in ("done", "reused")
            assert len(store[alias]) == expected
    rows = {row.name: row for _, row in store.backend.attempts()}
    assert set(rows) == set(outcomes)
    assert all(rows[name].reason == outcomes[name].reason for name in rows)
    assert "name_\\xff\\xfe_not_utf8" not in report.text()  # only failed videos are listed
    report.text().encode("utf-8")
