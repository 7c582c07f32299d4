"""The packets-only pass over a video file: frame count, presentation times, rate, without decoding.

Containers' own counts and average rates are wrong often enough not to be used. What counts is the
packets with content that are not marked for discarding; their sorted time stamps are the times of
the frames. Only the first picture is decoded, for its size and its display matrix.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tadpipe.errors import VideoError, VideoReason
from tadpipe.timeline import constant_rate
from tadpipe.video.file_end import bytes_missing, has_index
from tadpipe.video.key_frames import is_instant_refresh

PathLike = str | os.PathLike[str]
Tick = Callable[[], None]  # called now and then, so that a watchdog sees progress

# What PyAV raises on damaged files, besides FFmpeg's own errors; a MemoryError is not meant.
AV_ERRORS = (av.error.FFmpegError, ValueError, LookupError, ArithmeticError, RuntimeError, OSError)
NO_STAMP = -(1 << 63)
KEY, HIDDEN, CORRUPT = 1, 2, 4  # flags of a packet
TICK_PACKETS = 256
FIRST_PICTURE_PACKETS = 300  # packets tried for the first picture
TAIL_PACKETS = 4  # a damaged packet among the last ones means that the file was cut off
MOST_PIXELS = 1 << 26  # larger pictures (8192 x 8192) are refused
START_SLACK_SEC = Fraction(2, 1_000_000)  # containers round their start to a microsecond
# Text, playlists and single pictures, which FFmpeg also takes for videos.
NOT_VIDEOS = {"tty", "image2", "hls", "dash", "concat", "sdp", "rtsp", "lavfi", "webvtt", "srt"}
# Others have been seen to give wrong frames after a seek (mpeg4 with B-frames, hevc).
DECORD_CODECS = {"h264", "vp8", "vp9"}
DECORD_CONTAINERS = {"mov", "matroska", "flv"}


@dataclass(frozen=True)
class VideoProbe:
    """What a video holds, counted packet by packet."""

    frames: int
    times_sec: tuple[float, ...]  # sorted, from the container's start; one per frame
    fps: Fraction | None  # None: the rate is variable
    width: int  # of the upright picture
    height: int
    rotation_deg: int  # clockwise turn that was asked for: 0, 90, 180, 270
    duration_sec: float  # end of the last frame, from the container's start
    decord_safe: bool  # decord is known to give the right frames
    truncated: bool  # the file ends before its content does

    @property
    def is_variable_rate(self) -> bool:
        return self.fps is None


@dataclass(frozen=True)
class PacketScan:
    """The pass over the packets, in the container's own ticks; see `VideoProbe` for the rest."""

    container: str
    codec: str
    tick_sec: Fraction
    start_sec: Fraction  # the container's start, which times are counted from
    guessed_fps: Fraction | None
    ticks: tuple[int, ...]  # sorted presentation times of the frames
    key_ticks: tuple[int, ...]  # those of key frames, hidden ones too
    first_tick: int  # of the first key frame; what is shown before it cannot be decoded
    skip_packets: int  # before the first key frame: nothing can decode them
    use_packets: int  # packets to decode after the skipped ones
    hidden_packets: int  # marked for discarding, or of pictures before the first key frame
    fresh_keys: bool  # a decoder may start at any key frame
    in_order: bool  # every packet has a time stamp and no two are equal
    width: int  # of the coded picture
    height: int
    rotation_deg: int
    truncated: bool

    @property
    def decord_safe(self) -> bool:
        return (
            self.container.split(",")[0] in DECORD_CONTAINERS
            and self.codec in DECORD_CODECS
            and self.hidden_packets == 0
            and self.skip_packets == 0
            and self.rotation_deg == 0
            and self.fresh_keys
            and self.in_order
            and not self.truncated
        )

    def probe(self) -> VideoProbe:
        fps = constant_rate(self.ticks, self.tick_sec, self.guessed_fps)
        # tick * tick_sec - start_sec as one division of whole numbers: exact and fast.
        scale = self.tick_sec.numerator * self.start_sec.denominator
        shift = self.start_sec.numerator * self.tick_sec.denominator
        unit = self.tick_sec.denominator * self.start_sec.denominator
        times = tuple((tick * scale - shift) / unit for tick in self.ticks)
        step = float(1 / fps) if fps else (times[-1] - times[0]) / max(len(times) - 1, 1)
        turned = self.rotation_deg % 180 == 90
        return VideoProbe(
            frames=len(times),
            times_sec=times,
            fps=fps,
            width=self.height if turned else self.width,
            height=self.width if turned else self.height,
            rotation_deg=self.rotation_deg,
            duration_sec=times[-1] + step,
            decord_safe=self.decord_safe,
            truncated=self.truncated,
        )

    def with_frames(self, ticks: list[int]) -> PacketScan:
        """The scan of the frames that were really decoded, by their time stamps in any order."""
        return replace(self, ticks=tuple(sorted(ticks)))


