"""Features of whole videos in frame representation: long windows, averaged where they overlap.

A window is as long as in training. Rows near its ends see zeros beyond them (the adapters'
convolutions), hence the overlap. Frames are decoded once, in order; a window's worth is held.
Shapes: T rows of a window, k frames per row, W = T * k frames, S side of a picture, C channels.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from tadpipe.backbones.pixels import prepare
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.representation import frame_features
from tadpipe.errors import VideoError
from tadpipe.pipeline.clip_batches import take_complete
from tadpipe.pipeline.frame_source import FrameSource, VideoRows
from tadpipe.pipeline.pixel_grid import PixelGrid
from tadpipe.video.process import DecodeProcess


class FrameWindows:
    """Runs videos through a backbone window by window; as `ClipBatches`, for frames.

    Args:
        overlap_frames: frames that neighbouring windows share, a multiple of those of a row.
        fps: resample to this rate by presentation times; None keeps the frames of the file.
        keep_truncated: use what can be decoded of a file that ends early.
    """

    def __init__(
        self,
        backbone: Backbone,
        grid: PixelGrid,
        decoder: DecodeProcess,
        *,
        device: str,
        overlap_frames: int,
        fps: float | None,
        keep_truncated: bool,
    ) -> None:
        self.backbone = backbone
        self.grid = grid
        self.plan = grid.plan
        self.decoders = [decoder]
        self.under_way: list[VideoRows] = []
        self.clips_done = 0  # rows, of overlapping windows too
        self.device_busy_sec = 0.0
        self.hop = grid.window_len - overlap_frames // grid.frames_per_step  # rows
        self.source = FrameSource(
            decoder,
            lambda frames: prepare(frames, backbone.pixels, device),
            fps=fps,
            keep_truncated=keep_truncated,
        )

    def run(self, videos: Iterable[VideoRows]) -> Generator[VideoRows]:
        """Each video once, with its rows or its error."""
        for video in videos:
            self.under_way = [video]
            try:
                if video.is_wanted():
                    rows = self._features(video)
                    video.rows.append(rows)
                    video.clips_cut = len(rows)
                    self.source.settle(video, self.plan.span_frames)
            except VideoError as error:
                video.error = error
            video.decoding = False
            yield from take_complete(self.under_way)

    def _features(self, video: VideoRows) -> np.ndarray:
        """[rows, C] of a video: sums over its windows, divided by how many saw a row."""
        parts = dict(self._windows(video))  # start row -> [T, C]
        total = self.plan.rows(video.frames_used)
        if not total:
            return np.empty((0, self.backbone.out_channels), np.float32)
        length = self.grid.window_len
        sums = np.zeros((max(total, length), self.backbone.out_channels), np.float32)
        seen = np.zeros((len(sums), 1), np.float32)
        for start, part in parts.items():
            sums[start : start + length] += part
            seen[start : start + length] += 1
        features: np.ndarray = (sums / seen)[:total]
        return features

    def _windows(self, video: VideoRows) -> Iterator[tuple[int, np.ndarray]]:
        """(start row, features [T, C]) of windows that cover the video, as frames come in.

        They start where `covering_windows` has them; the last one ends with the video, so that
        all but that one are known to be due as soon as a frame behind them arrives.
        """
        held: list[Tensor] = []  # every `frame_interval`-th frame, from `first` on
        first, due = 0, 0  # in such frames; the row at which the next window starts
        k, size = self.grid.frames_per_step, self.grid.window_frames
        for number, frame in enumerate(self.source.frames(video)):
            if number % self.plan.frame_interval:
                continue
            held.append(frame)
            if first + len(held) > due * k + size:
                yield due, self._encode(held, due * k - first)
                behind = (due + 1) * k  # no later window begins before
                del held[: behind - first]
                first, due = behind, due + self.hop
        if held:
            last = max(self.plan.rows(video.frames_used) - self.grid.window_len, 0)
            yield last, self._encode(held, last * k - first)

    def _encode(self, held: list[Tensor], start: int) -> np.ndarray:
        """[T, C] of the window that begins at held frame `start`; the last one is repeated."""
        size = self.grid.window_frames
        frames = held[start : start + size]
        frames = frames + [frames[-1]] * (size - len(frames))
        window = torch.stack(frames, dim=1)[None]  # [1, 3, W, S, S]
        began_sec = time.perf_counter()
        with torch.inference_mode():
            line = frame_features(self.backbone, window, self.grid.window_len)[0]  # [C, T]
        rows: np.ndarray = line.T.float().cpu().numpy()
        self.device_busy_sec += time.perf_counter() - began_sec
        self.clips_done += len(rows)
        return rows
