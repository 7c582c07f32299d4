"""Decoded frames of a video file: every frame once, in order, upright, native size, RGB.

PyAV streams with bounded memory and is right on every kind of file met so far. decord is offered
where the packets-only pass says that it gives the same frames; it reads ahead without bound.
Frames are [H, W, 3] uint8. Both decoders keep one contract: same frames, same times, typed errors.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from tadpipe.errors import ConfigError, VideoError, VideoReason
from tadpipe.video.packets import (
    AV_ERRORS,
    PacketScan,
    PathLike,
    VideoProbe,
    open_video,
    plain_message,
    scan_packets,
    shown,
)

__all__ = ["FrameStream", "VideoProbe", "frames_at", "open_frames", "probe"]

Decoder = Literal["pyav", "decord"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
SMALL_PIXELS = 640 * 480  # up to this size one thread decodes faster than anything consumes
MOST_THREADS = 4
DECORD_MOST_BYTES = 1 << 30  # decord may hold a whole decoded video
USE_PYAV = "Use --decoder pyav."
Uses = Callable[[int], bool]
SKIPPED = np.empty((0, 0, 3), dtype=np.uint8)  # stands for a frame that nobody needs


def probe(path: PathLike) -> VideoProbe:
    """Count frames and read their times, from packets only.

    Raises:
        VideoError: the file cannot be read or holds no pictures; see `VideoReason`.
    """
    return scan_packets(path).probe()


def open_frames(
    path: PathLike,
    decoder: Decoder = "pyav",
    *,
    scan: PacketScan | None = None,
    uses: Uses | None = None,
) -> FrameStream:
    """Iterate over the frames of a video, [H, W, 3] uint8 each.

    Args:
        scan: the packets-only pass of this file, if it was made already.
        uses: says by its number whether a frame is needed; the others may come as SKIPPED, which
            saves their colours' conversion.
    Raises:
        VideoError: at once when the file cannot be read; TRUNCATED or DECODE_ERROR after the last
            frame that can be decoded.
        ConfigError: unknown decoder, or decord is not installed.
    """
    return FrameStream(path, decoder, scan if scan is not None else scan_packets(path), uses)


class FrameStream(Iterator[np.ndarray]):
    """The frames of one video, and what became known about them while decoding."""

    def __init__(
        self, path: PathLike, decoder: Decoder, scan: PacketScan, uses: Uses | None = None
    ) -> None:
        self.scan = scan
        self.probe = scan.probe()
        self._ticks: list[int] = []  # of the frames delivered; left empty by decord
        sources: dict[str, Callable[[], Iterator[np.ndarray]]] = {
            "pyav": lambda: _pyav_frames(path, scan, self._ticks, uses),
            "decord": lambda: _decord_frames(path, scan, self.probe),
        }
        if decoder not in sources:
            raise _unknown(decoder)
        self._frames = sources[decoder]()
        self.delivered = 0

    def __next__(self) -> np.ndarray:
        frame = next(self._frames)
        self.delivered += 1
        return frame

    def close(self) -> None:
        self._frames.close()  # type: ignore[attr-defined]  # both sources are generators

    def delivered_probe(self) -> VideoProbe:
        """The probe of exactly the frames delivered so far.

        It differs from the probe for files that end early or whose packets are not all pictures.
        """
        if self.delivered == self.probe.frames or not self._ticks:
            return self.probe
        return self.scan.with_frames(self._ticks).probe()


def frames_at(
    path: PathLike,
    indices: Sequence[int] | np.ndarray,
    decoder: Decoder = "pyav",
    *,
    scan: PacketScan | None = None,
) -> np.ndarray:
    """The frames with these indices, in the order asked for; an index may come twice.

    Returns:
        [n, H, W, 3] uint8; frame i was shown at `probe(path).times_sec[i]`.
    Raises:
        ConfigError: an index outside the video.
        VideoError: as `open_frames`; TRUNCATED when a frame asked for cannot be decoded.
    """
    scan = scan if scan is not None else scan_packets(path)
    wanted = np.asarray(indices, dtype=np.int64)
    count = len(scan.ticks)
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < count):
        raise ConfigError(
            "A frame index is outside the video.",
            f"{shown(path)}: indices {wanted.min()} to {wanted.max()}, {count} frames",
        )
    info = scan.probe()
    if not wanted.size:
        return np.empty((0, info.height, info.width, 3), dtype=np.uint8)
    if decoder == "decord":
        with _open_decord(path, scan, info) as reader:
            batch: np.ndarray = reader.get_batch(wanted.tolist()).asnumpy()
        return batch
    if decoder != "pyav":
        raise _unknown(decoder)
    unique, positions = np.unique(wanted, return_inverse=True)
    found = _seek_frames(path, scan, unique.tolist()) if scan.in_order else None
    if found is None:  # no usable time stamps to seek by: decode from the start
        found = _walk_frames(path, scan, unique.tolist())
    return np.stack(found)[positions]


def _unknown(decoder: str) -> ConfigError:
    return ConfigError(f"Unknown decoder '{decoder}'.", todo=f"Known: {', '.join(DECODERS)}.")


def decode_threads(width: int, height: int) -> int:
    """Threads worth giving to the decoder of a picture size, within what this process may use."""
    if width * height <= SMALL_PIXELS:
        return 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed or 1, MOST_THREADS)


class _Upright:
    """Turns decoder frames into upright RGB arrays of one size."""

    def __init__(self, scan: PacketScan) -> None:
        self.size = (scan.width, scan.height)
        self.quarter_turns = -scan.rotation_deg // 90  # counter-clockwise, as numpy counts
        self._reformatter = VideoReformatter()  # one for all frames: it keeps its tables

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        # A stream may change its size on the way; the first picture's size holds for all.
        width, height = self.size
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", threads=1)
        picture: np.ndarray = rgb.to_ndarray()
        if self.quarter_turns:
            picture = np.ascontiguousarray(np.rot90(picture, self.quarter_turns))
        return picture


def _pyav_frames(
    path: PathLike, scan: PacketScan, ticks: list[int], uses: Uses | None
) -> Iterator[np.ndarray]:
    """Decode in order; `ticks` receives the time stamps of the frames, in the decoder's order."""
    upright = _Upright(scan)
    with open_video(path) as (container, stream):
        for frame in _decoded(path, container, stream, scan):
            # A stream without a clock takes the times of the scan.
            position = min(len(ticks), len(scan.ticks) - 1)
            ticks.append(scan.ticks[position] if frame.pts is None else frame.pts)
            yield upright(frame) if uses is None or uses(len(ticks) - 1) else SKIPPED
    reached = max(ticks, default=scan.first_tick - 1)
    if scan.truncated or reached < scan.ticks[-1]:
        raise _truncated(path, len(ticks), scan)


