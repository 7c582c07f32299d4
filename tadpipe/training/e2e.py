"""Backbone and detector trained together: what one step computes.

Clips that do not see each other go through EGS (`training/egs.py`): all are encoded without a
graph, the detector steps back to their features, and the chosen ones pass again in micro-batches;
with ratio 1 that is the full gradient at the memory of one micro-batch. Clips that adapters or
the backbone couple (frame representation with tia or ladder, or of a backbone that sees a whole
window) need one graph over the window, which recomputing block by block makes lean.
Order: E2EConfig -> PixelWindow, PixelBatch -> WindowClips -> ClipEncoder -> E2EModel -> E2ELearner.
Shapes: B windows, M clips of a window, F frames per clip, U different frames of a window, S side
of a picture, C channels, t steps of a clip's feature map, T grid length of the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from tadpipe.backbones.augment import Augmentation, AugmentConfig
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.representation import masked
from tadpipe.backbones.tia import AdapterConfig
from tadpipe.backbones.tuning import set_tuning, trainable_groups
from tadpipe.config import PixelRecipe
from tadpipe.datasets.loader import generator_of
from tadpipe.detectors.protocol import Targets
from tadpipe.errors import ConfigError
from tadpipe.training.egs import NONE, EgsConfig, egs_backward
from tadpipe.training.feature_bank import FeatureBank
from tadpipe.training.loop import TrainingConfig, autocast, detector_losses
from tadpipe.training.optim import make_optimizer

COUPLING = ("tia", "ladder", "longlora")  # adapters that see across the clips of a window
EGS_DRAWS = -2  # the item number under which the snippets of a step are drawn


@dataclass(frozen=True)
class E2EConfig:
    """The `[e2e]` table of a preset: what trains, on which pixels."""

    tune: Literal["adapter", "full", "frozen"] = "full"  # what of the backbone trains
    adapter: AdapterConfig = field(default_factory=lambda: AdapterConfig(kind="none"))
    frozen: tuple[str, ...] = ()  # tune = full: modules of the backbone that do not train
    batch_norm_affine: bool = False  # tune = full: scales and biases of batch norms train
    drop_path: float = 0.0  # of the last block, linear from 0; in one pass only, EGS has none
    adapter_learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    egs: EgsConfig = field(default_factory=lambda: EgsConfig(ratio=1.0))
    unsampled: Literal["forward", "store"] = "forward"  # features of clips without gradient
    update_store_features: bool = True  # unsampled = store: fresh features replace those of before
    representation: Literal["snippet", "frame"] = "snippet"
    frames_per_step: int = 1  # frame: frames of a grid step, stride / this apart
    clip_len: int = 0  # frames of a clip; 0 = the backbone's
    frame_interval: int = 1  # snippet: a clip takes every n-th frame
    anchor: Literal["start", "centre", "cell"] = "start"  # snippet: where the first clip sits
    fps: float = 0.0  # resample to this rate by presentation times; 0 = the file's frames
    picture_size: int = 0  # side of the picture, pixels; 0 = the backbone's
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache_gib: float = 2.0  # decoded frames kept in memory
    most_failed: float = 0.05  # share of the training videos that may turn out unusable

    def __post_init__(self) -> None:
        if min(self.adapter_learning_rate, self.backbone_learning_rate) <= 0:
            raise ConfigError(
                "Learning rates must be positive.",
                f"e2e.adapter_learning_rate = {self.adapter_learning_rate}, "
                f"e2e.backbone_learning_rate = {self.backbone_learning_rate}",
            )
        if not 0 <= self.most_failed <= 1 or not 0 <= self.drop_path < 1:
            raise ConfigError(
                "most_failed lies in [0, 1] and drop_path in [0, 1).",
                f"e2e.most_failed = {self.most_failed}, e2e.drop_path = {self.drop_path}",
            )
        if self.frames_per_step < 1 or min(self.cache_gib, self.fps, self.picture_size) < 0:
            raise ConfigError(
                "frames_per_step is at least 1; cache_gib, fps and picture_size are not negative.",
                f"e2e: {self.frames_per_step}, {self.cache_gib}, {self.fps}, {self.picture_size}",
            )
        self._check_combination()

    @property
    def coupled(self) -> bool:
        """Whether adapters let the clips of a window see each other: EGS cannot take some."""
        return self.representation == "frame" and self.adapter.kind in COUPLING

    def couples(self, backbone: Backbone) -> bool:
        """Whether the clips of a window see each other, through adapters or in the backbone.

        Raises:
            ConfigError: they do, and gradients of some of them are asked for.
        """
        if self.representation == "frame" and backbone.couples_clips and self.egs.ratio < 1:
            raise ConfigError(
                f"{backbone.name} sees a window as a whole, so that no clip has a gradient alone.",
                f"representation = frame, egs = {self.egs.ratio}",
                "Use --representation snippet, or --egs 1.",
            )
        return self.coupled or (self.representation == "frame" and backbone.couples_clips)

    def _check_combination(self) -> None:
        kind = self.adapter.kind
        if self.tune == "adapter" and kind == "none":
            raise ConfigError(
                "There is no adapter to tune.", "tune = adapter, adapter = none", "Use --adapter."
            )
        if self.coupled and (self.egs.ratio < 1 or self.unsampled == "store"):
            raise ConfigError(
                "Gradients of some clips only are wrong where clips see each other.",
                f"representation = frame, adapter = {kind}, egs = {self.egs.ratio}, "
                f"unsampled = {self.unsampled}",
                "Use --representation snippet, or --adapter plain or none, or --egs 1.",
            )
        if self.unsampled == "store" and self.egs.strategy == "gradient":
            raise ConfigError(
                "With a feature bank snippets are chosen before their gradients are known.",
                "unsampled = store, egs.strategy = gradient",
                "Use another --egs-strategy, or --unsampled forward.",
            )
        if self.unsampled == "store" and self.representation == "frame":
            raise ConfigError(
                "A feature bank holds one row per snippet.",
                "unsampled = store, representation = frame",
                "Use --representation snippet.",
            )


class PixelWindow(NamedTuple):
    """A training window: decoded frames and which of them make its clips."""

    name: str
    start: int  # first grid step, in the video
    valid: int  # grid steps that the video fills
    frames: Tensor  # uint8 [U, 3, h, w], or float32 [U, 3, S, S] as the backbone takes them
    clips: Tensor  # int64 [M, F], places in `frames`
    augmentation: Augmentation | None  # of uint8 frames
    segments: Tensor  # [G, 2] float32
    labels: Tensor  # [G] int64


class PixelBatch(NamedTuple):
    """Windows of one step."""

    windows: list[PixelWindow]


class WindowClips:
    """The clips of a batch; frames are kept once, however many clips share them."""

    def __init__(
        self, windows: Sequence[PixelWindow], recipe: PixelRecipe, device: torch.device
    ) -> None:
        self.frames = [_on_device(window, device) for window in windows]  # B x [U, 3, S, S]
        self.index = [window.clips for window in windows]
        self.recipe = recipe
        counts = torch.tensor([len(index) for index in self.index])
        self.mask = torch.arange(int(counts.max())) < counts[:, None]  # [B, M]

    def take(self, videos: Tensor, snippets: Tensor) -> Tensor:
        places = zip(videos.tolist(), snippets.tolist(), strict=True)
        clips = [self.frames[b][self.index[b][m].to(self.frames[b].device)] for b, m in places]
        pixels = torch.stack(clips).transpose(1, 2)  # [N, 3, F, S, S]
        return normalised(pixels, self.recipe) if pixels.dtype == torch.uint8 else pixels


def _on_device(window: PixelWindow, device: torch.device) -> Tensor:
    frames = window.frames.to(device)
    return frames if window.augmentation is None else window.augmentation.apply(frames)


def normalised(pixels: Tensor, recipe: PixelRecipe) -> Tensor:
    """uint8 RGB [N, 3, ...] -> float32 in the backbone's range and order of colours."""
    if recipe.colour == "bgr":
        pixels = pixels.flip(1)
    values = pixels.float() / 255
    if not recipe.mean:
        return values
    shape = (1, 3, *[1] * (pixels.ndim - 2))
    mean = torch.tensor(recipe.mean, device=pixels.device).view(shape)
    return (values - mean) / torch.tensor(recipe.std, device=pixels.device).view(shape)


