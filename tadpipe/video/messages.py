"""What the decoder's process and its owner say to each other: JSON, one document per line.

JSON and not pickle, because the decoder works on untrusted files. Frames do not travel here but
through shared memory; a line says which slot holds the next one.
"""

from __future__ import annotations

import json
import os
import select
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from tadpipe.errors import ConfigError, TadpipeError, VideoError, VideoReason
from tadpipe.video.packets import VideoProbe

Message = dict[str, Any]


class LineChannel:
    """Lines over two pipe ends."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer known to hold no line end
        self._poll = select.poll()
        self._poll.register(read_fd, select.POLLIN | select.POLLHUP)

    def send(self, message: Message) -> None:
        """Write one line; BrokenPipeError when the other side is gone."""
        line = memoryview(json.dumps(message).encode() + b"\n")
        while line:
            line = line[os.write(self._write_fd, line) :]

    def receive(self, timeout_sec: float | None) -> Message | None:
        """The next message, or None when nothing at all arrived within the time.

        Raises:
            EOFError: the other side is gone.
        """
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if not self._poll.poll(None if timeout_sec is None else timeout_sec * 1000):
                return None
            part = os.read(self._read_fd, 1 << 16)
            if not part:
                raise EOFError
            self._buffer += part
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        message: Message = json.loads(line)
        return message

    @property
    def has_line(self) -> bool:
        """Whether `receive` would return at once without reading."""
        return b"\n" in self._buffer


def probe_to_json(probe: VideoProbe) -> Message:
    return {**asdict(probe), "fps": None if probe.fps is None else str(probe.fps)}


def probe_from_json(fields: Message) -> VideoProbe:
    fps = fields["fps"]
    return VideoProbe(
        **{
            **fields,
            "fps": None if fps is None else Fraction(fps),
            "times_sec": tuple(fields["times_sec"]),
        }
    )


def error_to_json(error: TadpipeError) -> Message:
    reason = str(error.reason) if isinstance(error, VideoError) else None
    return {"reason": reason, "what": error.what, "where": error.where, "todo": error.todo}


def error_from_json(fields: Message) -> TadpipeError:
    words = (fields["what"], fields["where"], fields["todo"])
    if fields["reason"] is None:
        return ConfigError(*words)
    return VideoError(VideoReason(fields["reason"]), *words)
