"""Optical flow for the backbones that take it: computed from the frames, or read from files.

A flow picture holds the movement from its frame to the next in two channels, right and down; the
last frame has none and repeats the one before, so that there are as many pictures as frames and
rows of both streams share one time axis. Movements of -20..20 pixels are kept as bytes 0..255.
Shapes: T pictures, H x W pixels of a frame, h x w pixels of a flow picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

import av
import numpy as np

from tadpipe.backbones.pixels import resized_shape
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError, VideoError, VideoReason
from tadpipe.pipeline.video_files import VideoFile, printable

LARGEST_PIXELS = 20.0  # movement that is told apart, in pixels; more counts as this much
PICTURES = frozenset({".jpg", ".jpeg", ".png"})
AXIS = re.compile(r"(?:^|[/_\-\d])([xyuv])(?=[/_\-\d.])")  # flow_x_00001.jpg, x/1.png, 000001x.jpg
AXES = {"x": 0, "u": 0, "y": 1, "v": 1}


class FlowSource(Protocol):
    """Where the flow pictures of a video come from."""

    def check(self) -> None:
        """Raise a ConfigError if there is no way to any flow."""

    def pictures(self, file: VideoFile, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """frames [H, W, 3] uint8 -> as many flow pictures [h, w, 2] uint8."""


def flow_source(pixels: PixelRecipe, folder: Path | None) -> FlowSource | None:
    """What the recipe says flow comes from; None for a recipe of colours.

    Raises:
        ConfigError: a folder of flow for a recipe that reads none.
    """
    if pixels.colour == "flow-files":
        return FlowFiles(folder)
    if folder is not None:
        raise ConfigError(
            "Flow files are given, and nothing reads them.",
            f"--flow {printable(folder)}, pixels of kind {pixels.colour}",
            "Leave --flow out, or use --backbone i3d-flow.",
        )
    return ComputedFlow(pixels) if pixels.colour == "flow-tvl1" else None


def to_bytes(movement: np.ndarray) -> np.ndarray:
    """Pixels per frame [..., 2], float -> uint8: -20..20 becomes 0..255, 0 becomes 128."""
    clipped = np.clip(movement, -LARGEST_PIXELS, LARGEST_PIXELS)
    scaled = (clipped + LARGEST_PIXELS) * (255.0 / (2 * LARGEST_PIXELS))
    return np.rint(scaled).astype(np.uint8)


class ComputedFlow:
    """TV-L1 (Zach, Pock, Bischof, DAGM 2007) by OpenCV with its default parameters.

    It runs on grey pictures of the size the recipe resizes to, as in the published features.
    """

    def __init__(self, pixels: PixelRecipe) -> None:
        self.pixels = pixels

    def check(self) -> None:
        _opencv()

    def pictures(self, file: VideoFile, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        cv2 = _opencv()
        method = cv2.optflow.DualTVL1OpticalFlow_create()
        before: np.ndarray | None = None
        flow: np.ndarray | None = None
        for frame in frames:
            height, width = resized_shape(frame.shape[0], frame.shape[1], self.pixels)
            grey = cv2.cvtColor(cv2.resize(frame, (width, height)), cv2.COLOR_RGB2GRAY)
            if before is not None:
                flow = to_bytes(method.calc(before, grey, None))
                yield flow
            before = grey
        if flow is not None:
            yield flow


class FlowFiles:
    """Flow that was computed elsewhere: one .npy or one folder of pictures per video.

    `NAME.npy` holds [T, h, w, 2], uint8 as kept here or floating point in pixels per frame.
    `NAME/` holds a picture per frame and axis, numbered, with x (or u) and y (or v) in the name:
    `flow_x_00001.jpg`, `x/00001.png`, `NAME-000001x.jpg`.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def check(self) -> None:
        if self.folder is None or not self.folder.is_dir():
            raise ConfigError(
                "These features are made of optical flow that was computed elsewhere.",
                "no folder of it" if self.folder is None else f"no folder {printable(self.folder)}",
                "Name the folder with --flow DIR: NAME.npy or NAME/flow_x_00001.jpg, ... in it.",
            )

    def pictures(self, file: VideoFile, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        self.check()
        assert self.folder is not None
        flows: Iterator[np.ndarray]
        array = self.folder / f"{file.name}.npy"
        if array.is_file():
            count, flows = _from_array(array)
        else:
            count, flows = _from_pictures(self.folder / file.name, file)
        used = 0
        flow: np.ndarray | None = None
        for _ in frames:
            following = next(flows, None)
            if following is None and (flow is None or used > count):
                raise _other_length(file, count, f"more than {used}")
            flow = flow if following is None else following
            used += 1
            assert flow is not None
            yield flow
        if count > used:
            raise _other_length(file, count, str(used))


def _other_length(file: VideoFile, count: int, frames: str) -> VideoError:
    return VideoError(
        VideoReason.DECODE_ERROR,
        "The flow does not belong to this video: it has another length.",
        f"{printable(file.path)}: {count} flow pictures, {frames} frames",
        "There must be one per frame, or one fewer.",
    )


def _opencv() -> ModuleType:
    """cv2 with its contributed modules.

    Raises:
        ConfigError: not installed, or without TV-L1.
    """
    try:
        module = import_module("cv2")
        module.optflow.DualTVL1OpticalFlow_create  # noqa: B018 (is it there?)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "Optical flow is neither here nor can it be computed.",
            f"TV-L1 of OpenCV is missing: {error}",
            "Install it (pip install opencv-contrib-python-headless), or give flow computed "
            "elsewhere with --flow DIR.",
        ) from None
    return module


