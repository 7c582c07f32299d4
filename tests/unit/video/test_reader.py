"""The two decoders against one contract, and what the packets-only pass tells before decoding."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tadpipe.errors import ConfigError, VideoError, VideoReason
from tadpipe.video.packets import scan_packets
from tadpipe.video.reader import Decoder, frames_at, open_frames, probe
from tests.corpus import (
    cut_by_edit_list,
    frame_number,
    make_picture,
    make_video,
    uneven_times,
)

REAL = Path(__file__).parents[4] / "shared" / "data" / "videos"
NTSC = Fraction(30000, 1001)
real_videos = pytest.mark.skipif(not REAL.is_dir(), reason="no shared videos here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


# Files that both decoders read: name -> how it is made, and the true presentation times.
COMMON = {
    "b_frames.mp4": {"frames": 90, "gop": 40},
    "ntsc.mp4": {"fps": NTSC},
    "ntsc.mkv": {"fps": NTSC},
    "variable.mp4": {"times_sec": uneven_times(60)},
    "variable.mkv": {"times_sec": uneven_times(60)},
    "offset.mkv": {"start_sec": Fraction(3, 2)},
    "offset.mp4": {"start_sec": Fraction(3, 2)},
    "delayed.flv": {},
    "odd_size.mp4": {"size": (97, 65)},
    "one.mp4": {"frames": 1},
    "with_sound.mp4": {"audio": True},
    "vp9.webm": {"frames": 30, "codec": "libvpx-vp9"},
}


def made(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else make_video(path, **COMMON[name])


def true_times(name: str) -> np.ndarray:
    """Presentation times as they were given to the encoder, from the first frame."""
    how = COMMON[name]
    times = how.get("times_sec") or [
        Fraction(i) / how.get("fps", 30) for i in range(how.get("frames", 60))
    ]
    return np.array([float(time) for time in times])


class DecoderContract:
    """What every decoder must do; subclasses name one."""

    decoder: Decoder

    @pytest.mark.parametrize("name", COMMON)
    def test_every_frame_comes_once_and_in_order(self, folder: Path, name: str) -> None:
        frames = list(open_frames(made(folder, name), self.decoder))
        assert [frame_number(frame) for frame in frames] == list(range(len(true_times(name))))

    @pytest.mark.parametrize("name", COMMON)
    def test_frames_are_rgb_of_native_size(self, folder: Path, name: str) -> None:
        frame = next(open_frames(made(folder, name), self.decoder))
        width, height = COMMON[name].get("size", (96, 64))
        assert frame.shape == (height, width, 3)
        assert frame.dtype == np.uint8
        # Colour codes are lossy (4:2:0): a swap of red and blue would differ by far more.
        expected = make_picture(0, width, height).astype(int)
        assert np.abs(frame.astype(int) - expected).mean() < 12

    @pytest.mark.parametrize("name", COMMON)
    def test_times_are_those_of_the_encoder(self, folder: Path, name: str) -> None:
        stream = open_frames(made(folder, name), self.decoder)
        delivered = sum(1 for _ in stream)
        times = np.array(stream.delivered_probe().times_sec)
        assert len(times) == delivered
        # 1 ms: mkv and flv round to it.
        np.testing.assert_allclose(times - times[0], true_times(name), atol=1.001e-3)

    @pytest.mark.parametrize("name", ["b_frames.mp4", "variable.mkv", "odd_size.mp4", "vp9.webm"])
    def test_random_access_gives_the_frames_of_the_walk(self, folder: Path, name: str) -> None:
        path = made(folder, name)
        walked = list(open_frames(path, self.decoder))
        last = len(walked) - 1
        for indices in ([0], [last], [5, 3, 3, last, 0, 17], range(10, 26)):
            expected = np.stack([walked[i] for i in indices])
            np.testing.assert_array_equal(frames_at(path, list(indices), self.decoder), expected)

    def test_no_indices_give_no_frames(self, folder: Path) -> None:
        assert frames_at(made(folder, "one.mp4"), [], self.decoder).shape == (0, 64, 96, 3)

    @pytest.mark.parametrize("index", [-1, 60])
    def test_index_outside_the_video_is_refused(self, folder: Path, index: int) -> None:
        with pytest.raises(ConfigError, match="outside the video"):
            frames_at(made(folder, "ntsc.mp4"), [index], self.decoder)

    def test_names_are_taken_literally(self, folder: Path) -> None:
        content = made(folder, "one.mp4").read_bytes()
        for name in ("a b.mp4", "http:x.mp4", "x%03d.mp4", "日本 ü.mp4", "no_suffix"):
            (folder / name).write_bytes(content)
            assert len(list(open_frames(folder / name, self.decoder))) == 1

    def test_missing_file_is_a_typed_error(self, folder: Path) -> None:
        with pytest.raises(VideoError) as caught:
            open_frames(folder / "missing.mp4", self.decoder)
        assert caught.value.reason is VideoReason.NOT_FOUND

    @real_videos
    @pytest.mark.parametrize("name", ["mma_demo.mp4", "v_ZNVhz7ctTq0.mp4"])
    def test_real_video_agrees_with_plain_pyav(self, name: str) -> None:
        frames = open_frames(REAL / name, self.decoder)
        with av.open(str(REAL / name)) as container:
            expected = container.decode(video=0)
            for index, (ours, theirs) in enumerate(zip(frames, expected, strict=True)):
                if index % 10 == 0:
                    np.testing.assert_array_equal(ours, theirs.to_ndarray(format="rgb24"))


class TestPyav(DecoderContract):
    decoder = "pyav"


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
class TestDecord(DecoderContract):
    decoder = "decord"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("b_frames.avi", {}),
        ("b_frames.ts", {}),
        ("sound.ts", {"audio": True}),
        ("m4.avi", {"codec": "mpeg4"}),
        ("m4.mp4", {"codec": "mpeg4"}),
        ("raw.h264", {}),
        ("ps.mpg", {"codec": "mpeg2video"}),
        ("hevc.mp4", {"codec": "libx265", "frames": 20}),
    ],
)
def test_pyav_reads_what_decord_may_not(folder: Path, name: str, how: dict) -> None:
    path = make_video(folder / name, **{"frames": 50, **how})
    assert not probe(path).decord_safe
    frames = list(open_frames(path))
    count = how.get("frames", 50)
    assert [frame_number(frame) for frame in frames] == list(range(count))
    assert [frame_number(frame) for frame in frames_at(path, [count - 1, 7, 3])] == [
        count - 1,
        7,
        3,
    ]
    with pytest.raises((VideoError, ConfigError), match="pyav"):
        frames_at(path, [0], "decord")


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_tag_turns_the_picture_upright(folder: Path, degrees: int) -> None:
    plain = made(folder, "b_frames.mp4")
    turned = make_video(folder / f"turned_{degrees}.mp4", frames=40, rotation_deg=degrees)
    information = probe(turned)
    assert information.rotation_deg == degrees
    assert not information.decord_safe
    expected_size = (64, 96) if degrees in (90, 270) else (96, 64)
    assert (information.width, information.height) == expected_size
    # numpy turns counter-clockwise, the tag asks for a clockwise turn.
    straight = np.rot90(next(open_frames(plain)), -degrees // 90)
    for picture in (next(open_frames(turned)), frames_at(turned, [0])[0]):
        assert picture.shape == (expected_size[1], expected_size[0], 3)
        assert np.abs(picture.astype(int) - straight).mean() < 3


def test_probe_counts_and_times_constant_rate(folder: Path) -> None:
    information = probe(made(folder, "ntsc.mp4"))
    assert information.frames == 60
    assert information.fps == NTSC
    assert information.times_sec[59] == pytest.approx(59 * 1001 / 30000)
    assert information.duration_sec == pytest.approx(60 * 1001 / 30000)
    assert information.decord_safe
    assert not information.truncated


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv"])
def test_variable_rate_has_no_fps(folder: Path, name: str) -> None:
    assert probe(made(folder, name)).fps is None


def test_start_is_that_of_the_container(folder: Path) -> None:
    assert probe(made(folder, "offset.mkv")).times_sec[0] == 0.0
    assert probe(made(folder, "delayed.flv")).times_sec[0] == 0.0
    # In a transport stream with sound the sound begins first, and the container with it.
    path = make_video(folder / "sound_first.ts", audio=True)
    with av.open(str(path)) as container:
        first = min(packet.pts for packet in container.demux(video=0) if packet.pts is not None)
        lag_sec = first / 90_000 - container.start_time / 1e6
    assert lag_sec > 0.05
    assert probe(path).times_sec[0] == pytest.approx(lag_sec, abs=2e-6)


@pytest.mark.parametrize(
    ("cut", "first", "count"),
    [
        ({"first_ticks": 10 * 512}, 10, 50),
        ({"duration_ticks": 1000}, 0, 30),
        ({"first_ticks": 10 * 512, "duration_ticks": 1000}, 10, 30),
    ],
)
def test_edit_list_hides_pictures(folder: Path, cut: dict, first: int, count: int) -> None:
    path = make_video(folder / "edited.mp4", frames=60)
    cut_by_edit_list(path, **cut)
    information = probe(path)
    assert information.frames == count
    assert not information.decord_safe
    assert information.times_sec[0] == 0.0
    numbers = [frame_number(frame) for frame in open_frames(path)]
    assert numbers == list(range(first, first + count))
    assert [frame_number(frame) for frame in frames_at(path, [20, 4])] == [first + 20, first + 4]


def test_pictures_before_the_first_key_frame_do_not_count(folder: Path) -> None:
    whole = make_video(folder / "whole.ts", frames=90, gop=30)
    late = folder / "late.ts"
    with av.open(str(whole)) as source, av.open(str(late), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[20:-1]:
            packet.stream = stream
            output.mux(packet)
    information = probe(late)
    numbers = [frame_number(frame) for frame in open_frames(late)]
    assert numbers == list(range(30, 90))
    assert information.frames == 60


@pytest.mark.parametrize("refresh", ["open-gop=1", "intra-refresh=1"])
def test_key_frames_that_are_no_fresh_start_are_not_for_decord(folder: Path, refresh: str) -> None:
    path = folder / f"{refresh}.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.options = {"x264-params": f"{refresh}:keyint=20:bframes=3:threads=1"}
        for index in range(70):
            picture = av.VideoFrame.from_ndarray(make_picture(index, 96, 64), format="rgb24")
            picture.pts = index
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    assert not scan_packets(path).fresh_keys
    assert not probe(path).decord_safe
    walked = list(open_frames(path))
    for index in (0, 19, 33, 69):
        np.testing.assert_array_equal(frames_at(path, [index])[0], walked[index])


def test_decord_is_refused_where_a_whole_video_would_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("decord")
    monkeypatch.setattr("tadpipe.video.reader.DECORD_MOST_BYTES", 1000)
    with pytest.raises(VideoError, match="pyav") as caught:
        next(open_frames(made(folder, "b_frames.mp4"), "decord"))
    assert caught.value.reason is VideoReason.OUT_OF_MEMORY


def test_decord_that_is_not_installed_is_a_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(ConfigError, match="not installed"):
        next(open_frames(made(folder, "b_frames.mp4"), "decord"))


def test_unknown_decoder_is_refused(folder: Path) -> None:
    path = made(folder, "one.mp4")
    with pytest.raises(ConfigError, match="pyav, decord"):
        open_frames(path, "ffmpeg")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Unknown decoder"):
        frames_at(path, [0], "ffmpeg")  # type: ignore[arg-type]


@real_videos
@pytest.mark.parametrize(
    ("name", "frames", "fps"),
    [
        ("highjump.mp4", 726, 30),
        ("mma_demo.mp4", 280, 28),
        ("mma_test.avi", 164, 25),
        ("v_ZNVhz7ctTq0.mp4", 420, 30),
    ],
)
def test_real_video_has_the_frames_it_decodes_to(name: str, frames: int, fps: int) -> None:
    information = probe(REAL / name)
    assert (information.frames, information.fps) == (frames, fps)
    stamps = []
    with av.open(str(REAL / name)) as container:
        for frame in container.decode(video=0):
            stamps.append(float(frame.pts * frame.time_base) - container.start_time / 1e6)
    np.testing.assert_allclose(information.times_sec, sorted(stamps), atol=2e-6)
