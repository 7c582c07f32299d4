"""Small videos made on the spot: healthy ones of every odd kind, and the twelve broken files.

Every picture carries its own number in black and white blocks, so that a test can tell which frame
it got without trusting any decoder: see `frame_number`. Pictures are [H, W, 3] uint8, RGB.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUMBER_BITS = 12
BLOCK = 8  # side of one bit of the number, pixels
BROKEN = (
    "zero_bytes",
    "truncated",
    "no_moov",
    "audio_only",
    "wrong_extension",
    "one_frame",
    "huge_claimed_duration",
    "variable_rate",
    "permission_denied",
    "symlink_loop",
    "same_content_twice",
    "name_not_utf8",
)


def make_picture(index: int, width: int, height: int) -> np.ndarray:
    """Picture `index`: its number in the two top rows of blocks, a moving square below."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [(columns * 2 + index) % 160 + 40, (rows * 3) % 160 + 40, (rows + columns) % 160 + 40],
        axis=-1,
    ).astype(np.uint8)
    left, top = (index * 3) % max(width - 16, 1), 2 * BLOCK + (index * 2) % max(height - 32, 1)
    picture[top : top + 16, left : left + 16] = (220, 60, 30)
    for bit in range(NUMBER_BITS):
        row, column = divmod(bit, NUMBER_BITS // 2)
        value = 235 if index >> bit & 1 else 16
        picture[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = value
    return picture


def frame_number(picture: np.ndarray) -> int:
    """The number written into a picture by `make_picture`, read back after lossy coding."""
    number = 0
    for bit in range(NUMBER_BITS):
        row, column = divmod(bit, NUMBER_BITS // 2)
        block = picture[
            row * BLOCK + 2 : (row + 1) * BLOCK - 2, column * BLOCK + 2 : (column + 1) * BLOCK - 2
        ]
        number |= int(block.mean() > 125) << bit
    return number


def make_video(
    path: Path,
    *,
    frames: int = 60,
    size: tuple[int, int] = (96, 64),
    fps: Fraction | int = 30,
    codec: str = "libx264",
    gop: int = 30,
    b_frames: int = 2,
    start_sec: Fraction | int = 0,
    times_sec: Sequence[Fraction] | None = None,
    container: str | None = None,
    faststart: bool = True,
    rotation_deg: int = 0,
    audio: bool = False,
) -> Path:
    """Encode `frames` numbered pictures.

    Args:
        size: width, height of the coded picture.
        gop: frames between key frames.
        start_sec: added to every time stamp.
        times_sec: presentation times of the frames, for a variable rate; before `start_sec`.
        container: ffmpeg's name of the format; from the suffix when missing.
        faststart: mp4 only: the index before the pictures.
        rotation_deg: mp4 only: clockwise turn that a player shall apply; 0, 90, 180 or 270.
        audio: add a silent track.
    """
    width, height = size
    odd = width % 2 or height % 2  # 4:2:0 needs even sizes
    options = {"movflags": "faststart"} if faststart and _is_mp4(path, container) else {}
    stamps = times_sec or [Fraction(i) / Fraction(fps) for i in range(frames)]
    base = Fraction(1, 90_000) if times_sec is not None or start_sec else 1 / Fraction(fps)
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if odd else "yuv420p"
        stream.codec_context.time_base = base
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.codec_context.options = {"preset": "ultrafast", "crf": "18", "bf": str(b_frames)}
        else:
            stream.codec_context.bit_rate = 2_000_000
        sound = output.add_stream("aac", rate=8000) if audio else None
        for index, stamp in enumerate(stamps[:frames]):
            frame = av.VideoFrame.from_ndarray(make_picture(index, width, height), format="rgb24")
            frame.time_base = base
            frame.pts = round((stamp + start_sec) / base)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            _add_silence(output, sound, float(stamps[min(frames, len(stamps)) - 1]))
    if rotation_deg:
        set_rotation(path, rotation_deg)
    return path


def make_audio(path: Path, seconds: float = 1.0) -> Path:
    """A file with sound and no pictures."""
    with av.open(str(path), "w") as output:
        _add_silence(output, output.add_stream("aac", rate=8000), seconds)
    return path


def make_bad_videos(folder: Path) -> dict[str, Path]:
    """The twelve broken files, by the names in `BROKEN`; most are made from healthy videos.

    `wrong_extension` (an mp4 called .avi), `one_frame`, `huge_claimed_duration`, `variable_rate`
    and `name_not_utf8` hold pictures that can all be decoded; `same_content_twice` is a byte copy
    of `wrong_extension`. The superuser can read `permission_denied`, see `no_read_override`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.mp4" for name in BROKEN}
    files["wrong_extension"] = folder / "wrong_extension.avi"
    files["name_not_utf8"] = Path(os.fsdecode(os.fsencode(folder) + b"/name_\xff\xfe_not_utf8.mp4"))
    healthy = make_video(folder / "healthy.tmp", frames=50, container="mp4")

    files["zero_bytes"].write_bytes(b"")
    files["truncated"].write_bytes(healthy.read_bytes()[: healthy.stat().st_size * 6 // 10])
    late_index = make_video(folder / "late.tmp", frames=52, container="mp4", faststart=False)
    content = late_index.read_bytes()
    files["no_moov"].write_bytes(content[: content.rindex(b"moov") - 4])
    make_audio(files["audio_only"])
    make_video(files["wrong_extension"], frames=54, container="mp4")
    make_video(files["one_frame"], frames=1)
    claim_duration(make_video(files["huge_claimed_duration"], frames=56))
    make_video(files["variable_rate"], frames=58, times_sec=uneven_times(58))
    make_video(files["permission_denied"], frames=60).chmod(0)
    files["symlink_loop"].symlink_to(files["symlink_loop"].name)
    shutil.copyfile(files["wrong_extension"], files["same_content_twice"])
    make_video(folder / "plain.tmp", frames=62, container="mp4").rename(files["name_not_utf8"])
    healthy.unlink()
    late_index.unlink()
    return files


def uneven_times(frames: int) -> list[Fraction]:
    """Presentation times with steps of 20, 30 and 100 ms."""
    steps = (Fraction(1, 50), Fraction(3, 100), Fraction(1, 10))
    times = [Fraction(0)]
    for i in range(frames - 1):
        times.append(times[-1] + steps[i % 3])
    return times


def set_rotation(path: Path, degrees: int) -> None:
    """Write the display matrix of an mp4's only track: turn clockwise by `degrees`."""
    one = 1 << 16
    cosine, sine = {0: (one, 0), 90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", content, matrix, cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def claim_duration(path: Path, ticks: int = 0x7FFF_FFF0) -> None:
    """Let every header of an mp4 claim a huge duration."""
    content = bytearray(path.read_bytes())
    for box, after in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16), (b"elst", 8)):
        struct.pack_into(">I", content, content.index(box) + 4 + after, ticks)
    path.write_bytes(content)


def cut_by_edit_list(
    path: Path, *, first_ticks: int = 0, duration_ticks: int | None = None
) -> None:
    """Let an mp4's edit list hide pictures.

    Args:
        first_ticks: media ticks hidden at the start, beyond those that the encoder hides.
        duration_ticks: movie ticks (milliseconds) shown; None leaves the entry's duration.
    """
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 4 + 8
    duration, start = struct.unpack_from(">Ii", content, entry)
    shown = duration if duration_ticks is None else duration_ticks
    struct.pack_into(">Ii", content, entry, shown, start + first_ticks)
    path.write_bytes(content)


@contextmanager
def no_read_override() -> Iterator[None]:
    """Let file permissions also bind the superuser, in this thread; a no-op for other users.

    A program that is started meanwhile gets the right back (exec as root restores it).
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before = (ctypes.c_uint32 * 6)()
    if libc.capget(header, before) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    reduced = (ctypes.c_uint32 * 6)(*before)
    reduced[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, effective set
    if libc.capset(header, reduced) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        libc.capset(header, before)


def _is_mp4(path: Path, container: str | None) -> bool:
    return (container or path.suffix.lstrip(".")) in {"mp4", "mov"}


def _add_silence(output: av.container.OutputContainer, stream: object, seconds: float) -> None:
    samples = np.zeros((1, max(int(8000 * seconds), 1024)), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = 8000
    frame.pts = 0
    output.mux(stream.encode(frame))
    output.mux(stream.encode(None))
