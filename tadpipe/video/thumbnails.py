"""Small pictures of a video, side by side in one JPEG, made in a process of its own.

Pictures are the key frames before evenly spaced times, so that hardly anything is decoded: they
are for looking at, and not exact to the frame. Files are untrusted: a child decodes, and a video
that hangs or crashes it costs its own pictures only.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError

from tadpipe.video.messages import LineChannel, Message
from tadpipe.video.packets import shown

WIDTH, HEIGHT = 128, 72  # pixels of a picture; others are letterboxed
JPEG_SCALES = (6, 9, 13, 20, 31)  # quantisers of the encoder, the first that is small enough
TIMEOUT_SEC = 20.0  # for one video
START_SEC = 120.0  # for the child's imports, on a busy machine
MOST_PIXELS = 8192 * 8192
BOOT = "import sys; sys.path[:] = sys.argv[1:]; from tadpipe.video.thumbnails import main; main()"


class Strip(NamedTuple):
    """Pictures of one video."""

    data_url: str | None
    pictures: int
    problem: str = ""  # why there are none


def picture_strips(
    files: Mapping[str, Path], pictures: int, most_bytes: int
) -> Iterator[tuple[str, Strip]]:
    """A strip of `pictures` pictures for each file, by its name.

    Args:
        most_bytes: of a JPEG; busy pictures become coarser for it, then fewer.
    """
    child: _Child | None = None
    try:
        for name, path in files.items():
            child = child or _Child()
            try:
                answer = child.ask(path, pictures, most_bytes)
            except (EOFError, OSError, TimeoutError) as error:
                child.end()
                child = None
                why = "took too long" if isinstance(error, TimeoutError) else "crashed"
                answer = {"problem": f"the decoder {why}"}
            if "jpeg" in answer:
                yield name, Strip(f"data:image/jpeg;base64,{answer['jpeg']}", answer["pictures"])
            else:
                yield name, Strip(None, 0, f"No pictures of {shown(path)}: {answer['problem']}.")
    finally:
        if child is not None:
            child.end()


def picture_strip(path: str, pictures: int, most_bytes: int) -> tuple[bytes, int]:
    """The JPEG of a video and how many pictures it holds.

    Raises:
        FFmpegError, ValueError: not a video that can be decoded.
    """
    frames = []
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        if not 0 < stream.width * stream.height <= MOST_PIXELS:
            raise ValueError(f"{stream.width} x {stream.height} pixels")
        stream.codec_context.skip_frame = "NONKEY"
        first, span = container.start_time or 0, container.duration or 0
        for i in range(pictures):
            container.seek(first + int(span * (i + 0.5) / pictures))
            frame = next(container.decode(stream), None)
            if frame is None:
                break
            frames.append(_boxed(frame))
    if not frames:
        raise ValueError("no picture could be decoded")
    return _fitting_jpeg(frames, most_bytes)


def _fitting_jpeg(frames: list[np.ndarray], most_bytes: int) -> tuple[bytes, int]:
    """The finest JPEG of all pictures that is small enough, else of every 2nd, 4th, ... of them.

    A single picture at the coarsest is taken as it comes.
    """
    while True:
        pixels = np.concatenate(frames, axis=1)
        for scale in JPEG_SCALES:
            jpeg = _jpeg(pixels, scale)
            if len(jpeg) <= most_bytes:
                return jpeg, len(frames)
        if len(frames) == 1:
            return jpeg, 1
        frames = frames[::2]


def _boxed(frame: av.VideoFrame) -> np.ndarray:
    """[HEIGHT, WIDTH, 3], as large as fits, on black."""
    scale = min(WIDTH / frame.width, HEIGHT / frame.height)
    width = max(2, round(frame.width * scale / 2) * 2)
    height = max(2, round(frame.height * scale / 2) * 2)
    small = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    box = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    box[top : top + height, left : left + width] = small
    return box


def _jpeg(pixels: np.ndarray, scale: int) -> bytes:
    """[H, W, 3] uint8 as a JPEG file; `scale` is 2 (best) to 31."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="image2pipe") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuvj420p"
        stream.options = {"qmin": str(scale), "qmax": str(scale)}
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return memory.getvalue()


class _Child:
    """A running decoder."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,  # Ctrl-C in the terminal does not reach it
        )
        assert self.process.stdin
        assert self.process.stdout
        self.channel = LineChannel(self.process.stdout.fileno(), self.process.stdin.fileno())
        self.is_ready = False

    def ask(self, path: Path, pictures: int, most_bytes: int) -> Message:
        """Raises EOFError or OSError when the child dies, TimeoutError when it hangs."""
        if not self.is_ready:
            self._receive(START_SEC)
            self.is_ready = True
        self.channel.send({"path": os.fspath(path), "pictures": pictures, "most_bytes": most_bytes})
        return self._receive(TIMEOUT_SEC)

    def _receive(self, timeout_sec: float) -> Message:
        answer = self.channel.receive(timeout_sec)
        if answer is None:
            raise TimeoutError
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def main() -> None:
    """The child: one request a line on stdin, one answer a line on stdout."""
    av.logging.set_level(None)
    channel = LineChannel(0, os.dup(1))
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    channel.send({"ready": True})
    while True:
        try:
            request = channel.receive(None)
        except EOFError:
            return
        assert request is not None
        try:
            jpeg, count = picture_strip(request["path"], request["pictures"], request["most_bytes"])
            channel.send({"jpeg": base64.b64encode(jpeg).decode(), "pictures": count})
        except (FFmpegError, ValueError, OSError, MemoryError) as error:
            channel.send({"problem": str(error) or type(error).__name__})
