"""A decoder in its own process, so that no video can hang or crash the run.

Frames come through a ring in anonymous shared memory (a memory file that has no name and dies with
its last user, so that nothing can be left behind), control messages through pipes. The child is a
fresh interpreter that runs `tadpipe.video.worker`: scripts without a main guard work, and torch is
never imported there. Frames are [H, W, 3] uint8.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Self

import numpy as np

from tadpipe.errors import ConfigError, TadpipeError, VideoError, VideoReason
from tadpipe.video.messages import LineChannel, Message, error_from_json, probe_from_json
from tadpipe.video.packets import PathLike, VideoProbe, check_readable, shown
from tadpipe.video.reader import DECODERS, SKIPPED, Decoder
from tadpipe.video.snippets import SnippetPlan

LOG = logging.getLogger(__name__)

RING_BYTES = 64 << 20
FEWEST_SLOTS, MOST_SLOTS = 2, 64
START_SEC = 120.0  # for the child's imports, on a busy machine
END_SEC = 2.0
BOOT = "import sys; sys.path[:] = sys.argv[3:]; from tadpipe.video.worker import main; main()"


class DecodeProcess:
    """Decodes one video after another in a child process; a context manager.

    The child starts with the first video, is reused, and is replaced when it hangs or dies. Not
    for use from several threads at once.

    Args:
        timeout_sec: the child is killed when it shows no progress for so long.
        ring_bytes: shared memory for frames on their way; never less than two frames.
    """

    def __init__(
        self,
        decoder: Decoder = "pyav",
        timeout_sec: float = 60.0,
        *,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        if decoder not in DECODERS:
            raise ConfigError(
                f"Unknown decoder '{decoder}'.", todo=f"Known: {', '.join(DECODERS)}."
            )
        if timeout_sec <= 0:
            raise ConfigError("A timeout must be positive.", f"timeout_sec = {timeout_sec}")
        self.decoder = decoder
        self.timeout_sec = timeout_sec
        self.ring_bytes = ring_bytes
        self.delivered: VideoProbe | None = None
        """The probe of exactly the frames that came of the last video, once it has come to its end.

        It differs from `probe` for files that end early or whose packets are not all pictures."""
        self._child: _Child | None = None
        self._reading: object | None = None  # the iterator that may still take frames

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None before the first video and after a kill."""
        return self._child.process.pid if self._child else None

    def close(self) -> None:
        """End the child; a later call starts a new one."""
        child, self._child, self._reading = self._child, None, None
        if child:
            child.close()

    def probe(self, path: PathLike) -> VideoProbe:
        """As `reader.probe`, in the child.

        Raises:
            VideoError: also DECODE_TIMEOUT, WORKER_DIED and OUT_OF_MEMORY.
        """
        check_readable(path)
        self._give_up_current()
        try:
            answer = self._ask({"do": "probe", "path": os.fspath(path)}, path)
        except TadpipeError:
            raise
        except BaseException:  # Ctrl-C: the child may be in the middle of anything
            self.kill()
            raise
        return probe_from_json(answer["probe"])

    def frames(self, path: PathLike, plan: SnippetPlan | None = None) -> Iterator[np.ndarray]:
        """As `reader.open_frames`, in the child; every frame is the caller's own copy.

        An iterator that is dropped, or that another call overtakes, ends its video there.

        Args:
            plan: the clips that the frames are for; those between clips may come as SKIPPED.

        Raises:
            VideoError: also DECODE_TIMEOUT, WORKER_DIED and OUT_OF_MEMORY.
        """
        check_readable(path)
        self._give_up_current()
        self.delivered = None
        command = {
            "do": "frames",
            "path": os.fspath(path),
            "decoder": self.decoder,
            "plan": _skipping(plan),
        }
        try:
            shape: tuple[int, int, int] = tuple(self._ask(command, path)["start"])
            assert self._child
            token = self._reading = object()
            ring = self._child.map_ring(shape, self.ring_bytes)
            taken: list[int] = []
            skipped = 0
            while True:
                if self._reading is not token:
                    raise ConfigError(
                        "These frames were given up when another video was asked for.",
                        shown(path),
                        "Use one DecodeProcess for each video that is read at the same time.",
                    )
                if skipped:
                    skipped -= 1
                    yield SKIPPED
                    continue
                message = self._next_message(path, taken)
                skipped = message.get("skipped", 0)
                if skipped:
                    continue
                if "frame" not in message:
                    break
                frame = ring[message["frame"]].copy()
                taken.append(message["frame"])
                yield frame
            self._reading = None
            if message["delivered"] is not None:
                self.delivered = probe_from_json(message["delivered"])
            if message["end"] is not None:
                raise error_from_json(message["end"])
        except GeneratorExit:
            if self._reading is token:  # only a running video can be closed
                self._give_up_current()
            raise
        except TadpipeError:
            raise
        except BaseException:  # Ctrl-C: the child may be in the middle of anything
            self.kill()
            raise

    def kill(self) -> None:
        """End the child at once; a later call starts a new one."""
        child, self._child, self._reading = self._child, None, None
        if child:
            child.kill()

    def _give_up_current(self) -> None:
        """Stop the video that is being read, so that the child can take the next command."""
        if self._reading is None:
            return
        self._reading = None
        child = self._child
        if child is None:
            return
        try:
            child.channel.send({"stop": True})
            while (answer := child.channel.receive(self.timeout_sec)) is not None:
                if "stopped" in answer or "end" in answer or "error" in answer:
                    break
            else:
                self.kill()
        except (EOFError, OSError):
            self.kill()

    def _ask(self, command: Message, path: PathLike) -> Message:
        """Send a command and wait for its first answer."""
        if self._child is not None and self._child.process.poll() is not None:
            LOG.warning("the decoder's process ended between videos: %s", self._child.fate())
            self.kill()
        if self._child is None:
            self._child = _Child()
            if self._receive(START_SEC, path) is None:
                raise self._timed_out(path, START_SEC)
        self._send(command, path)
        while True:
            answer = self._next_message(path, [])
            if "error" in answer:
                raise error_from_json(answer["error"])
            return answer

    def _next_message(self, path: PathLike, taken: list[int]) -> Message:
        """The next message that is more than a sign of life; gives taken slots back on the way."""
        assert self._child
        while True:
            if taken and not self._child.channel.has_line:
                self._send({"free": taken}, path)
                taken.clear()
            message = self._receive(self.timeout_sec, path)
            if message is None:
                raise self._timed_out(path, self.timeout_sec)
            if "alive" not in message:
                return message

    def _send(self, message: Message, path: PathLike) -> None:
        assert self._child
        try:
            self._child.channel.send(message)
        except BrokenPipeError:
            raise self._died(path) from None

    def _receive(self, timeout_sec: float, path: PathLike) -> Message | None:
        assert self._child
        try:
            return self._child.channel.receive(timeout_sec)
        except EOFError:
            raise self._died(path) from None

    def _timed_out(self, path: PathLike, seconds: float) -> VideoError:
        self.kill()
        return VideoError(
            VideoReason.DECODE_TIMEOUT,
            "The decoder made no progress and was stopped.",
            f"{shown(path)}: nothing for {seconds:g} s",
            "Re-encode the file or leave it out; a slow disk may need a longer timeout.",
        )

    def _died(self, path: PathLike) -> VideoError:
        assert self._child
        fate = self._child.fate()
        self.kill()
        return VideoError(
            VideoReason.WORKER_DIED,
            "The decoder's process died on this video.",
            f"{shown(path)}: {fate}",
            "Re-encode the file or leave it out.",
        )


