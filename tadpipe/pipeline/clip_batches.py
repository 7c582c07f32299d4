"""From video files to feature rows: decode, prepare, cut clips, fill batches across videos.

Shapes: F frames per clip, S side of the prepared picture, N clips per batch, C channels.
Frames arrive from the decoder's own process while the backbone works on the batch before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tadpipe.backbones.pixels import prepare
from tadpipe.backbones.protocol import Backbone
from tadpipe.errors import VideoError
from tadpipe.pipeline.frame_source import FrameSource, VideoRows
from tadpipe.pipeline.optical_flow import FlowSource
from tadpipe.video.process import DecodeProcess
from tadpipe.video.snippets import SnippetPlan, iter_clips


def batch_of(device: str) -> int:
    """Clips per forward pass, unless somebody says otherwise."""
    return 4 if torch.device(device).type == "cpu" else 32


class ClipBatches:
    """Runs videos through a backbone in full batches.

    Args:
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
        decoder: DecodeProcess,
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
        self.decoder = decoder
        self.batch = batch
        self.pad = pad
        self._source = FrameSource(
            decoder,
            lambda frames: prepare(frames, backbone.pixels, device),
            fps=fps,
            keep_truncated=keep_truncated,
            flow=flow,
        )
        self._queue: list[tuple[VideoRows, Tensor]] = []

    def run(self, videos: Iterable[VideoRows]) -> Iterator[VideoRows]:
        """Each video once, when its last row is there or when it failed."""
        waiting: list[VideoRows] = []
        for video in videos:
            waiting.append(video)
            try:
                for clip in self._clips(video):
                    self._queue.append((video, clip))
                    video.clips_cut += 1
                    if len(self._queue) == self.batch:
                        self._forward()
                self._source.settle(video, self.plan.span_frames)
            except VideoError as error:
                video.error = error
            video.decoding = False
            yield from take_complete(waiting)
        if self._queue:
            self._forward()
        yield from take_complete(waiting)

    def _forward(self) -> None:
        """Run the queued clips and hand each row to its video."""
        clips = torch.stack([clip for _, clip in self._queue])  # [N, 3, F, S, S]
        count = len(clips)
        if self.pad and count < self.batch:
            clips = torch.cat([clips, clips[-1:].expand(self.batch - count, *clips.shape[1:])])
        with torch.inference_mode():
            features = self.backbone(clips)[:count].float().cpu().numpy()  # [N, C]
        for (video, _), row in zip(self._queue, features, strict=True):
            video.rows.append(row)
        self._queue.clear()

    def _clips(self, video: VideoRows) -> Iterator[Tensor]:
        """Clips [3, F, S, S] of a video in order, cut from a ring of prepared frames."""
        for _, ring in iter_clips(self._source.frames(video), self.plan):
            yield torch.stack(ring, dim=1)


def take_complete(waiting: list[VideoRows]) -> Iterator[VideoRows]:
    """Remove and yield the videos at the head of the line that are complete."""
    while waiting and waiting[0].complete:
        video = waiting.pop(0)
        video.seconds = time.monotonic() - video.started
        yield video
