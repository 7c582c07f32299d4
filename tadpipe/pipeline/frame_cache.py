"""Decoded frames of training videos, at the size that training needs, within a limit of memory.

A video that fits into what is left of the limit is decoded once, as a whole, in the decoder's own
process, and stays; of the others the frames asked for are decoded each time. Nothing is thrown
out: training goes over its videos again and again, where the least recently used one is the next.
Shapes: N frames of a video, U frames asked for, H x W decoded pixels, h x w kept ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tadpipe.backbones.augment import AugmentConfig, stored_shape
from tadpipe.backbones.pixels import prepare, resize_float
from tadpipe.config import PixelRecipe
from tadpipe.errors import VideoError, VideoReason
from tadpipe.pipeline.frame_source import FrameSource, VideoRows, in_blocks, resampled
from tadpipe.pipeline.video_files import VideoFile, printable
from tadpipe.video.packets import VideoProbe, scan_packets
from tadpipe.video.process import DecodeProcess
from tadpipe.video.reader import frames_at

logger = logging.getLogger(__name__)

BLOCK_FRAMES = 64  # frames at native size at once
Keep = Callable[[Tensor], Tensor]  # uint8 [T, H, W, 3] -> [T, 3, h, w]


def keep_for(recipe: PixelRecipe, augment: AugmentConfig) -> Keep:
    """How a decoded frame is kept: uint8 before augmentation, else as the backbone takes it."""

    def resized(frames: Tensor) -> Tensor:
        size = stored_shape(frames.shape[1], frames.shape[2], augment, recipe)
        planes = frames.permute(0, 3, 1, 2).contiguous().float()
        pixels = resize_float(planes, size, antialias=False)
        return (pixels + 0.5).clamp(0, 255).to(torch.uint8)

    def prepared(frames: Tensor) -> Tensor:
        return prepare(frames, recipe, "cpu")

    return resized if augment.enabled else prepared


class FrameCache:
    """Frames by file and index; for one thread.

    Args:
        fps: resample to this rate by presentation times; None keeps the frames of the file.
    """

    def __init__(
        self, decoder: DecodeProcess, keep: Keep, *, limit_bytes: int, fps: float | None
    ) -> None:
        self.decoder = decoder
        self.keep = keep
        self.fps = fps
        self.left_bytes = limit_bytes
        self._source = FrameSource(decoder, keep, fps=fps, keep_truncated=False)
        self._probes: dict[Path, tuple[VideoProbe, np.ndarray | None]] = {}
        self._counts: dict[Path, int] = {}  # frames in the file
        self._whole: dict[Path, Tensor] = {}  # [N, 3, h, w]

    def probe(self, file: VideoFile) -> VideoProbe:
        """What a video holds, after resampling; what can be kept of it is decoded now.

        Raises:
            VideoError: the video cannot be read, or its end is missing.
        """
        if file.path not in self._probes:
            probe, indices = self.decoder.probe(file.path), None
            if probe.truncated:
                raise _cut_off(file, probe.frames)
            self._counts[file.path] = probe.frames
            if self.fps is not None:
                probe, indices = resampled(probe, self.fps)
            self._probes[file.path] = probe, indices
            if self._bytes(probe) <= self.left_bytes:
                self._decode_whole(file)
        return self._probes[file.path][0]

    def frames(self, file: VideoFile, indices: np.ndarray) -> Tensor:
        """Frames with sorted, different indices, [U, 3, h, w].

        Raises:
            VideoError: they cannot be decoded.
        """
        self.probe(file)
        if file.path in self._whole:
            return self._whole[file.path][torch.from_numpy(indices)]
        original = self._probes[file.path][1]
        wanted = indices if original is None else original[indices]
        scan = scan_packets(file.path)
        if scan.truncated or len(scan.ticks) != self._counts[file.path]:
            raise _cut_off(file, len(scan.ticks))  # since the first look at it
        blocks = in_blocks(wanted.tolist(), BLOCK_FRAMES)
        parts = (frames_at(file.path, block, scan=scan) for block in blocks)
        return torch.cat([self.keep(torch.from_numpy(part)) for part in parts])

    def _bytes(self, probe: VideoProbe) -> int:
        blank = torch.zeros(1, probe.height, probe.width, 3, dtype=torch.uint8)
        return probe.frames * self.keep(blank).nbytes

    def _decode_whole(self, file: VideoFile) -> None:
        video = VideoRows(file, "")
        try:
            frames = torch.stack(list(self._source.frames(video)))
            video.clips_cut = len(frames)
            self._source.settle(video, 1)
        except BaseException:
            del self._probes[file.path]
            raise
        assert video.probe is not None
        self._probes[file.path] = video.probe, None
        self._whole[file.path] = frames
        self.left_bytes -= frames.nbytes


def _cut_off(file: VideoFile, frames: int) -> VideoError:
    return VideoError(
        VideoReason.TRUNCATED,
        "The file ends before its content does.",
        f"{printable(file.path)}: {frames} frames are left",
        "Copy or download it again.",
    )
