"""Supervised pretraining of a backbone on labelled frames: which class is at a clip's centre?

For small backbones without published weights. Clips are cut from decoded frames that are kept as
uint8 at the backbone's picture size; the class of the middle frame, or none, is the target.
Shapes: T frames of a video, B clips, F frames per clip, S side of the picture, K classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.backbones.augment import below, draw_axes, draw_light, uniform
from tadpipe.backbones.protocol import Backbone
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError, TadpipeError

logger = logging.getLogger(__name__)

IDLE = -1  # label of a frame in which no class happens
LOG_EVERY = 50  # steps
BETAS = (0.9, 0.98)  # a second moment short enough for a run of a thousand steps


@dataclass(frozen=True)
class PretrainConfig:
    """Optimiser, schedule and augmentation of `pretrain_backbone`."""

    steps: int = 800
    batch_size: int = 32  # clips per step
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    idle_share: float = 0.25  # of the clips whose middle frame shows no class
    label_smoothing: float = 0.1
    clip_grad_norm: float = 1.0  # L2 norm over all parameters
    flip: bool = True  # mirror left and right; only where no class mirrors into another
    flip_vertical: bool = True  # likewise top and bottom
    reverse: bool = True  # play backwards; only where no class turns into another
    shift_pixels: int = 3  # crops move by up to this many pixels
    brightness: float = 0.15  # factor and offset vary by up to this share

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or self.warmup_steps < 0:
            raise ConfigError(
                "At least one step with one clip is needed.",
                f"steps = {self.steps}, batch_size = {self.batch_size}, "
                f"warmup_steps = {self.warmup_steps}",
            )
        if not 0 <= self.idle_share < 1 or self.shift_pixels < 0:
            raise ConfigError(
                "idle_share lies in [0, 1) and shift_pixels is not negative.",
                f"idle_share = {self.idle_share}, shift_pixels = {self.shift_pixels}",
            )


class LabelledFrames(NamedTuple):
    """One video in memory."""

    frames: Tensor  # uint8 [T, 3, S, S]
    labels: Tensor  # int64 [T], class of each frame or IDLE


class PretrainReport(NamedTuple):
    """How pretraining went."""

    steps: int
    loss: float  # mean over the last LOG_EVERY steps
    accuracy: float  # likewise, on augmented training clips


OnStep = Callable[[int, float, float], None]  # step, loss, accuracy of the batch


def pretrain_backbone(
    backbone: Backbone,
    videos: Sequence[LabelledFrames],
    config: PretrainConfig,
    *,
    num_classes: int,
    seed: int,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> PretrainReport:
    """Train `backbone` in place to tell the class at the centre of a clip; its head is not kept.

    Args:
        backbone: without a classification head; its own weights are the start.
        videos: each at least `backbone.clip_len` frames long.
        seed: decides every clip and augmentation; equal seeds give equal weights on one machine.
        on_step: called after every step.
    Raises:
        ConfigError: frames of another size, or no video is long enough.
        TadpipeError: the loss is not finite any more.
    """
    assert isinstance(backbone, nn.Module)
    sampler = ClipSampler(videos, backbone.clip_len, backbone.pixels, config, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(backbone.out_channels, num_classes + 1)  # the last class is IDLE
    model = nn.ModuleList([backbone, head]).to(device).train()
    optimizer = torch.optim.AdamW(
        _groups(model, config.weight_decay), lr=config.learning_rate, betas=BETAS
    )
    recent: list[tuple[float, float]] = []
    for step in range(config.steps):
        rate = config.learning_rate * _schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        clips, labels = sampler.batch()
        targets = torch.where(labels == IDLE, num_classes, labels).to(device)
        logits = head(backbone(clips.to(device)))  # [B, K + 1]
        loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TadpipeError(
                "The loss of pretraining is not finite any more.",
                f"step {step}: {value}",
                "Lower the learning rate.",
            )
        accuracy = float((logits.detach().argmax(dim=1) == targets).float().mean())
        recent = [*recent[1 - LOG_EVERY :], (value, accuracy)]
        if (step + 1) % LOG_EVERY == 0:
            logger.info("pretraining step %d: loss %.3f, accuracy %.3f", step + 1, *_means(recent))
        if on_step is not None:
            on_step(step, value, accuracy)
    model.eval()
    return PretrainReport(config.steps, *_means(recent))


class ClipSampler:
    """Draws augmented clips, every class equally often."""

    def __init__(
        self,
        videos: Sequence[LabelledFrames],
        clip_len: int,
        recipe: PixelRecipe,
        config: PretrainConfig,
        seed: int,
    ) -> None:
        size, reach = recipe.size, config.shift_pixels
        for video in videos:
            if video.frames.dtype != torch.uint8 or video.frames.shape[1:] != (3, size, size):
                raise ConfigError(
                    f"Frames must be uint8 [T, 3, {size}, {size}].",
                    f"got {video.frames.dtype} {list(video.frames.shape)}",
                )
        # A border of the edge's own pixels, so that a shifted crop is a plain slice.
        inner = torch.arange(-reach, size + reach).clamp(0, size - 1)
        self.frames = [video.frames[:, :, inner][:, :, :, inner] for video in videos]
        self.places = _places_of_labels(videos, clip_len)
        if not self.places:
            raise ConfigError("No video is as long as one clip.", f"{clip_len} frames")
        self.clip_shape = (3, clip_len, size, size)
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.mean = torch.tensor(recipe.mean or (0.0, 0.0, 0.0))[:, None, None, None]
        self.std = torch.tensor(recipe.std or (1.0, 1.0, 1.0))[:, None, None, None]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Normalised clips float32 [B, 3, F, S, S] and labels int64 [B]."""
        count = self.config.batch_size
        clips = torch.empty(count, *self.clip_shape)
        labels = [self._draw(clips[i]) for i in range(count)]
        return clips, torch.tensor(labels)

    def _draw(self, clip: Tensor) -> int:
        """Fill `clip` with pixels and return its label."""
        classes = [label for label in self.places if label != IDLE]
        idle = IDLE in self.places and uniform(self.generator) < self.config.idle_share
        label = IDLE if idle or not classes else classes[below(len(classes), self.generator)]
        places = self.places[label]  # [P, 2]
        video, start = places[below(len(places), self.generator)].tolist()
        _, length, size, _ = self.clip_shape
        reach = 2 * self.config.shift_pixels + 1
        top, left = below(reach, self.generator), below(reach, self.generator)
        window = self.frames[video][start : start + length, :, top : top + size, left : left + size]
        wishes = ((0, self.config.reverse), (2, self.config.flip_vertical), (3, self.config.flip))
        flipped = draw_axes(wishes, self.generator)
        clip.copy_((window.flip(flipped) if flipped else window).transpose(0, 1))
        # (pixel / 255 * factor + offset - mean) / std in one pass; light changes per channel.
        light = draw_light(self.config.brightness, self.generator)
        factor = light.factor[:, None, None, None]
        clip.mul_(factor / (255 * self.std)).add_((light.offset - self.mean) / self.std)
        return label


def _places_of_labels(videos: Sequence[LabelledFrames], clip_len: int) -> dict[int, Tensor]:
    """Label of the middle frame -> clips as (video, first frame), int64 [P, 2]."""
    places: dict[int, list[Tensor]] = {}
    for number, video in enumerate(videos):
        middle = video.labels[clip_len // 2 : len(video.labels) - (clip_len - 1 - clip_len // 2)]
        for label in middle.unique().tolist():
            starts = torch.nonzero(middle == label).squeeze(1)
            rows = torch.stack((torch.full_like(starts, number), starts), dim=1)
            places.setdefault(label, []).append(rows)
    return {label: torch.cat(rows) for label, rows in sorted(places.items())}


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _schedule(step: int, config: PretrainConfig) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    count = max(len(pairs), 1)
    return sum(pair[0] for pair in pairs) / count, sum(pair[1] for pair in pairs) / count
