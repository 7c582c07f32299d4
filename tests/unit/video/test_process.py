"""The decoder's own process: bounded, watched, reusable, and gone when its owner is."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tadpipe.errors import ConfigError, VideoError, VideoReason
from tadpipe.video.process import DecodeProcess
from tadpipe.video.reader import SKIPPED, open_frames, probe
from tadpipe.video.snippets import SnippetPlan
from tests.corpus import frame_number, make_video, uneven_times

ROOT = Path(__file__).parents[3]
FRAMES = 90


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("videos") / "video.mp4", frames=FRAMES)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecodeProcess]:
    """A process with a ring of few slots, so that it has to wait for its owner."""
    with DecodeProcess(ring_bytes=4 * 96 * 64 * 3) as process:
        yield process


def numbers(frames: Iterator[np.ndarray]) -> list[int]:
    return [frame_number(frame) for frame in frames]


def ended(pid: int) -> bool:
    """Wait until a process that need not be ours has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 30)[0])
    finally:
        os.close(handle)


def test_frames_and_probe_equal_those_of_the_reader(decoder: DecodeProcess, video: Path) -> None:
    for frame, expected in zip(decoder.frames(video), open_frames(video), strict=True):
        np.testing.assert_array_equal(frame, expected)
    assert decoder.probe(video) == probe(video)


def test_frames_between_clips_come_as_skipped(decoder: DecodeProcess, video: Path) -> None:
    plan = SnippetPlan("start", clip_len=2, stride=30)
    delivered = list(decoder.frames(video, plan))
    assert len(delivered) == FRAMES
    for number, frame in enumerate(delivered):
        assert frame is SKIPPED if number % 30 > 1 else frame_number(frame) == number
    everything = SnippetPlan("centre", clip_len=2, stride=30)  # may repeat the last frame
    assert numbers(decoder.frames(video, everything)) == list(range(FRAMES))


def test_variable_rate_probe_survives_the_pipe(decoder: DecodeProcess, tmp_path: Path) -> None:
    path = make_video(tmp_path / "uneven.mkv", frames=30, times_sec=uneven_times(30))
    assert decoder.probe(path) == probe(path)


def test_one_child_serves_many_videos_of_different_sizes(
    decoder: DecodeProcess, video: Path, tmp_path: Path
) -> None:
    assert numbers(decoder.frames(video)) == list(range(FRAMES))
    pid = decoder.pid
    for size in ((128, 96), (97, 65), (320, 240)):
        path = make_video(tmp_path / f"{size[0]}.mp4", frames=7, size=size)
        frames = list(decoder.frames(path))
        assert numbers(iter(frames)) == list(range(7))
        assert frames[0].shape == (size[1], size[0], 3)
    assert numbers(decoder.frames(video)) == list(range(FRAMES))  # the first size again
    assert decoder.pid == pid


def test_frames_stay_the_callers_own(decoder: DecodeProcess, video: Path) -> None:
    kept = list(decoder.frames(video))  # many more than the ring has slots
    assert numbers(iter(kept)) == list(range(FRAMES))
    assert all(frame.flags.owndata and frame.flags.writeable for frame in kept)


def test_dropped_iterator_frees_the_child(decoder: DecodeProcess, video: Path) -> None:
    frames = decoder.frames(video)
    next(frames)
    pid = decoder.pid
    del frames
    gc.collect()
    assert numbers(decoder.frames(video)) == list(range(FRAMES))
    assert decoder.pid == pid


def test_overtaken_iterator_says_so(decoder: DecodeProcess, video: Path) -> None:
    first = decoder.frames(video)
    next(first)
    assert numbers(decoder.frames(video)) == list(range(FRAMES))
    with pytest.raises(ConfigError, match="given up"):
        next(first)