def _decoded(
    path: PathLike, container: InputContainer, stream: VideoStream, scan: PacketScan
) -> Iterator[VideoFrame]:
    """All pictures of the packets that the scan found usable.

    Raises:
        VideoError: after the last picture that can be decoded, when a packet cannot be.
    """
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = decode_threads(scan.width, scan.height)
    failure: Exception | None = None
    packets_read = delivered = 0
    demuxer = container.demux(stream)
    while failure is None and packets_read < scan.skip_packets + scan.use_packets:
        frames: list[Any] = []
        try:
            packet = next(demuxer, None)
            if packet is None:
                break
            if packet.size:
                packets_read += 1
            if packet.size and packets_read > scan.skip_packets:
                frames = packet.decode()
        except MemoryError:
            raise
        except AV_ERRORS as error:
            failure = error
        for frame in frames:
            if frame.pts is None or frame.pts >= scan.first_tick:
                delivered += 1
                yield frame
    try:  # what the decoder still holds back
        frames = stream.codec_context.decode(None)
    except MemoryError:
        raise
    except AV_ERRORS as error:
        frames, failure = [], failure or error
    for frame in frames:
        if frame.pts is None or frame.pts >= scan.first_tick:
            delivered += 1
            yield frame
    if failure is not None:
        if scan.truncated or packets_read == scan.skip_packets + scan.use_packets:
            raise _truncated(path, delivered, scan) from failure
        raise VideoError(
            VideoReason.DECODE_ERROR,
            "A picture cannot be decoded.",
            f"{shown(path)}: after {delivered} of {len(scan.ticks)} frames: "
            f"{plain_message(failure)}",
            "Re-encode the file, or leave it out.",
        ) from failure


def _truncated(path: PathLike, delivered: int, scan: PacketScan) -> VideoError:
    return VideoError(
        VideoReason.TRUNCATED,
        "The file ends before its content does.",
        f"{shown(path)}: {delivered} frames can be decoded",
        "Copy or download it again, or keep what is there with --on-truncated keep.",
    )