class _Child:
    """A running worker: process, pipes and shared memory."""

    def __init__(self) -> None:
        self._ring_file = _anonymous_file()
        self._ring = np.empty(0, dtype=np.uint8)  # its memory; touched anew it would be slow
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by kill()
        fd = self._ring_file.fileno()
        self.process = subprocess.Popen(
            # As multiprocessing does, the child looks for modules where the parent does.
            [sys.executable, "-c", BOOT, str(os.getpid()), str(fd), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            pass_fds=(fd,),
            process_group=0,  # Ctrl-C in the terminal does not reach it
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self.process.stdin
        assert self.process.stdout
        self.channel = LineChannel(self.process.stdout.fileno(), self.process.stdin.fileno())
        # An owner that forgets to close leaves no child; a fork of the owner must not end it.
        self._cleanup = weakref.finalize(self, _end_child, self.process, os.getpid())

    def map_ring(self, shape: tuple[int, int, int], ring_bytes: int) -> np.ndarray:
        """Make room for frames of a shape and tell the child; [slots, H, W, 3]."""
        frame_bytes = int(np.prod(shape))
        slots = min(max(ring_bytes // frame_bytes, FEWEST_SLOTS), MOST_SLOTS)
        if len(self._ring) != slots * frame_bytes:
            fd = self._ring_file.fileno()
            os.ftruncate(fd, slots * frame_bytes)
            memory = mmap.mmap(fd, slots * frame_bytes)  # unmapped with its last array
            self._ring = np.frombuffer(memory, dtype=np.uint8)
        self.channel.send({"slots": slots})
        return self._ring.reshape(slots, *shape)

    def close(self) -> None:
        """Let the child finish; it ends when its input ends."""
        assert self.process.stdin
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it is killed
            self.process.wait(END_SEC)
        self.kill()

    def kill(self) -> None:
        self._cleanup()
        self._ring_file.close()
        self._errors.close()

    def fate(self) -> str:
        """How the child ended, with the last line of what it printed."""
        try:
            status = self.process.wait(END_SEC)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        ended = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._errors.seek(0)
        lines = self._errors.read()[-4096:].decode(errors="replace").strip().splitlines()
        return f"{ended}, {lines[-1]}" if lines else ended


def _skipping(plan: SnippetPlan | None) -> list[int] | None:
    """The numbers by which the child knows the frames between clips; None where there are none."""
    if plan is None or all(plan.uses(frame) for frame in range(plan.stride)):
        return None
    return [plan.clip_len, plan.frame_interval, plan.stride]


def _end_child(process: subprocess.Popen[bytes], owner_pid: int) -> None:
    """Kill and reap; only in the process that started the child."""
    if os.getpid() != owner_pid:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _anonymous_file() -> IO[bytes]:
    """Memory without a name where the system has it, else an unlinked temporary file."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tadpipe-frames", os.MFD_CLOEXEC), "r+b", buffering=0)
    return tempfile.TemporaryFile()