def test_truncated_file_tells_what_was_delivered(
    decoder: DecodeProcess, video: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    count = 0
    reason = None
    try:
        for _ in decoder.frames(path):
            count += 1
    except VideoError as error:
        reason = error.reason
    assert reason is VideoReason.TRUNCATED
    assert decoder.delivered is not None
    assert decoder.delivered.frames == count > 0


def test_hanging_decoder_is_killed_and_the_next_video_works(video: Path) -> None:
    with DecodeProcess(timeout_sec=0.2, ring_bytes=4 * 96 * 64 * 3) as process:
        frames = process.frames(video)
        next(frames)
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # as a decoder that never returns
        with pytest.raises(VideoError) as caught:
            list(frames)
        assert caught.value.reason is VideoReason.DECODE_TIMEOUT
        assert ended(pid)
        process.timeout_sec = 60
        assert numbers(process.frames(video)) == list(range(FRAMES))


def test_dead_decoder_is_reported_and_the_next_video_works(video: Path) -> None:
    with DecodeProcess(ring_bytes=4 * 96 * 64 * 3) as process:
        frames = process.frames(video)
        next(frames)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(VideoError, match="signal 9") as caught:
            list(frames)
        assert caught.value.reason is VideoReason.WORKER_DIED
        assert numbers(process.frames(video)) == list(range(FRAMES))


def test_memory_that_runs_out_is_a_typed_error(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.mp4", frames=2)
    path = make_video(tmp_path / "large.mp4", frames=3, size=(1920, 1080), gop=1, b_frames=0)
    with DecodeProcess() as process:
        process.probe(small)
        assert process.pid is not None
        mapped = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
        limit = mapped * resource.getpagesize() + (4 << 20)  # less than one frame
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        with pytest.raises(VideoError) as caught:
            list(process.frames(path))
        assert caught.value.reason is VideoReason.OUT_OF_MEMORY
        assert sum(1 for _ in process.frames(small)) == 2


def test_unknown_decoder_and_wrong_timeout_are_refused() -> None:
    with pytest.raises(ConfigError, match="Unknown decoder"):
        DecodeProcess("ffmpeg")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="positive"):
        DecodeProcess(timeout_sec=0)


def test_decord_serves_safe_files_and_names_the_way_out(video: Path, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    unsafe = make_video(tmp_path / "turned.mp4", frames=5, rotation_deg=90)
    with DecodeProcess("decord") as process:
        assert numbers(process.frames(video)) == list(range(FRAMES))
        with pytest.raises(VideoError, match="--decoder pyav"):
            list(process.frames(unsafe))


def test_the_child_never_imports_torch() -> None:
    code = "import sys, tadpipe.video.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def owner_script(video: Path, then: str) -> str:
    """A user's script without a main guard that starts a child and does something in the middle."""
    return textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        from tadpipe.video.process import DecodeProcess
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for jobs in "&"
        decoder = DecodeProcess(ring_bytes=1)
        frames = decoder.frames({str(video)!r})
        next(frames)
        print(decoder.pid, flush=True)
        {then}
    """)


def start_owner(video: Path, then: str) -> tuple[subprocess.Popen[bytes], int]:
    owner = subprocess.Popen(
        [sys.executable, "-c", owner_script(video, then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert owner.stdout
    return owner, int(owner.stdout.readline())


def shared_memory_names() -> set[str]:
    folder = Path("/dev/shm")
    return set(os.listdir(folder)) if folder.is_dir() else set()


@pytest.mark.parametrize(
    "doing",
    ["signal.pause()", "os.kill(decoder.pid, signal.SIGSTOP); list(frames)"],
    ids=["between frames", "waiting for a decoder that hangs"],
)
def test_ctrl_c_ends_owner_and_child_and_leaves_nothing(video: Path, doing: str) -> None:
    before = shared_memory_names()
    owner, child = start_owner(video, doing)
    owner.send_signal(signal.SIGINT)
    _, errors = owner.communicate(timeout=30)
    assert owner.returncode == -signal.SIGINT
    assert errors.count(b"Traceback") == 1  # the owner's own
    assert ended(child)
    assert shared_memory_names() <= before


def test_child_ignores_ctrl_c(decoder: DecodeProcess, video: Path) -> None:
    frames = decoder.frames(video)
    next(frames)
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGINT)
    assert sum(1 for _ in frames) == FRAMES - 1


def test_killed_owner_leaves_no_child(video: Path) -> None:
    owner, child = start_owner(video, "signal.pause()")
    owner.kill()
    owner.communicate()
    assert ended(child)


def test_script_that_just_ends_leaves_no_child(video: Path) -> None:
    owner, child = start_owner(video, "pass")
    _, errors = owner.communicate(timeout=30)
    assert (owner.returncode, errors) == (0, b"")
    assert ended(child)


def test_memory_does_not_grow_with_the_video(decoder: DecodeProcess, tmp_path: Path) -> None:
    peaks = []
    for frames in (40, 400):
        path = make_video(tmp_path / f"{frames}.mp4", frames=frames, size=(320, 240))
        assert sum(1 for _ in decoder.frames(path)) == frames
        status = Path(f"/proc/{decoder.pid}/status").read_text()
        peaks.append(int(status.split("VmHWM:")[1].split()[0]))  # kB
    # All 360 frames more would be 83 MB.
    assert peaks[1] - peaks[0] < 20_000