def _walk_frames(path: PathLike, scan: PacketScan, wanted: list[int]) -> list[np.ndarray]:
    """Frames with sorted, distinct indices, decoding from the start."""
    found: list[np.ndarray] = []
    upright = _Upright(scan)
    with open_video(path) as (container, stream):
        for index, frame in enumerate(_decoded(path, container, stream, scan)):
            if index == wanted[len(found)]:
                found.append(upright(frame))
                if len(found) == len(wanted):
                    return found
    raise _truncated(path, index + 1, scan)


def _seek_frames(path: PathLike, scan: PacketScan, wanted: list[int]) -> list[np.ndarray] | None:
    """Frames with sorted, distinct indices, going to the key frame before each run of them.

    None if seeking or the time stamps turn out not to be exact; a walk from the start then tells.
    """
    targets = [scan.ticks[index] for index in wanted]
    found: list[np.ndarray] = []
    upright = _Upright(scan)
    with open_video(path) as (container, stream):
        stream.codec_context.thread_count = decode_threads(scan.width, scan.height)
        try:
            while len(found) < len(targets):
                container.seek(_key_before(scan, targets[len(found)]), stream=stream)
                run = _take_run(container.decode(stream), scan, targets[len(found) :])
                if not run:
                    return None
                found += map(upright, run)
        except MemoryError:
            raise
        except AV_ERRORS:
            return None
    return found


def _take_run(
    frames: Iterator[VideoFrame], scan: PacketScan, targets: list[int]
) -> list[VideoFrame]:
    """The first of the targets, up to where a seek would be shorter; none if one is missing."""
    taken: list[VideoFrame] = []
    last_tick = scan.first_tick - 1
    for frame in frames:
        target = targets[len(taken)]
        if frame.pts is None or frame.pts > target or frame.pts <= last_tick:
            return []
        last_tick = frame.pts
        if frame.pts == target:
            taken.append(frame)
            if len(taken) == len(targets) or _key_before(scan, targets[len(taken)]) > frame.pts:
                return taken
    return []


def _key_before(scan: PacketScan, tick: int) -> int:
    position = bisect.bisect_right(scan.key_ticks, tick)
    return scan.key_ticks[max(position - 1, 0)] if scan.key_ticks else scan.first_tick


def _import_decord() -> ModuleType:
    try:
        import decord
    except ImportError as error:
        raise ConfigError(
            "The decoder decord is not installed here.",
            "It exists for Linux on x86-64 only.",
            USE_PYAV,
        ) from error
    module: ModuleType = decord
    return module


@contextmanager
def _open_decord(path: PathLike, scan: PacketScan, info: VideoProbe) -> Iterator[Any]:
    """A decord reader of a file for which it is known to be right."""
    decord = _import_decord()
    if not scan.decord_safe:
        raise VideoError(
            VideoReason.DECODE_ERROR,
            "decord does not give the right frames of this file.",
            f"{shown(path)}: {scan.codec} in {scan.container}, {scan.hidden_packets} hidden "
            f"packets, rotation {scan.rotation_deg} degrees",
            USE_PYAV,
        )
    with open(path, "rb") as file:
        try:
            # By its descriptor: decord takes neither names that are not UTF-8 nor "a:b.mp4".
            reader = decord.VideoReader(f"/proc/self/fd/{file.fileno()}", num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(
                VideoReason.DECODE_ERROR, "decord cannot open this file.", shown(path), USE_PYAV
            ) from error
        if len(reader) != info.frames:
            raise VideoError(
                VideoReason.DECODE_ERROR,
                "decord counts other frames than the file holds.",
                f"{shown(path)}: decord {len(reader)}, file {info.frames}",
                USE_PYAV,
            )
        yield reader


def _decord_frames(path: PathLike, scan: PacketScan, info: VideoProbe) -> Iterator[np.ndarray]:
    bytes_whole = info.frames * info.width * info.height * 3
    if bytes_whole > DECORD_MOST_BYTES:
        raise VideoError(
            VideoReason.OUT_OF_MEMORY,
            "decord may read ahead as far as the whole decoded video.",
            f"{shown(path)}: {bytes_whole / 1e9:.1f} GB, limit {DECORD_MOST_BYTES / 1e9:.1f} GB",
            USE_PYAV,
        )
    with _open_decord(path, scan, info) as reader:
        for _ in range(len(reader)):
            yield reader.next().asnumpy()
