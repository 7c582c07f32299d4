"""Training windows of pixels: chosen as those of stored features are, cut from video files.

Every random choice is a function of (seed, pass, video), as in `datasets/loader.py`; a thread
decodes ahead. A video that turns out unusable is recorded, and the next one in the pass's order
takes its place; more than a stated share of them is an error.
Shapes: M clips, F frames per clip, U different frames of a window, G actions.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from tadpipe.annotations import Video
from tadpipe.backbones.augment import Augmentation, AugmentConfig, draw_augmentation
from tadpipe.datasets.loader import WHOLE, UniformDraw, generator_of, read_ahead, shuffled
from tadpipe.datasets.windows import WindowConfig, choose_window, on_grid
from tadpipe.errors import ConfigError, TadpipeError, VideoError, VideoReason
from tadpipe.pipeline.frame_cache import FrameCache
from tadpipe.pipeline.pixel_grid import PixelGrid
from tadpipe.pipeline.video_files import VideoFile, printable
from tadpipe.store.durable import append_line
from tadpipe.training.e2e import PixelBatch, PixelWindow

logger = logging.getLogger(__name__)

FAILED_FILE = "failed_videos.jsonl"


class PixelWindows:
    """The training videos; item i is a random window of video i.

    Args:
        videos: name -> its annotations; files: name -> its file, for every one of them.
        size: S, side of the backbone's picture.
    """

    def __init__(
        self,
        files: Mapping[str, VideoFile],
        videos: Mapping[str, Video],
        label_ids: Mapping[str, int],
        config: WindowConfig,
        grid: PixelGrid,
        cache: FrameCache,
        augment: AugmentConfig,
        size: int,
    ) -> None:
        self.names = sorted(videos)
        self.files = files
        self.config = config
        self.grid = grid
        self.cache = cache
        self.augment = augment
        self.size = size
        self._videos = videos
        self._label_ids = label_ids

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int, generator: Generator) -> PixelWindow:
        """A window of video `index`, with the random choices drawn from `generator`.

        Raises:
            VideoError: the video cannot be used.
        """
        name = self.names[index]
        file = self.files[name]
        probe = self.cache.probe(file)
        grid = self.grid.grid(probe)
        if not grid.rows:
            raise _too_short(file, probe.frames, self.grid.plan.span_frames)
        segments, labels = on_grid(self._videos[name].actions, self._label_ids, grid, self.config)
        crop = self.config.crop_ratio
        window = choose_window(
            grid.rows,
            segments,
            labels,
            max_len=self.grid.window_len,
            keep_ratio=self.config.keep_ratio,
            crop_ratio=(crop[0], crop[1]) if crop else None,
            offset_grid=grid.offset_grid if self.config.margin == "half-clip" else 0.0,
            draw=UniformDraw(generator),
        )
        clips = self.grid.clips(probe.frames, window.start, window.length)  # [M, F]
        indices, places = np.unique(clips, return_inverse=True)
        frames = self.cache.frames(file, indices)  # [U, 3, h, w]
        pixel_window = PixelWindow(
            name,
            window.start,
            window.length,
            frames,
            torch.from_numpy(places.reshape(clips.shape)),
            self._augmentation(frames, generator),
            window.segments,
            window.labels,
        )
        change = pixel_window.augmentation
        if change is None or not change.reverse:
            return pixel_window
        return reversed_in_time(pixel_window, self.grid.representation)

    def _augmentation(self, frames: Tensor, generator: Generator) -> Augmentation | None:
        if not self.augment.enabled:
            return None
        height, width = frames.shape[2:]
        return draw_augmentation(self.augment, height, width, self.size, generator)


def reversed_in_time(window: PixelWindow, representation: str) -> PixelWindow:
    """The window played backwards; what fills it up stays at its end.

    A position p on the grid becomes valid - 1 - p, since rows stand for their centres.
    """
    clips, last = window.clips, window.valid - 1
    if representation == "snippet":  # a clip per row
        clips = clips.flip((0, 1))
    else:  # one line of frames, which repeats its last frame where the video has ended
        line = clips.flatten()
        used = int((line != line[-1]).sum()) + 1
        line = torch.cat((line[:used].flip(0), line[:1].expand(len(line) - used)))
        clips = line.view_as(clips)
    segments = (last - window.segments).flip(1)
    return window._replace(clips=clips, segments=segments)


class FailedVideos:
    """Videos that turned out unusable, from which step on; kept in the run folder.

    Args:
        most: share of `total` videos from which on it is an error.
    """

    def __init__(self, folder: Path, total: int, most: float) -> None:
        self.path = folder / FAILED_FILE
        self.total = total
        self.most = most
        self.since: dict[str, int] = {}  # name -> first step without it
        self.tested: list[str] = []  # names of videos that nothing could be detected on
        for line in _lines(self.path):
            if line["step"] is not None:
                self.since.setdefault(line["name"], line["step"])

    def at(self, name: str, step: int) -> bool:
        """Whether a video counts as unusable in a step."""
        return self.since.get(name, step + 1) <= step

    def add(self, file: VideoFile, name: str, step: int, error: VideoError) -> None:
        """Record a video.

        Raises:
            TadpipeError: these are too many.
        """
        if name in self.since:
            return
        self.since[name] = step
        message = self._record(file, name, step, error)
        count = len(self.since)
        logger.warning(
            "%s is left out from step %d on (%d of %d videos so far): %s",
            printable(name),
            step,
            count,
            self.total,
            message,
        )
        if count > self.most * self.total:
            raise TadpipeError(
                "Too many training videos cannot be used.",
                f"{count} of {self.total}, at most {self.most:.0%}; listed in {self.path}",
                "Mend or replace them, or allow more with --set e2e.most_failed=0.2.",
            )

    def note(self, file: VideoFile, name: str, error: VideoError) -> None:
        """Record a video that nothing was detected on; those are not counted against `most`."""
        if name not in self.tested:
            self.tested.append(name)
            message = self._record(file, name, None, error)
            logger.warning("no detections of %s: %s", printable(name), message)

    def _record(self, file: VideoFile, name: str, step: int | None, error: VideoError) -> str:
        message = f"{error.reason.value}: {error.what} {error.where}".strip()
        line = {"name": name, "path": printable(file.path), "step": step, "message": message}
        append_line(self.path, json.dumps(line))
        return message


class PixelLoader:
    """Shuffled batches of windows without end; the last incomplete batch of a pass is dropped.

    Args:
        part: which windows of each batch are made, where several processes share it.
    """

    def __init__(
        self,
        windows: PixelWindows,
        batch_size: int,
        *,
        seed: int,
        failed: FailedVideos,
        ahead: int = 2,
        part: slice = WHOLE,
    ) -> None:
        if len(windows) < batch_size:
            raise ConfigError(
                "Fewer training videos than a batch holds.",
                f"{len(windows)} videos, training.batch_size = {batch_size}",
                f"Use --set training.batch_size={max(len(windows), 1)}.",
            )
        self.windows = windows
        self.batch_size = batch_size
        self.seed = seed
        self.failed = failed
        self.ahead = ahead
        self.part = part
        self._one_at_a_time = threading.Lock()  # the decoder serves one thread

    @property
    def steps_per_pass(self) -> int:
        """Batches in one pass over the videos."""
        return len(self.windows) // self.batch_size

    def batch(self, step: int) -> PixelBatch:
        """The batch of optimiser step `step`, counted from 0 over all passes.

        Raises:
            TadpipeError: too many videos cannot be used.
        """
        turn, position = divmod(step, self.steps_per_pass)
        order = shuffled(self.seed, turn, len(self.windows))
        first, last = position * self.batch_size, (position + 1) * self.batch_size
        own = order[first:last][self.part]
        # Behind the batch's own videos come those that stand in for unusable ones.
        line = iter([*own, *[*order[last:], *order[:first]][self.part]])
        with self._one_at_a_time:
            windows = [self._next_usable(line, turn, step) for _ in own]
        return PixelBatch(windows)

    def batches(self, first: int, last: int) -> Iterator[PixelBatch]:
        """The batches of steps `first` to `last - 1`."""
        return read_ahead(self.batch, first, last, self.ahead)

    def _next_usable(self, line: Iterator[int], turn: int, step: int) -> PixelWindow:
        for index in line:
            name = self.windows.names[index]
            if self.failed.at(name, step):
                continue
            try:
                return self.windows.item(index, generator_of(self.seed, turn, index))
            except VideoError as error:
                self.failed.add(self.windows.files[name], name, step, error)
        raise TadpipeError(
            "No training video is left that can be used.",
            f"{len(self.failed.since)} of {self.failed.total}; listed in {self.failed.path}",
            "Mend or replace them.",
        )


def _lines(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            logger.warning("%s: a line cut off by a kill is left out", path)
    return found


def _too_short(file: VideoFile, frames: int, span_frames: int) -> VideoError:
    return VideoError(
        VideoReason.TOO_SHORT,
        "The video is shorter than one snippet.",
        f"{printable(file.path)}: {frames} frames, a snippet spans {span_frames}",
    )