def shown(path: PathLike) -> str:
    """A path for messages: names that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def plain_message(error: Exception) -> str:
    """FFmpeg's words for an error, without its number and the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def open_video(path: PathLike) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and find its video stream.

    Raises:
        VideoError: NOT_FOUND, PERMISSION, NOT_A_VIDEO, NO_VIDEO_STREAM or DECODE_ERROR.
    """
    check_readable(path)
    try:
        with _open_container(path) as container:
            yield container, _video_stream(container, path)
    except MemoryError as error:
        raise VideoError(
            VideoReason.OUT_OF_MEMORY,
            "There is not enough memory to decode this video.",
            f"{shown(path)}: {plain_message(error)}",
            "A damaged file may ask for any amount of memory.",
        ) from error


def _open_container(path: PathLike) -> InputContainer:
    try:
        # "file:" keeps names such as "a:b.mp4" from being read as a protocol.
        return av.open(
            "file:" + os.fspath(path),
            metadata_errors="replace",
            container_options={"protocol_whitelist": "file"},
        )
    except MemoryError:
        raise
    except AV_ERRORS as error:
        what = "This is not a video file."
        if not has_index(path):
            what = "The file has no index (moov): its recording or download did not finish."
        raise VideoError(
            VideoReason.NOT_A_VIDEO, what, f"{shown(path)}: {plain_message(error)}"
        ) from error


def check_readable(path: PathLike) -> None:
    """Raise the typed error of a file that cannot be read at all."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            with open(path, "rb"):
                pass
    except PermissionError as error:
        raise VideoError(
            VideoReason.PERMISSION,
            "The file may not be read.",
            shown(path),
            "Change its permissions, or run as its owner.",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            VideoReason.NOT_FOUND, "The file cannot be opened.", f"{shown(path)}: {reason}"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(VideoReason.NOT_A_VIDEO, "This is not a regular file.", shown(path))
    if status.st_size == 0:
        raise VideoError(VideoReason.NOT_A_VIDEO, "The file is empty.", shown(path))


def scan_packets(path: PathLike, tick: Tick = lambda: None) -> PacketScan:
    """Read every packet of a file's video stream; decode only the first picture.

    Raises:
        VideoError: as `open_video`; TRUNCATED or DECODE_ERROR when there is no packet to decode.
    """
    with open_video(path) as (container, stream):
        log, first = _read_packets(container, stream, tick)
        cut = _is_cut(path, container, stream, log)
        key_positions = [i for i, flags in enumerate(log.flags) if flags & KEY]
        start = key_positions[0] if key_positions else 0
        # A damaged last packet is half a picture: decoders guess the rest, each in its own way.
        end = len(log.flags)
        if end and cut and log.flags[-1] & CORRUPT:
            end -= 1
        if end <= start:
            raise VideoError(
                VideoReason.TRUNCATED if cut else VideoReason.DECODE_ERROR,
                "The video stream holds no pictures.",
                shown(path),
            )
        all_ticks, all_stamped = log.presentation_ticks(stream)
        ticks = sorted(
            all_ticks[i]
            for i in range(start, end)
            # Pictures shown before the first key frame lean on pictures that are not there.
            if not log.flags[i] & HIDDEN and all_ticks[i] >= all_ticks[start]
        )
        if not ticks:
            raise VideoError(
                VideoReason.DECODE_ERROR, "An edit list hides every picture.", shown(path)
            )
        width, height, rotation_deg = _picture_shape(stream, first, path)
        return PacketScan(
            container=container.format.name,
            codec=stream.codec_context.name,
            tick_sec=Fraction(stream.time_base or 1),
            start_sec=_start_sec(container, stream, ticks[0]),
            guessed_fps=stream.guessed_rate,
            ticks=tuple(ticks),
            key_ticks=tuple(sorted(all_ticks[i] for i in key_positions if i < end)),
            first_tick=all_ticks[start],
            skip_packets=start,
            use_packets=end - start,
            hidden_packets=end - start - len(ticks),
            fresh_keys=log.fresh_keys,
            in_order=all_stamped and all(a < b for a, b in pairwise(ticks)),
            width=width,
            height=height,
            rotation_deg=rotation_deg,
            truncated=cut,
        )


class _PacketLog:
    """Time stamps and flags of all packets with content, in the order of the file."""

    def __init__(self) -> None:
        self.pts = array("q")
        self.dts = array("q")
        self.flags = bytearray()
        self.broken_off = False  # the demuxer gave up with an error
        self.fresh_keys = True

    def add(self, packet: Packet) -> None:
        self.pts.append(NO_STAMP if packet.pts is None else packet.pts)
        self.dts.append(NO_STAMP if packet.dts is None else packet.dts)
        self.flags.append(
            KEY * packet.is_keyframe | HIDDEN * packet.is_discard | CORRUPT * packet.is_corrupt
        )

    def presentation_ticks(self, stream: VideoStream) -> tuple[Sequence[int], bool]:
        """One time stamp per packet, and whether every packet brought its own."""
        if NO_STAMP not in self.pts:
            return self.pts, True
        stamps = [d if p == NO_STAMP else p for p, d in zip(self.pts, self.dts, strict=True)]
        if NO_STAMP in stamps:  # an elementary stream has no clock, only a rate
            rate = stream.guessed_rate or stream.average_rate or Fraction(25)
            period = 1 / (rate * Fraction(stream.time_base or 1))
            stamps = [round(i * period) for i in range(len(stamps))]
        return stamps, False


def _read_packets(
    container: InputContainer, stream: VideoStream, tick: Tick
) -> tuple[_PacketLog, VideoFrame | None]:
    """All packets, and the first picture if it can be decoded."""
    stream.codec_context.thread_count = 1
    log = _PacketLog()
    first: VideoFrame | None = None
    seen_key = False
    is_h264 = stream.codec_context.name == "h264"
    extradata = stream.codec_context.extradata
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            log.add(packet)
            if packet.is_keyframe:
                seen_key = True
                if is_h264:
                    log.fresh_keys &= is_instant_refresh(bytes(packet), extradata)
            if first is None and seen_key and len(log.flags) < FIRST_PICTURE_PACKETS:
                first = _try_decode(packet)
            if len(log.flags) % TICK_PACKETS == 0:
                tick()
    except MemoryError:
        raise
    except AV_ERRORS:
        log.broken_off = True
    if first is None and log.flags:
        first = _try_decode(None, stream)
    return log, first


def _try_decode(packet: Packet | None, stream: VideoStream | None = None) -> VideoFrame | None:
    """The first picture that comes out of a packet, or out of the decoder's delay."""
    try:
        frames = packet.decode() if packet is not None else stream.decode(None) if stream else []
    except MemoryError:
        raise
    except AV_ERRORS:  # the pass counts; the decoding pass reports what cannot be decoded
        return None
    return next((frame for frame in frames if isinstance(frame, VideoFrame)), None)


def _is_cut(
    path: PathLike, container: InputContainer, stream: VideoStream, log: _PacketLog
) -> bool:
    """Whether the file ends before its content does."""
    if log.broken_off or any(flags & CORRUPT for flags in log.flags[-TAIL_PACKETS:]):
        return True
    if not bytes_missing(path):
        return False
    if stream.frames:  # mp4 and avi list their pictures: perhaps only an appendix is missing
        return len(log.flags) < stream.frames
    if container.format.name == "mpegts" or not log.flags or not container.duration:
        return True
    shown_ticks, _ = log.presentation_ticks(stream)
    end_sec = max(shown_ticks) * Fraction(stream.time_base or 1)
    step_sec = 1 / (stream.guessed_rate or Fraction(10))
    claimed_sec = Fraction(container.duration + (container.start_time or 0), av.time_base)
    return claimed_sec > end_sec + 2 * step_sec


def _start_sec(container: InputContainer, stream: VideoStream, first_tick: int) -> Fraction:
    """The time stamp of the container's start, exact where the video stream starts with it."""
    tick_sec = Fraction(stream.time_base or 1)
    if container.start_time is None:
        return first_tick * tick_sec
    start_sec = Fraction(container.start_time, av.time_base)
    if stream.start_time is not None:
        exact_sec = stream.start_time * tick_sec
        if abs(exact_sec - start_sec) <= START_SLACK_SEC:
            return exact_sec
    return start_sec


def _picture_shape(
    stream: VideoStream, first: VideoFrame | None, path: PathLike
) -> tuple[int, int, int]:
    """Width and height as coded, and the clockwise turn asked for in degrees."""
    width, height = (first.width, first.height) if first else (stream.width, stream.height)
    if not 0 < width * height <= MOST_PIXELS:
        raise VideoError(
            VideoReason.DECODE_ERROR,
            "The size of the pictures is unknown or too large.",
            f"{shown(path)}: {width} x {height} pixels",
        )
    # FFmpeg counts counter-clockwise; a tag between the quarters goes to the nearest one.
    return width, height, round(-first.rotation / 90) % 4 * 90 if first else 0


def _video_stream(container: InputContainer, path: PathLike) -> VideoStream:
    """The first stream of moving pictures; cover pictures of audio files do not count."""
    if container.format.name in NOT_VIDEOS or container.format.name.endswith("_pipe"):
        raise VideoError(
            VideoReason.NOT_A_VIDEO,
            "This is not a video file.",
            f"{shown(path)}: read as {container.format.name}",
        )
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoError(
                    VideoReason.DECODE_ERROR,
                    "There is no decoder for this video.",
                    shown(path),
                    "Re-encode it, for example to H.264.",
                )
            return stream
    raise VideoError(VideoReason.NO_VIDEO_STREAM, "The file holds no video stream.", shown(path))