def _from_array(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """Length and pictures of an array file, read piece by piece."""
    try:
        flows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise VideoError(
            VideoReason.DECODE_ERROR, "The flow cannot be read.", f"{printable(path)}: {error}"
        ) from None
    is_movement = flows.dtype.kind == "f"
    if flows.ndim != 4 or flows.shape[3] != 2 or not (is_movement or flows.dtype == np.uint8):
        raise VideoError(
            VideoReason.DECODE_ERROR,
            "The flow must be [T, h, w, 2], uint8 or floating point.",
            f"{printable(path)}: {flows.dtype} {list(flows.shape)}",
        )
    return len(flows), (to_bytes(each) if is_movement else np.array(each) for each in flows)


def _from_pictures(folder: Path, file: VideoFile) -> tuple[int, Iterator[np.ndarray]]:
    """Length and pictures of a folder; both axes must have the same numbers."""
    found: tuple[dict[int, Path], dict[int, Path]] = ({}, {})
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        below = path.relative_to(folder)
        # the video's own name may hold an x or y
        name = below.with_name(below.name.removeprefix(Path(file.name).name)).as_posix().lower()
        axis, numbers = AXIS.findall(name), re.findall(r"\d+", path.stem)
        if path.suffix.lower() in PICTURES and axis and numbers:
            found[AXES[axis[-1]]][int(numbers[-1])] = path
    right, down = found
    if not right or right.keys() != down.keys():
        reason = VideoReason.NOT_FOUND if not (right or down) else VideoReason.DECODE_ERROR
        raise VideoError(
            reason,
            "There is no flow of this video, or not of both axes.",
            f"{printable(folder)}: {len(right)} pictures of x, {len(down)} of y; "
            f"no {printable(folder)}.npy",
            "Compute its flow first, or leave --flow out to have it computed.",
        )
    pairs = ((right[number], down[number]) for number in sorted(right))
    return len(right), (np.stack([_grey(x), _grey(y)], axis=2) for x, y in pairs)


def _grey(path: Path) -> np.ndarray:
    """One picture file as uint8 [h, w]."""
    try:
        with av.open(str(path)) as container:
            return next(container.decode(video=0)).to_ndarray(format="gray")
    except (OSError, ValueError, StopIteration) as error:
        raise VideoError(
            VideoReason.DECODE_ERROR,
            "A flow picture cannot be read.",
            f"{printable(path)}: {error}",
        ) from None
