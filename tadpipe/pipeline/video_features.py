"""Features of videos, computed when they are asked for: what a detector is tested on end to end.

The same interface as features of a store, so that detection and scoring need not know.
Shapes: T rows of a video, C channels, M clips, F frames per clip, S side of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tadpipe.annotations import Annotations
from tadpipe.backbones.pixels import prepare
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.representation import frame_features
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.pipeline.clip_batches import ClipBatches
from tadpipe.pipeline.frame_rows import FrameWindows
from tadpipe.pipeline.frame_source import FrameSource, VideoRows, resampled
from tadpipe.pipeline.optical_flow import FlowSource
from tadpipe.pipeline.pixel_grid import PixelGrid, grid_of
from tadpipe.pipeline.video_files import VideoFile
from tadpipe.store.metadata import FeatureSpec
from tadpipe.timeline import SnippetGrid
from tadpipe.video.process import DecodeProcess
from tadpipe.video.rate import pick
from tadpipe.video.snippets import SnippetPlan


class ComputedRows:
    """One video's features [T, C] float32 with their time axis."""

    def __init__(self, features: np.ndarray, grid: SnippetGrid) -> None:
        self.features = features
        self.grid = grid

    def __getitem__(self, rows: slice) -> np.ndarray:
        part: np.ndarray = self.features[rows]
        return part


class ComputedTable:
    """Features of some videos in memory."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.durations_sec: dict[str, float] = {}
        self._rows: dict[str, ComputedRows] = {}

    def add(self, name: str, rows: ComputedRows, duration_sec: float) -> None:
        self._rows[name] = rows
        self.durations_sec[name] = duration_sec

    def names(self) -> Sequence[str]:
        return list(self._rows)

    def open(self, name: str) -> ComputedRows:
        return self._rows[name]


class VideoTable:
    """Videos as a table of features; nothing is computed before a video is opened.

    Args:
        files: by name.
        backbone: in evaluation mode on `device` when a video is opened.
        grid: how pixels become rows.
        batch: clips per forward pass.
    """

    store = "the videos"

    def __init__(
        self,
        files: Mapping[str, VideoFile],
        backbone: Backbone,
        spec: FeatureSpec,
        grid: PixelGrid,
        decoder: DecodeProcess,
        *,
        device: str,
        batch: int,
    ) -> None:
        self.files = files
        self.backbone = backbone
        self.spec = spec
        self.grid = grid
        self.decoder = decoder
        self.device = device
        self.batch = batch
        self._source = FrameSource(
            decoder,
            lambda frames: prepare(frames, backbone.pixels, device),
            fps=spec.fps,
            keep_truncated=False,
        )

    @property
    def channels(self) -> int:
        return self.spec.channels

    def names(self) -> Sequence[str]:
        return sorted(self.files)

    def duration_sec(self, name: str) -> float:
        """Length of a video.

        Raises:
            VideoError: it cannot be read.
        """
        return self.decoder.probe(self.files[name].path).duration_sec

    def remembered_annotations(
        self, spec: DatasetSpec | None, *, for_evaluation: bool = False
    ) -> Annotations | None:
        """Videos remember none."""
        del spec, for_evaluation
        return None

    def open(self, name: str) -> ComputedRows:
        """The features of a video.

        Raises:
            VideoError: it cannot be decoded.
        """
        video = VideoRows(self.files[name], "")
        if self.grid.resize:
            return self._resized(video)
        windows = clip_runner(
            self.backbone,
            self.spec,
            [self.decoder],
            device=self.device,
            batch=self.batch,
            pad=False,
        )
        (done,) = windows.run([video])
        if done.error is not None:
            raise done.error
        assert done.probe is not None
        return ComputedRows(done.features(), self.grid.grid(done.probe))

    def _resized(self, video: VideoRows) -> ComputedRows:
        """A video as `window_len` rows, from frames spread over it."""
        probe = self.decoder.probe(video.file.path)
        if self.spec.fps is not None:
            probe, _ = resampled(probe, self.spec.fps)
        clips = self.grid.clips(probe.frames, 0, self.grid.window_len)  # [M, F]
        wanted, places = np.unique(clips, return_inverse=True)
        frames = torch.stack(list(pick(self._source.frames(video), wanted)))  # [U, 3, S, S]
        index = torch.from_numpy(places.reshape(clips.shape))
        with torch.inference_mode():
            if self.spec.representation == "frame":
                window = frames[index.flatten()].transpose(0, 1)[None]  # [1, 3, W, S, S]
                rows = frame_features(self.backbone, window, self.grid.window_len)[0].T
            else:
                parts = index.split(self.batch)
                rows = torch.cat([self.backbone(frames[p].transpose(1, 2)) for p in parts])
        return ComputedRows(rows.float().cpu().numpy(), self.grid.grid(probe))


def clip_runner(
    backbone: Backbone,
    spec: FeatureSpec,
    decoders: Sequence[DecodeProcess],
    *,
    device: str,
    batch: int,
    pad: bool,
    flow: FlowSource | None = None,
) -> ClipBatches | FrameWindows:
    """What runs videos through a backbone as a spec says.

    Args:
        decoders: each works on a video of its own; windows of frames use the first one only.
        batch: clips per forward pass, where the spec leaves it open; windows of frames pass one
            by one.
        pad: fill the last batch of clips; always done where the spec states the batch.
        flow: makes the pictures of clips for a backbone on optical flow.
    """
    keep_truncated = spec.truncated == "keep"
    if spec.representation == "frame":
        return FrameWindows(
            backbone,
            grid_of(spec),
            decoders[0],
            device=device,
            overlap_frames=spec.overlap,
            fps=spec.fps,
            keep_truncated=keep_truncated,
        )
    return ClipBatches(
        backbone,
        SnippetPlan(spec.anchor, spec.clip_len, spec.frame_interval, spec.stride),
        decoders,
        device=device,
        batch=spec.batch or batch,
        pad=pad or spec.batch is not None,
        fps=spec.fps,
        keep_truncated=keep_truncated,
        flow=flow,
    )
