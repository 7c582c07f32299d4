"""A video's prepared frames in one pass: decode, resample, resize and normalise.

Shapes: T frames of a block, H x W decoded pixels, S side of the prepared picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import compress
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tadpipe.errors import VideoError, VideoReason
from tadpipe.pipeline.optical_flow import FlowSource
from tadpipe.pipeline.video_files import VideoFile, printable
from tadpipe.store.row_buffer import RowBuffer
from tadpipe.video.process import DecodeProcess
from tadpipe.video.rate import nearest_frames, pick
from tadpipe.video.reader import SKIPPED, VideoProbe
from tadpipe.video.snippets import SnippetPlan

PREPARE_FRAMES = 16  # frames whose pixels are prepared in one call; the bits do not depend on it
NOT_USED = torch.empty(0)  # stands for a frame that no clip holds
Prepare = Callable[[Tensor], Tensor]  # uint8 [T, H, W, 3 or 2] -> [T, 3 or 2, S, S] on the device
Item = TypeVar("Item")


@dataclass
class VideoRows:
    """One video on its way through the backbone, and at the end its features or its error."""

    file: VideoFile
    content_sha256: str
    probe: VideoProbe | None = None  # after resampling, of the frames that were used
    rows: RowBuffer = field(default_factory=RowBuffer)  # [rows, C] float32
    clips_cut: int = 0
    decoding: bool = True
    frames_decoded: int = 0
    frames_used: int = 0  # after resampling to another rate
    truncated: bool = False
    error: VideoError | None = None
    started: float = field(default_factory=time.monotonic)
    is_wanted: Callable[[], bool] = lambda: True  # asked right before it is decoded

    @property
    def complete(self) -> bool:
        return self.error is not None or (not self.decoding and len(self.rows) == self.clips_cut)

    def features(self) -> np.ndarray:
        """[rows, C] float32."""
        return self.rows.array()


class FrameSource:
    """Prepared frames of one video after another.

    Args:
        fps: resample to this rate by presentation times; None keeps the frames of the file.
        keep_truncated: use what can be decoded of a file that ends early.
        flow: turns the frames into pictures of optical flow; None takes them as they are.
        pinned: hand frames on in page-locked memory, from which a GPU copies on its own.
    """

    def __init__(
        self,
        decoder: DecodeProcess,
        prepare: Prepare,
        *,
        fps: float | None,
        keep_truncated: bool,
        flow: FlowSource | None = None,
        pinned: bool = False,
    ) -> None:
        self.decoder = decoder
        self.prepare = prepare
        self.fps = fps
        self.keep_truncated = keep_truncated
        self.flow = flow
        self.pinned = pinned

    def frames(self, video: VideoRows, plan: SnippetPlan | None = None) -> Iterator[Tensor]:
        """Pictures [3, S, S] in order; `video` learns its probe and its counts on the way.

        Args:
            plan: the clips that are cut of them; frames between clips then come as NOT_USED.
        """
        video.probe = self.decoder.probe(video.file.path)
        by_file = plan if self.fps is None and self.flow is None else None
        frames: Iterable[np.ndarray] = self._counted(video, by_file)
        if self.fps is not None:
            video.probe, indices = resampled(video.probe, self.fps)
            frames = pick(frames, indices)
        if self.flow is not None:
            frames = self.flow.pictures(video.file, frames)
        for group in in_blocks(frames, PREPARE_FRAMES):
            first = video.frames_used
            video.frames_used += len(group)
            wanted = [
                frame is not SKIPPED and (plan is None or plan.uses(first + i))
                for i, frame in enumerate(group)
            ]
            prepared = iter(self._prepared(list(compress(group, wanted))))
            for is_wanted in wanted:
                yield next(prepared) if is_wanted else NOT_USED

    def _prepared(self, frames: list[np.ndarray]) -> Iterable[Tensor]:
        """uint8 [H, W, 3] each -> [3, S, S] each."""
        if not frames:
            return ()
        block = torch.empty(
            (len(frames), *frames[0].shape), dtype=torch.uint8, pin_memory=self.pinned
        )
        np.stack(frames, out=block.numpy())
        return self.prepare(block)

    def settle(self, video: VideoRows, span_frames: int) -> None:
        """Make the probe speak of the frames that were there, once they all came.

        Raises:
            VideoError: no row came of them.
        """
        assert video.probe is not None
        used = video.frames_used
        if video.clips_cut == 0:
            raise VideoError(
                VideoReason.TOO_SHORT,
                "The video is shorter than one snippet.",
                f"{printable(video.file.path)}: {used} frames, a snippet spans {span_frames}",
                "Use a smaller --clip-len, or --anchor centre, which repeats edge frames.",
            )
        delivered = self.decoder.delivered
        if self.fps is None and delivered is not None:
            video.probe = delivered  # not every packet is a picture in some files
        else:
            times = tuple(video.probe.times_sec[:used])
            video.probe = replace(video.probe, frames=used, times_sec=times)

    def _counted(self, video: VideoRows, plan: SnippetPlan | None) -> Iterator[np.ndarray]:
        """The decoder's frames; the end of a truncated file is kept or an error, as asked."""
        try:
            for frame in self.decoder.frames(video.file.path, plan):
                video.frames_decoded += 1
                yield frame
        except VideoError as error:
            if error.reason is not VideoReason.TRUNCATED:
                raise
            video.truncated = True
            if not self.keep_truncated:
                raise


def resampled(probe: VideoProbe, fps: float) -> tuple[VideoProbe, np.ndarray]:
    """A video at another rate: what it then holds, and which of its frames stand for the new ones.

    Returns:
        The probe and int64 [frames], non-decreasing.
    """
    indices = nearest_frames(probe.times_sec, fps)
    ticks = probe.times_sec[0] + np.arange(len(indices)) / fps
    changed = replace(
        probe,
        frames=len(indices),
        times_sec=tuple(ticks.tolist()),
        fps=Fraction(fps).limit_denominator(100_000),
    )
    return changed, indices


def in_blocks(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """The items in lists of `most`, the last one shorter."""
    block: list[Item] = []
    for item in items:
        block.append(item)
        if len(block) == most:
            yield block
            block = []
    if block:
        yield block
