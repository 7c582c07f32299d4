"""Threads that decode, prepare and cut clips ahead of the backbone, one per decoder's process.

All lanes fill one line of bounded length; who is ahead waits, so that memory depends neither on the
length of a video nor on how slow the backbone is. A clip in the line is a list of references to
prepared frames, which neighbouring clips share.
Shapes: F frames per clip, S side of the prepared picture.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from tadpipe.pipeline.frame_source import FrameSource, VideoRows
from tadpipe.video.snippets import SnippetPlan, iter_clips


class Cut(NamedTuple):
    """What a lane has to say: one more clip of a video, or that no more will come."""

    video: VideoRows
    clip: list[Tensor] | None  # F frames [3, S, S]; None at the video's end
    failure: BaseException | None = None  # what ended it before its time


class ClipLanes:
    """Videos in, clips out; a context, within which the lanes' threads live.

    Args:
        sources: one per lane, each with a decoder of its own.
        room: clips in the line at most.
    """

    def __init__(self, sources: Sequence[FrameSource], plan: SnippetPlan, room: int) -> None:
        self.plan = plan
        self._videos: SimpleQueue[VideoRows | None] = SimpleQueue()
        self._line = _Line(room)
        self._busy: set[FrameSource] = set()
        self._ready = threading.Barrier(len(sources) + 1)
        self._threads = [
            threading.Thread(target=self._serve, args=(source,), daemon=True) for source in sources
        ]

    def __enter__(self) -> Self:
        threads = torch.get_num_threads()
        for thread in self._threads:
            thread.start()
        self._ready.wait()
        torch.set_num_threads(threads)  # the lanes' setting counts for threads that start later
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.close()
        for _ in self._threads:
            self._videos.put(None)
        for source in tuple(self._busy):  # broken off: its lane may be waiting for a frame
            pid = source.decoder.pid
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join()

    def add(self, video: VideoRows) -> None:
        """A video for the next lane that is free."""
        self._videos.put(video)

    def next(self) -> Cut:
        """The next clip or end of a video, from any lane; waits for it."""
        return self._line.take()

    def _serve(self, source: FrameSource) -> None:
        torch.set_num_threads(1)  # of this thread: the cores are the backbone's
        self._ready.wait()
        with suppress(_Closed):
            while (video := self._videos.get()) is not None:
                self._busy.add(source)
                failure = self._cut(source, video)
                self._busy.remove(source)
                self._line.put(Cut(video, None, failure))

    def _cut(self, source: FrameSource, video: VideoRows) -> BaseException | None:
        """Put a video's clips into the line; what went wrong."""
        video.started = time.monotonic()
        try:
            if not video.is_wanted():
                return None
            for _, ring in iter_clips(source.frames(video, self.plan), self.plan):
                video.clips_cut += 1
                self._line.put(Cut(video, ring))
            source.settle(video, self.plan.span_frames)
        except _Closed:
            raise
        except BaseException as error:
            return error
        return None


class _Closed(Exception):
    """Nobody takes from the line any more."""


class _Line:
    """A queue of bounded length whose putters can be sent home."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._items: deque[Cut] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Cut) -> None:
        with self._changed:
            while len(self._items) >= self.room and not self._closed:
                self._changed.wait()
            if self._closed:
                raise _Closed
            self._items.append(item)
            self._changed.notify_all()

    def take(self) -> Cut:
        with self._changed:
            while not self._items:
                self._changed.wait()
            self._changed.notify_all()
            return self._items.popleft()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
