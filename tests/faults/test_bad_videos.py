"""Broken videos at the decoder: each gives its typed error or all frames that are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tadpipe.errors import VideoError, VideoReason
from tadpipe.video.process import DecodeProcess
from tadpipe.video.reader import open_frames, probe
from tests.corpus import (
    BROKEN,
    frame_number,
    make_bad_videos,
    make_picture,
    make_video,
    no_read_override,
)

# name -> reason, and frames that come before it
EXPECTED: dict[str, tuple[VideoReason | None, int]] = {
    "zero_bytes": (VideoReason.NOT_A_VIDEO, 0),
    "truncated": (VideoReason.TRUNCATED, 28),
    "no_moov": (VideoReason.NOT_A_VIDEO, 0),
    "audio_only": (VideoReason.NO_VIDEO_STREAM, 0),
    "wrong_extension": (None, 54),
    "one_frame": (None, 1),
    "huge_claimed_duration": (None, 56),
    "variable_rate": (None, 58),
    "permission_denied": (VideoReason.PERMISSION, 0),
    "symlink_loop": (VideoReason.NOT_FOUND, 0),
    "same_content_twice": (None, 54),
    "name_not_utf8": (None, 62),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bad_videos(tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecodeProcess]:
    with DecodeProcess() as process:
        yield process


def decoded(
    frames: Iterator[np.ndarray] | Callable[[], Iterator[np.ndarray]],
) -> tuple[list[np.ndarray], VideoError | None]:
    """All pictures that come, and the error that ends them."""
    pictures: list[np.ndarray] = []
    try:
        for picture in frames() if callable(frames) else frames:
            pictures.append(picture)
    except VideoError as error:
        return pictures, error
    return pictures, None


def test_the_table_is_complete() -> None:
    assert set(EXPECTED) == set(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_gives_its_reason_after_what_can_be_decoded(
    files: dict[str, Path], decoder: DecodeProcess, name: str
) -> None:
    reason, count = EXPECTED[name]
    for frames in (lambda: open_frames(files[name]), lambda: decoder.frames(files[name])):
        with no_read_override():
            pictures, caught = decoded(frames)
        assert [frame_number(picture) for picture in pictures] == list(range(count))
        assert (caught.reason if caught else None) is reason
        if caught:
            assert caught.what.endswith(".")
            assert files[name].stem[:4] in caught.where


def test_claimed_duration_is_not_believed(files: dict[str, Path]) -> None:
    assert probe(files["huge_claimed_duration"]).duration_sec == pytest.approx(56 / 30)


def test_error_of_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))
    with pytest.raises(VideoError) as caught:
        probe(path)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "flv"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_file_cut_off_is_told_from_a_whole_one(tmp_path: Path, suffix: str, share: float) -> None:
    whole = make_video(tmp_path / f"whole.{suffix}", frames=70)
    assert not probe(whole).truncated
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    # One byte more than whole packets of a transport stream, whose cut at a packet leaves no trace.
    cut.write_bytes(content[: int(len(content) * share) // 188 * 188 + 1])
    stream = open_frames(cut)
    pictures, error = decoded(stream)
    assert error is not None
    assert error.reason is VideoReason.TRUNCATED
    assert 0 < len(pictures) < 70
    assert stream.delivered_probe().frames == len(pictures)
    for index, picture in enumerate(pictures[:-4]):  # behind a lost B-frame numbers have a gap
        assert frame_number(picture) == index


def test_damage_in_the_middle_stops_with_a_typed_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "damaged.mp4", frames=60, b_frames=0)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1500] = bytes(1500)
    path.write_bytes(content)
    pictures, error = decoded(open_frames(path))
    assert error is not None
    assert error.reason is VideoReason.DECODE_ERROR
    assert 0 < len(pictures) < 60


def test_lost_packets_leave_the_times_of_the_others(tmp_path: Path) -> None:
    path = make_video(tmp_path / "gap.mkv", frames=60, b_frames=0, gop=5)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1500] = bytes(1500)
    path.write_bytes(content)
    stream = open_frames(path)
    pictures, _ = decoded(stream)
    times = stream.delivered_probe().times_sec
    assert len(times) == len(pictures) < 60
    assert frame_number(pictures[-1]) == 59
    assert times[-1] == pytest.approx(59 / 30, abs=1e-3)


@pytest.mark.parametrize("content", [b"\0" * 5000, b"no video at all\n" * 300, b"\xff\xd8" * 900])
def test_bytes_that_are_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason in (VideoReason.NOT_A_VIDEO, VideoReason.NO_VIDEO_STREAM)


def test_random_bytes_and_random_damage_give_only_typed_errors(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    healthy = make_video(tmp_path / "healthy.mp4", frames=12).read_bytes()
    path = tmp_path / "damaged.mp4"
    for _ in range(40):
        content = bytearray(healthy)
        for position in generator.integers(0, len(content), 12):
            content[position] = generator.integers(256)
        path.write_bytes(content)
        try:
            count = sum(1 for _ in open_frames(path))
        except VideoError:
            continue
        assert count > 0


def test_folder_and_device_are_no_videos(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(VideoError) as caught:
            probe(path)
        assert caught.value.reason is VideoReason.NOT_A_VIDEO


def test_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "picture.mp4"
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        frame = av.VideoFrame.from_ndarray(make_picture(0, 96, 64), format="rgb24")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason is VideoReason.NOT_A_VIDEO