class ClipEncoder(nn.Module):
    """A backbone as EGS takes it: clips [N, 3, F, S, S] -> [N, C], or [N, C * t] for frames."""

    def __init__(self, backbone: nn.Module, representation: str, amp: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.representation = representation
        self.amp = amp

    def forward(self, clips: Tensor) -> Tensor:
        with autocast(clips.device, self.amp):
            if self.representation == "snippet":
                features: Tensor = self.backbone(clips)
            else:
                maps = self.backbone.feature_map(clips)  # type: ignore[operator]  # a Backbone
                features = maps.mean(dim=(3, 4)).flatten(1)  # [N, C, t] -> [N, C * t]
        return features.float()


class E2EModel(nn.Module):
    """What is trained, averaged and saved together."""

    def __init__(self, backbone: nn.Module, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.detector = detector


class E2ELearner:
    """Losses and gradients of a batch of pixel windows.

    Args:
        backbone: with its adapters; what of it trains is set here.
        window_len: T, grid steps that the detector is trained on.
        bank: features of clips that are not encoded, for `unsampled = "store"`.
    """

    def __init__(
        self,
        backbone: Backbone,
        detector: nn.Module,
        training: TrainingConfig,
        config: E2EConfig,
        *,
        window_len: int,
        seed: int,
        device: str,
        bank: FeatureBank | None = None,
    ) -> None:
        assert isinstance(backbone, nn.Module)
        set_tuning(
            backbone,
            config.tune,
            representation=config.representation,
            frozen=config.frozen,
            batch_norm_affine=config.batch_norm_affine,
        )
        self.model: nn.Module = E2EModel(backbone, detector).to(device)
        self.backbone = backbone
        self.detector = detector
        self.encoder = ClipEncoder(backbone, config.representation, training.amp)
        self.training = training
        self.config = config
        self.coupled = config.couples(backbone)
        self.window_len = window_len
        self.seed = seed
        self.device = torch.device(device)
        self._bank = bank
        self.frozen = _frozen_entries(self.model)

    def optimizer(self) -> torch.optim.Optimizer:
        rates = {
            "adapter": self.config.adapter_learning_rate,
            "backbone": self.config.backbone_learning_rate,
        }
        more = [
            {
                "params": [parameters[name] for name in sorted(parameters)],
                "weight_decay": self.training.weight_decay,
                "rate_share": rates[group] / self.training.learning_rate,
            }
            for group, parameters in trainable_groups(self.backbone).items()
        ]
        return make_optimizer(self.detector, self.training, more)

    def backward(
        self, batch: PixelBatch, scale: Callable[[Tensor], Tensor], step: int
    ) -> Mapping[str, Tensor]:
        clips = WindowClips(batch.windows, self.backbone.pixels, self.device)
        if self.coupled:
            return self._in_one_pass(batch, clips, scale)
        done = egs_backward(
            self.encoder,
            clips,
            lambda features: self.losses(batch, features),
            self.config.egs,
            generator=generator_of(self.seed, step, EGS_DRAWS),
            known=self._known(batch, clips),
            scale=scale,
        )
        self._remember(batch, done.features, done.snippets)
        return done.losses

    def bank(self) -> dict[str, Tensor]:
        return {} if self._bank is None else self._bank.state()

    def load_bank(self, bank: Mapping[str, Tensor]) -> None:
        if self._bank is not None:
            self._bank.load(bank)

    def _in_one_pass(
        self, batch: PixelBatch, clips: WindowClips, scale: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        """One graph over whole windows, where adapters or the backbone couple their clips."""
        count = clips.mask.shape[1]  # k clips, the same for all windows
        videos, places = clips.mask.nonzero(as_tuple=True)
        with autocast(self.device, self.training.amp):
            maps = self.backbone.feature_map(clips.take(videos, places), count)  # [B*k, C, t, h, w]
        steps = maps.float().mean(dim=(3, 4)).flatten(1).unflatten(0, (-1, count))  # [B, k, C * t]
        terms = self.losses(batch, steps.transpose(1, 2))
        scale(torch.stack(list(terms.values())).sum()).backward()
        return terms

    def losses(self, batch: PixelBatch, features: Tensor) -> dict[str, Tensor]:
        """The detector's losses of clip features [B, C or C * t, M]."""
        valid = torch.tensor([window.valid for window in batch.windows])
        mask = (torch.arange(self.window_len) < valid[:, None]).to(self.device)  # [B, T]
        feats = self._on_grid(features)  # [B, C, T]
        targets = Targets([w.segments for w in batch.windows], [w.labels for w in batch.windows])
        return detector_losses(self.detector, masked(feats, mask), mask, targets, self.training)

    def _on_grid(self, features: Tensor) -> Tensor:
        """Clip features [B, C or C * t, M] -> [B, C, T]."""
        if self.config.representation == "snippet":
            return nnf.pad(features, (0, self.window_len - features.shape[2]))
        channels = self.backbone.out_channels
        line = features.unflatten(1, (channels, -1)).transpose(2, 3).flatten(2)  # [B, C, M * t]
        if line.shape[2] == self.window_len:
            return line
        return nnf.interpolate(line, self.window_len, mode="linear", align_corners=False)

    def _known(self, batch: PixelBatch, clips: WindowClips) -> Tensor | None:
        """Features of the bank, [B, C, M]; None without one."""
        if self._bank is None:
            return None
        count = clips.mask.shape[1]
        known = [
            nnf.pad(self._bank.read(w.name, w.start, w.start + w.valid), (0, count - w.valid))
            for w in batch.windows
        ]
        return torch.stack(known).to(self.device)

    def _remember(self, batch: PixelBatch, features: Tensor, snippets: Tensor) -> None:
        """Hand what was encoded afresh to the bank."""
        if self._bank is None:
            return
        for window, rows, chosen in zip(batch.windows, features, snippets, strict=True):
            places = chosen[chosen != NONE]
            self._bank.write(window.name, window.start + places, rows[:, places.to(rows.device)])


def set_drop_path(backbone: nn.Module, rate: float) -> None:
    """Stochastic depth, rising linearly over the blocks that have it."""
    blocks = [module for module in backbone.modules() if hasattr(module, "drop_path")]
    blocks = [block for block in blocks if block is not backbone]
    for number, block in enumerate(blocks):
        block.drop_path = rate * number / max(len(blocks) - 1, 1)  # type: ignore[assignment]  # a rate


def _frozen_entries(model: nn.Module) -> frozenset[str]:
    """Entries of the state dict that never change: the backbone's frozen weights and statistics."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return frozenset(
        name for name in model.state_dict() if name.startswith("backbone.") and name not in trained
    )
