"""What an extraction does per second, told to the store while it runs (`store/run_progress.py`)."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from tadpipe.errors import StoreError
from tadpipe.pipeline.frame_source import VideoRows
from tadpipe.pipeline.video_outcomes import VideoOutcome
from tadpipe.store.run_progress import RunProgress

logger = logging.getLogger(__name__)

TELL_SEC = 2.0


class Counted(Protocol):
    """What runs videos through a backbone, and counts on the way."""

    under_way: list[VideoRows]
    clips_done: int
    device_busy_sec: float


class RunMeter:
    """Counts what a writer does.

    Args:
        tell: keeps a writer's state where others can read it (`Backend.tell`).
        knows_all: whether the videos it is told of are all there will be.
    """

    def __init__(
        self,
        runner: Counted,
        tell: Callable[[RunProgress], None],
        writer_id: str,
        fid: str,
        *,
        knows_all: bool,
    ) -> None:
        self.runner = runner
        self.tell = tell
        self.writer_id = writer_id
        self.fid = fid
        self.knows_all = knows_all
        self._began_unix_sec = time.time()
        self._videos = 0
        self._outcomes: Counter[str] = Counter()
        self._frames = 0  # of finished videos
        self._spent_sec = 0.0  # before `_resumed`
        self._resumed: float | None = None

    @contextmanager
    def running(self, videos: int) -> Iterator[None]:
        """Count time and keep the store told, at the beginning, every few seconds, at the end."""
        self._videos += videos
        self._resumed = time.monotonic()
        stop = threading.Event()
        teller = threading.Thread(target=self._tell, args=(stop,), daemon=True)
        teller.start()
        try:
            yield
        finally:
            stop.set()
            teller.join()
            self._spent_sec += time.monotonic() - self._resumed
            self._resumed = None
            self._write(self.progress())

    def note(self, outcome: VideoOutcome) -> None:
        """A video is done with."""
        self._outcomes[outcome.status] += 1
        self._frames += outcome.frames_decoded

    def progress(self) -> RunProgress:
        """The state of this moment."""
        spent_sec = self._spent_sec
        if self._resumed is not None:
            spent_sec += time.monotonic() - self._resumed
        under_way = tuple(self.runner.under_way)
        return RunProgress(
            writer=self.writer_id,
            fid=self.fid,
            host=socket.gethostname(),
            pid=os.getpid(),
            began_unix_sec=self._began_unix_sec,
            updated_unix_sec=time.time(),
            ended=self._resumed is None,
            videos_total=self._videos if self.knows_all else None,
            done=self._outcomes["done"],
            reused=self._outcomes["reused"],
            failed=self._outcomes["failed"],
            frames_decoded=self._frames + sum(video.frames_decoded for video in under_way),
            clips=self.runner.clips_done,
            seconds=spent_sec,
            device_busy_sec=self.runner.device_busy_sec,
        )

    def _tell(self, stop: threading.Event) -> None:
        while self._write(self.progress()) and not stop.wait(TELL_SEC):
            pass

    def _write(self, progress: RunProgress) -> bool:
        """Whether it could be written; a run does not end because nobody can watch it."""
        try:
            self.tell(progress)
        except (OSError, StoreError) as error:
            logger.warning("no progress for `store status`: %s", error)
            return False
        return True
