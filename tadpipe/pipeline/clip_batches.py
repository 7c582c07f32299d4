"""From video files to feature rows: decode, prepare, cut clips, fill batches across videos.

Shapes: F frames per clip, S side of the prepared picture, N clips per batch, C channels.
While the backbone works on a batch, the lanes (`pipeline/clip_lanes.py`) decode and prepare the
clips of the next ones; on a GPU a batch is queued before the rows of the one before are fetched.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tadpipe.backbones.pixels import prepare
from tadpipe.backbones.protocol import Backbone
from tadpipe.errors import VideoError
from tadpipe.pipeline.clip_lanes import ClipLanes
from tadpipe.pipeline.frame_source import FrameSource, VideoRows
from tadpipe.pipeline.optical_flow import FlowSource
from tadpipe.video.process import DecodeProcess
from tadpipe.video.snippets import SnippetPlan

LINE_BATCHES, LINE_CLIPS = 2, 8  # that may wait for the backbone, whichever is more


def batch_of(device: str) -> int:
    """Clips per forward pass, unless somebody says otherwise.

    One on the CPU: a clip of VideoMAE keeps all cores busy, and the activations of several leave
    its caches and its allocator's reserve (measured, benchmarks/results/extract.md).
    """
    return 1 if torch.device(device).type == "cpu" else 32


def decoders_of(device: str) -> int:
    """Decoders, unless somebody says otherwise.

    One on the CPU, where backbone and decoders share the cores: two are slower with clips close to
    each other, 1.8 times as fast with clips far apart (measured, benchmarks/results/workers.md).
    """
    return 1 if torch.device(device).type == "cpu" else 4


class ClipBatches:
    """Runs videos through a backbone in full batches.

    Args:
        decoders: each works on a video of its own.
        batch: clips per forward pass, N.
        pad: fill the last batch up to N, for a compiled backbone with fixed shapes.
        fps: resample to this rate by presentation times; None keeps the frames of the file.
        keep_truncated: use what can be decoded of a file that ends early.
        flow: makes the pictures that a backbone on optical flow sees.
    """

    def __init__(
        self,
        backbone: Backbone,
        plan: SnippetPlan,
        decoders: Sequence[DecodeProcess],
        *,
        device: str,
        batch: int,
        pad: bool,
        fps: float | None,
        keep_truncated: bool,
        flow: FlowSource | None = None,
    ) -> None:
        self.backbone = backbone
        self.plan = plan
        self.decoders = decoders
        self.batch = batch
        self.pad = pad
        self.under_way: list[VideoRows] = []
        self.clips_done = 0
        self.device_busy_sec = 0.0
        self._sources = [
            FrameSource(
                decoder,
                lambda frames: prepare(frames, backbone.pixels, device),
                fps=fps,
                keep_truncated=keep_truncated,
                flow=flow,
                pinned=torch.device(device).type == "cuda",
            )
            for decoder in decoders
        ]
        self._queue: list[tuple[VideoRows, list[Tensor]]] = []
        self._clips: Tensor | None = None  # [N, 3, F, S, S], filled anew for every batch
        self._launched: _Launched | None = None

    @property
    def source(self) -> FrameSource:
        """Frames of the first decoder."""
        return self._sources[0]

    def run(self, videos: Iterable[VideoRows]) -> Generator[VideoRows]:
        """Each video once, when its last row is there or when it failed."""
        self._queue.clear()
        self._launched = None
        coming = iter(videos)
        waiting = self.under_way = []
        room = max(LINE_BATCHES * self.batch, LINE_CLIPS)
        with ClipLanes(self._sources, self.plan, room) as lanes:
            for _ in range(len(self._sources) + 1):  # one more, so that no lane has to wait for us
                self._add_next(coming, waiting, lanes)
            while any(video.decoding for video in waiting):
                video, clip, failure = lanes.next()
                if clip is not None:
                    self._queue.append((video, clip))
                    if len(self._queue) == self.batch:
                        self._forward()
                        yield from take_complete(waiting)
                    continue
                video.decoding = False
                if isinstance(failure, VideoError):
                    video.error = failure
                elif failure is not None:
                    raise failure
                self._add_next(coming, waiting, lanes)
                yield from take_complete(waiting)
        if self._queue:
            self._forward()
        self._fetch()
        yield from take_complete(waiting)

    def _add_next(
        self, coming: Iterator[VideoRows], waiting: list[VideoRows], lanes: ClipLanes
    ) -> None:
        video = next(coming, None)
        if video is not None:
            waiting.append(video)
            lanes.add(video)

    def _forward(self) -> None:
        """Start the queued clips on their way; then fetch the rows of the batch before."""
        count = len(self._queue)
        clips = self._stacked()
        if not (self.pad and count < self.batch):
            clips = clips[:count]
        videos = [video for video, _ in self._queue]
        self._queue.clear()
        with torch.inference_mode():
            batch = _Launched.of(self.backbone, clips, videos)
        self._fetch()
        self._launched = batch
        if not clips.is_cuda:
            self._fetch()

    def _stacked(self) -> Tensor:
        """The queued clips as [N, 3, F, S, S], the last one repeated where they are fewer."""
        first = self._queue[0][1]
        shape = (self.batch, first[0].shape[0], len(first), *first[0].shape[1:])
        if self._clips is None or self._clips.shape != shape:
            self._clips = torch.empty(shape, dtype=first[0].dtype, device=first[0].device)
        for place, (_, clip) in enumerate(self._queue):
            torch.stack(clip, dim=1, out=self._clips[place])
        if self.pad:
            count = len(self._queue)
            self._clips[count:] = self._clips[count - 1]
        return self._clips

    def _fetch(self) -> None:
        """Hand the rows of the launched batch to their videos."""
        if self._launched is not None:
            self.device_busy_sec += self._launched.hand_out()
            self.clips_done += len(self._launched.videos)
            self._launched = None


class _Launched(NamedTuple):
    """A batch that the backbone has been given, and where its rows will be."""

    videos: list[VideoRows]
    features: Tensor  # [N, C] in memory of the host, there once `ended` has happened
    busy_sec: float  # on the CPU
    began: torch.cuda.Event | None = None
    ended: torch.cuda.Event | None = None

    @classmethod
    def of(cls, backbone: Backbone, clips: Tensor, videos: list[VideoRows]) -> _Launched:
        """Run the backbone; on a GPU this returns before it has run."""
        count = len(videos)
        if not clips.is_cuda:
            began_sec = time.perf_counter()
            features = backbone(clips)[:count].float()
            return cls(videos, features, time.perf_counter() - began_sec)
        began = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        began.record()
        features = backbone(clips)[:count].float()
        host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        host.copy_(features, non_blocking=True)
        ended.record()
        return cls(videos, host, 0.0, began, ended)

    def hand_out(self) -> float:
        """Give every video its rows; returns the seconds that the device was busy with them."""
        busy_sec = self.busy_sec
        if self.began is not None and self.ended is not None:
            self.ended.synchronize()
            busy_sec = self.began.elapsed_time(self.ended) / 1e3
        rows = self.features.numpy().copy()  # not for ever in the memory that a GPU copies into
        for place, video in enumerate(self.videos):
            video.rows.append(rows[place : place + 1])
        return busy_sec


def take_complete(waiting: list[VideoRows]) -> Iterator[VideoRows]:
    """Remove and yield the videos that are complete, whichever began first."""
    complete = [video for video in waiting if video.complete]
    waiting[:] = [video for video in waiting if not video.complete]
    yield from complete
