"""The decoder's side of `DecodeProcess`: runs in its own process, without torch.

It takes one command at a time from standard input, writes frames into the slots of a shared ring
and names them on standard output. It ends when its input ends or its parent is gone.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import sys
import threading
import time
from typing import NamedTuple, NoReturn

import av.logging
import numpy as np

from tadpipe.errors import TadpipeError, VideoError, VideoReason
from tadpipe.video.messages import LineChannel, Message, error_to_json, probe_to_json
from tadpipe.video.packets import PacketScan, scan_packets, shown
from tadpipe.video.reader import SKIPPED, FrameStream, open_frames
from tadpipe.video.snippets import SnippetPlan

PARENT_CHECK_SEC = 1.0
SKIPPED_SEC = 0.05  # until the owner hears of frames that it need not have


class _Stopped(Exception):
    """The owner gave up the current video."""


class _FileState(NamedTuple):
    """What tells that a path still names the same bytes."""

    path: str
    size: int
    modified_ns: int


class Worker:
    """Answers `probe` and `frames` commands; keeps packet pass and ring of the last file."""

    def __init__(self, channel: LineChannel, ring_fd: int) -> None:
        self.channel = channel
        self.ring_fd = ring_fd
        self._ring = np.empty(0, dtype=np.uint8)
        self._last_scan: tuple[_FileState, PacketScan] | None = None

    def run(self) -> None:
        self.channel.send({"ready": os.getpid()})
        while True:
            command = self.channel.receive(None)
            assert command is not None
            if "do" not in command:  # slots freed after the last frame of a video
                continue
            try:
                self._answer(command)
            except _Stopped:
                self.channel.send({"stopped": True})
            except TadpipeError as error:
                self.channel.send({"error": error_to_json(error)})

    def _answer(self, command: Message) -> None:
        if command["do"] == "probe":
            self.channel.send({"probe": probe_to_json(self._scan(command["path"]).probe())})
        elif command["do"] == "frames":
            path = command["path"]
            uses = None if command["plan"] is None else SnippetPlan("start", *command["plan"]).uses
            stream = open_frames(path, command["decoder"], scan=self._scan(path), uses=uses)
            try:
                self._deliver(stream, path)
            finally:
                stream.close()

    def _scan(self, path: str) -> PacketScan:
        try:
            status = os.stat(path)
            state = _FileState(path, status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            return scan_packets(path)  # says what is wrong
        if self._last_scan is None or self._last_scan[0] != state:
            scan = scan_packets(path, lambda: self.channel.send({"alive": True}))
            self._last_scan = (state, scan)
        return self._last_scan[1]

    def _deliver(self, stream: FrameStream, path: str) -> None:
        """Write frames [H, W, 3] into free slots until the video ends."""
        height, width = stream.probe.height, stream.probe.width
        self.channel.send({"start": [height, width, 3]})
        answer = self._receive()
        slots, slot_bytes = answer["slots"], height * width * 3
        failure: TadpipeError | None = None
        try:
            if len(self._ring) != slots * slot_bytes:
                memory = mmap.mmap(self.ring_fd, slots * slot_bytes)  # unmapped with its last array
                self._ring = np.frombuffer(memory, dtype=np.uint8)
            self._fill(stream, self._ring.reshape(slots, height, width, 3))
        except TadpipeError as error:
            failure = error
        except (MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                raise
            failure = VideoError(
                VideoReason.OUT_OF_MEMORY,
                "There is not enough memory to decode this video.",
                f"{shown(path)}: {width} x {height} pixels",
            )
        self.channel.send(
            {
                "end": error_to_json(failure) if failure else None,
                "delivered": probe_to_json(stream.delivered_probe()) if stream.delivered else None,
            }
        )

    def _fill(self, stream: FrameStream, ring: np.ndarray) -> None:
        free = list(range(len(ring)))
        skipped, told = 0, time.monotonic()
        try:
            for frame in stream:
                needs_slot = frame is not SKIPPED
                if not needs_slot:
                    skipped += 1
                    if time.monotonic() < told + SKIPPED_SEC:
                        continue
                while (needs_slot and not free) or self.channel.has_line:
                    free += self._receive()["free"]
                if skipped:
                    self.channel.send({"skipped": skipped})
                    skipped, told = 0, time.monotonic()
                if needs_slot:
                    slot = free.pop()
                    ring[slot] = frame
                    self.channel.send({"frame": slot})
        finally:
            if skipped:
                self.channel.send({"skipped": skipped})

    def _receive(self) -> Message:
        message = self.channel.receive(None)
        assert message is not None
        if "stop" in message:
            raise _Stopped
        return message


def main() -> NoReturn:
    """Serve the parent until it closes the pipe; arguments: its process id, the ring's descriptor.

    Whatever native code prints goes to standard error: standard output belongs to the messages.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent, ring_fd = int(sys.argv[1]), int(sys.argv[2])
    output_fd = os.dup(1)
    os.dup2(2, 1)
    av.logging.set_level(None)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    try:
        Worker(LineChannel(0, output_fd), ring_fd).run()
    except (EOFError, BrokenPipeError):  # the parent is done
        os._exit(0)
    raise AssertionError("the worker serves until its pipe closes")


def _leave_with(parent: int) -> None:
    """End this process, even in the middle of a decoder's call, when its parent is gone."""
    never = threading.Event()
    while os.getppid() == parent:
        never.wait(PARENT_CHECK_SEC)
    os._exit(1)
