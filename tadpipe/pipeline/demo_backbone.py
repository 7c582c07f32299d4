"""A small backbone that knows the demo's classes, pretrained on its training videos alone.

Shapes: T frames, S side of the picture at the backbone's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tadpipe.annotations import Annotations, Video
from tadpipe.backbones import BACKBONES
from tadpipe.backbones.loading import save_backbone
from tadpipe.backbones.pixels import prepare
from tadpipe.backbones.protocol import Backbone
from tadpipe.config import PixelRecipe
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.registry import resolve
from tadpipe.training.pretrain import (
    IDLE,
    LabelledFrames,
    PretrainConfig,
    pretrain_backbone,
)
from tadpipe.video.reader import open_frames

PREPARE_FRAMES = 64  # frames resized in one call


def make_demo_backbone(
    weights: Path,
    name: str,
    videos_folder: Path,
    annotations: Annotations,
    config: PretrainConfig,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> None:
    """Pretrain backbone `name` on the subset `training` and write it to `weights`.

    Args:
        videos_folder: holds `<video>.mp4` of every training video; no other one is opened.
        seed: of the first weights, the clips and their augmentation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: Backbone = resolve("backbone", BACKBONES, name)()
    training = annotations.subset("training")
    progress.begin("decode training videos", len(training), "video")
    videos = []
    for video in training.values():
        path = videos_folder / f"{video.name}.mp4"
        videos.append(labelled_frames(path, video, annotations.labels, backbone.pixels))
        progress.advance()
    progress.end()
    progress.begin("pretrain backbone", config.steps, "step")
    recent: list[float] = []

    def on_step(_step: int, loss: float, accuracy: float) -> None:
        recent.append(accuracy)
        mean = sum(recent[-50:]) / len(recent[-50:])
        progress.advance(note=f"loss {loss:.2f}, accuracy {100 * mean:.0f} %")

    outcome = pretrain_backbone(
        backbone,
        videos,
        config,
        num_classes=len(annotations.labels),
        seed=seed,
        device=device,
        on_step=on_step,
    )
    progress.end(
        f"{name}: {outcome.steps} steps, last loss {outcome.loss:.2f}, "
        f"accuracy {100 * outcome.accuracy:.0f} % on augmented training clips"
    )
    save_backbone(weights, backbone)


def labelled_frames(
    path: Path, video: Video, labels: Sequence[str], recipe: PixelRecipe
) -> LabelledFrames:
    """All frames of a video at the backbone's size, as uint8, and the class in each."""
    plain = replace(recipe, mean=(), std=())  # values 0..1
    pictures: list[torch.Tensor] = []
    group: list[np.ndarray] = []

    def resize() -> None:
        small = prepare(torch.from_numpy(np.stack(group)), plain, "cpu")  # [T, 3, S, S]
        pictures.append((small * 255 + 0.5).to(torch.uint8))
        group.clear()

    for frame in open_frames(path):
        group.append(frame)
        if len(group) == PREPARE_FRAMES:
            resize()
    if group:
        resize()
    frames = torch.cat(pictures)
    assert video.fps is not None, "the demo's annotations state the frame rate"
    of_frame = torch.full((len(frames),), IDLE)
    for start_sec, end_sec, label in video.actions:
        of_frame[round(start_sec * video.fps) : round(end_sec * video.fps)] = labels.index(label)
    return LabelledFrames(frames, of_frame)
