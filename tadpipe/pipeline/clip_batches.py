"""From video files to feature rows: decode, prepare, cut clips, fill batches across videos.

Shapes: F frames per clip, S side of the prepared picture, N clips per batch, C channels.
Frames arrive from the decoder's own process while the backbone works on the batch before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from tadpipe.backbones.pixels import prepare
from tadpipe.backbones.protocol import Backbone
from tadpipe.errors import VideoError, VideoReason
from tadpipe.pipeline.video_files import VideoFile, printable
from tadpipe.video.process import DecodeProcess
from tadpipe.video.rate import nearest_frames, pick
from tadpipe.video.reader import VideoProbe
from tadpipe.video.snippets import SnippetPlan, iter_clips

PREPARE_FRAMES = 16  # frames whose pixels are prepared in one call; the bits do not depend on it


@dataclass
class VideoRows:
    """One video on its way through the backbone, and at the end its features or its error."""

    file: VideoFile
    content_sha256: str
    probe: VideoProbe | None = None  # after resampling, of the frames that were used
    rows: list[np.ndarray] = field(default_factory=list)  # each [C]
    clips_cut: int = 0
    decoding: bool = True
    frames_decoded: int = 0
    frames_used: int = 0  # after resampling to another rate
    truncated: bool = False
    error: VideoError | None = None
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return self.error is not None or (not self.decoding and len(self.rows) == self.clips_cut)

    def features(self) -> np.ndarray:
        """[rows, C] float32."""
        return np.stack(self.rows)


class ClipBatches:
    """Runs videos through a backbone in full batches.

    Args:
        batch: clips per forward pass, N.
        pad: fill the last batch up to N, for a compiled backbone with fixed shapes.
        fps: resample to this rate by presentation times; None keeps the frames of the file.
        keep_truncated: use what can be decoded of a file that ends early.
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
    ) -> None:
        self.backbone = backbone
        self.plan = plan
        self.decoder = decoder
        self.device = device
        self.batch = batch
        self.pad = pad
        self.fps = fps
        self.keep_truncated = keep_truncated
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
                self._settle(video)
            except VideoError as error:
                video.error = error
            video.decoding = False
            yield from _take_complete(waiting)
        if self._queue:
            self._forward()
        yield from _take_complete(waiting)

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
        path = video.file.path
        probe = self.decoder.probe(path)
        video.probe = probe
        frames = self._counted_frames(video)
        if self.fps is not None:
            indices = nearest_frames(probe.times_sec, self.fps)
            frames = pick(frames, indices)
            ticks = probe.times_sec[0] + np.arange(len(indices)) / self.fps
            video.probe = replace(
                probe,
                frames=len(indices),
                times_sec=tuple(ticks.tolist()),
                fps=Fraction(self.fps).limit_denominator(100_000),
            )
        for _, ring in iter_clips(self._prepared(video, frames), self.plan):
            yield torch.stack(ring, dim=1)

    def _counted_frames(self, video: VideoRows) -> Iterator[np.ndarray]:
        """The decoder's frames; the end of a truncated file is kept or an error, as asked."""
        try:
            for frame in self.decoder.frames(video.file.path):
                video.frames_decoded += 1
                yield frame
        except VideoError as error:
            if error.reason is not VideoReason.TRUNCATED:
                raise
            video.truncated = True
            if not self.keep_truncated:
                raise

    def _prepared(self, video: VideoRows, frames: Iterator[np.ndarray]) -> Iterator[Tensor]:
        """Frames [H, W, 3] uint8 -> pictures [3, S, S] on the device."""
        group: list[np.ndarray] = []
        for frame in frames:
            video.frames_used += 1
            group.append(frame)
            if len(group) == PREPARE_FRAMES:
                yield from self._prepare(group)
                group = []
        if group:
            yield from self._prepare(group)

    def _prepare(self, group: list[np.ndarray]) -> Tensor:
        stacked = torch.from_numpy(np.stack(group))  # [T, H, W, 3]
        return prepare(stacked, self.backbone.pixels, self.device)

    def _settle(self, video: VideoRows) -> None:
        """Make the probe speak of the frames that were there."""
        assert video.probe is not None
        used = video.frames_used
        if video.clips_cut == 0:
            raise VideoError(
                VideoReason.TOO_SHORT,
                "The video is shorter than one snippet.",
                f"{printable(video.file.path)}: {used} frames, a snippet spans "
                f"{self.plan.span_frames}",
                "Use a smaller --clip-len, or --anchor centre, which repeats edge frames.",
            )
        delivered = self.decoder.delivered
        if self.fps is None and delivered is not None:
            video.probe = delivered  # not every packet is a picture in some files
        else:
            times = tuple(video.probe.times_sec[:used])
            video.probe = replace(video.probe, frames=used, times_sec=times)


def _take_complete(waiting: list[VideoRows]) -> Iterator[VideoRows]:
    """Remove and yield the videos at the head of the line that are complete."""
    while waiting and waiting[0].complete:
        video = waiting.pop(0)
        video.seconds = time.monotonic() - video.started
        yield video
