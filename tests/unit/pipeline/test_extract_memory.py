"""The memory of an extraction depends neither on a video's length nor on how many there are."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.extract_report import ExtractReport

SETTINGS: dict[str, Any] = {"backbone": "videomae-tiny", "weights": "random", "device": "cpu"}
MB = 1 << 20
SIDE = 32  # pixels; the length is what matters here


def make_long_video(path: Path, frames: int, seed: int = 0) -> Path:
    """Small pictures of noise that repeat, 30 a second."""
    pictures = np.random.default_rng(seed).integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"preset": "ultrafast", "crf": "40"}
        for index in range(frames):
            picture = pictures[index % len(pictures)]
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def peak_bytes() -> int:
    """Largest resident size of this process since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def extract_all(videos: list[Path], tmp_path: Path, stride: int) -> ExtractReport:
    report = extract(list(videos), store=tmp_path / "s.zarr", stride=stride, **SETTINGS)
    assert report.count("done") == len(videos)
    return report


def growth_with_length(tmp_path: Path, short_frames: int, long_frames: int, stride: int) -> int:
    """Bytes by which the peak is higher for a long video than for a short one."""
    short = make_long_video(tmp_path / "short.mp4", short_frames)
    long = make_long_video(tmp_path / "long.mp4", long_frames)
    extract_all([short], tmp_path, stride)
    peak_of_short = peak_bytes()
    forget_peak()
    extract_all([long], tmp_path, stride)
    return peak_bytes() - peak_of_short


def growth_with_number(tmp_path: Path, warm: int, more: int) -> int:
    """Bytes by which `more` videos in one run raise the peak after `warm` videos in one run."""
    videos = [make_long_video(tmp_path / f"{i}.mp4", 17, seed=i) for i in range(warm + more)]
    extract_all(videos[:warm], tmp_path, 4)
    forget_peak()
    before = peak_bytes()
    extract_all(videos[warm:], tmp_path, 4)
    return peak_bytes() - before


def test_a_longer_video_takes_no_more_memory(tmp_path: Path) -> None:
    assert growth_with_length(tmp_path, 300, 3000, stride=8) < 12 * MB


def test_many_videos_in_one_process_take_no_more_memory(tmp_path: Path) -> None:
    assert growth_with_number(tmp_path, warm=4, more=24) < 12 * MB


@pytest.mark.slow
def test_two_hours_take_at_most_fifty_megabytes_more_than_a_minute(tmp_path: Path) -> None:
    growth = growth_with_length(tmp_path, 60 * 30, 2 * 3600 * 30, stride=64)
    print(f"two hours against a minute: {growth / MB:.1f} MB")
    assert growth < 50 * MB


@pytest.mark.slow
def test_a_thousand_videos_in_one_process_are_flat(tmp_path: Path) -> None:
    growth = growth_with_number(tmp_path, warm=50, more=1000)
    print(f"a thousand videos: {growth / MB:.1f} MB")
    assert growth < 20 * MB
