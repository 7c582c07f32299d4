"""What an end-to-end run will do, decided before anything is written.

Order: E2EOptions -> preset with its `[e2e]` table -> backbone with adapters -> feature spec and
grid -> videos and annotations (as for `train-detector`, over videos instead of a store).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from tadpipe.annotations import Video
from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.tia import Adaptable, AdapterConfig, add_adapters
from tadpipe.datasets.sources import FeatureSource, match_videos
from tadpipe.datasets.windows import trained_part
from tadpipe.errors import ConfigError, VideoError
from tadpipe.pipeline.extract_spec import DEFAULT_STRIDE, PADDED_BATCH
from tadpipe.pipeline.feature_tables import open_tables
from tadpipe.pipeline.pixel_grid import PixelGrid, grid_of, overlap_frames
from tadpipe.pipeline.presets import FeaturesConfig, Preset
from tadpipe.pipeline.recipe import check_recipe
from tadpipe.pipeline.run_folder import backbone_weights
from tadpipe.pipeline.train_plan import TrainPlan
from tadpipe.pipeline.video_features import VideoTable
from tadpipe.pipeline.video_files import VideoFile, find_videos
from tadpipe.store.metadata import FeatureSpec
from tadpipe.training.e2e import E2EConfig, set_drop_path
from tadpipe.training.feature_bank import FeatureBank

logger = logging.getLogger(__name__)


class E2EOptions(NamedTuple):
    """The choices with options of their own; None leaves the preset's."""

    adapter: Literal["tia", "ladder", "plain", "longlora", "none"] | None = None
    tune: Literal["adapter", "full", "frozen"] | None = None
    egs: float | None = None
    egs_strategy: str | None = None
    unsampled: Literal["forward", "store"] | None = None
    representation: Literal["snippet", "frame"] | None = None

    def as_sets(self) -> list[str]:
        """The same as changes of a preset.

        An adapter asks for `tune = adapter`; `tune` without an adapter asks for none.
        """
        adapter, tune = self.adapter, self.tune
        if tune is None and adapter is not None:
            tune = "full" if adapter == "none" else "adapter"
        elif adapter is None and tune in ("full", "frozen"):
            adapter = "none"
        values = {
            "adapter.kind": adapter,
            "tune": tune,
            "egs.ratio": self.egs,
            "egs.strategy": self.egs_strategy,
            "unsampled": self.unsampled,
            "representation": self.representation,
        }
        sets = []
        for key, value in values.items():
            if value is not None:
                sets.append(f"e2e.{key}={value}")
        return sets


@dataclass(frozen=True)
class PixelPlan:
    """The backbone and how its pixels are cut."""

    backbone: Backbone
    config: E2EConfig  # with the adapters that the weights bring
    spec: FeatureSpec  # of the features before any training
    grid: PixelGrid


def pixel_preset(preset: Preset) -> Preset:
    """The preset with windows that pixels can have.

    Rules that only stored features need have their nearest counterpart, which is said. What it
    expects of stored features is left out but for the stride, which becomes a setting.
    """
    expected = FeaturesConfig(backbone=preset.features.backbone, stride=preset.features.stride)
    windows = preset.windows
    changes: dict[str, Any] = {}
    if windows.placement == "sliding":
        changes["placement"] = "random"
    if windows.fit == "thin":
        changes["fit"] = "pad"
    if windows.fit == "roi-align":
        changes["fit"] = "resize"
    for key, value in changes.items():
        logger.warning(
            "windows.%s = %s is for stored features; end to end it is %s",
            key,
            getattr(windows, key),
            value,
        )
    return replace(preset, features=expected, windows=replace(windows, **changes))


def plan_pixels(
    preset: Preset,
    backbone: str,
    weights: str | Path | None,
    *,
    stride: int | None,
    device: str,
    seed: int,
) -> PixelPlan:
    """Load the backbone, add its adapters, and say which features it makes.

    Args:
        weights: as of `load_backbone`, or the run folder of an earlier end-to-end run.
    Raises:
        ConfigError: settings that do not go together. CheckpointError: weights that do not fit.
    """
    model = load_backbone(backbone, backbone_weights(weights), device=device, seed=seed)
    _set_pixels(model, preset.e2e)
    config = replace(preset.e2e, adapter=_with_adapters(model, preset.e2e, seed))
    assert isinstance(model, nn.Module)
    if config.drop_path:
        set_drop_path(model, config.drop_path)
    step_frames = stride or preset.features.stride or DEFAULT_STRIDE
    frames = config.representation == "frame"
    if frames and step_frames % config.frames_per_step:
        raise ConfigError(
            "The stride must be a multiple of the frames per grid step.",
            f"stride = {step_frames} frames, e2e.frames_per_step = {config.frames_per_step}",
        )
    window_len = int(preset.model_config(model.out_channels, 1, backbone).window_len)
    anchor = "centre" if frames else config.anchor
    spec = FeatureSpec(
        backbone=backbone,
        weights_sha256=model.weights_sha256,
        adapter_sha256=model.adapter_sha256 if isinstance(model, Adaptable) else "",
        channels=model.out_channels,
        clip_len=model.clip_len,
        stride=step_frames,
        pixels=model.pixels,
        representation=config.representation,
        frame_interval=(step_frames // config.frames_per_step if frames else config.frame_interval),
        anchor=anchor,
        edges="drop-tail" if anchor == "start" else "repeat-edge",
        fps=config.fps or None,
        window_len=window_len * config.frames_per_step if frames else 0,
        row_spacing=float(step_frames) if frames else 0.0,
        batch=PADDED_BATCH if model.bits_depend_on_batch and not frames else None,
    )
    resize = preset.windows.fit == "resize"
    grid = grid_of(spec, window_len, resize=resize)
    if frames:
        spec = replace(spec, overlap=overlap_frames(grid, preset.windows.overlap))
    return PixelPlan(model, config, spec, grid)


def _set_pixels(model: Backbone, config: E2EConfig) -> None:
    """Picture size and clip length as asked for."""
    if model.pixels.colour not in ("rgb", "bgr"):
        raise ConfigError(
            "End-to-end training reads colours, not optical flow.", f"--backbone {model.name}"
        )
    if config.picture_size:
        factor = config.picture_size / model.pixels.size
        model.pixels = replace(
            model.pixels,
            size=config.picture_size,
            resize_short_side=round(model.pixels.resize_short_side * factor),
            resize_to=tuple(round(side * factor) for side in model.pixels.resize_to),
        )
    if config.clip_len:
        model.set_clip_len(config.clip_len)


def _with_adapters(model: Backbone, config: E2EConfig, seed: int) -> AdapterConfig:
    """Add adapters; those that the weights bring stay, with the settings of memory as asked for.

    Raises:
        ConfigError: the weights bring others than asked for, or new ones shall not train.
    """
    wanted = config.adapter
    there = model.adapters if isinstance(model, Adaptable) else AdapterConfig(kind="none")
    if there.kind == "none":
        if wanted.kind == "none" and not wanted.checkpoint:
            return wanted
        if config.tune == "frozen" and wanted.kind != "none":
            raise ConfigError(
                "A new adapter that does not train changes nothing.",
                f"tune = frozen, adapter = {wanted.kind}",
                "Use --tune adapter.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_adapters(model, wanted)
        return wanted
    if wanted.kind not in (there.kind, "none"):
        raise ConfigError(
            "The weights bring other adapters than asked for.",
            f"weights: {there.kind}, asked for: {wanted.kind}",
            f"Use --adapter {there.kind}, or other --weights.",
        )
    assert isinstance(model, Adaptable)
    model.adapters = replace(there, checkpoint=wanted.checkpoint)
    return model.adapters


def files_by_name(videos: Sequence[Path | str]) -> dict[str, VideoFile]:
    """The video files by the names that annotations know them by."""
    return {file.name: file for file in find_videos([Path(video) for video in videos])}


def trained_videos(plan: TrainPlan, table: VideoTable) -> dict[str, Video]:
    """The training videos that have a file, by its name, with the actions that are trained on."""
    annotated = plan.annotations.subset(plan.subsets.train)
    found: dict[str, Video] = {}
    for name, stored in plan.coverage(plan.subsets.train).stored_as.items():
        video: Video | None = annotated[name]
        try:
            length_sec = partial(table.duration_sec, stored)
            video = trained_part(annotated[name], plan.recipe.windows, length_sec)
        except VideoError:  # recorded when its turn to be trained on comes
            logger.debug("%s: its length cannot be read", stored)
        if video is not None:
            found[stored] = video
    return found


def open_bank(plan: TrainPlan, config: E2EConfig, store: str | Path | None) -> FeatureBank | None:
    """The features that stand in for unsampled snippets; None where all are encoded.

    Raises:
        ConfigError: no store, features of another kind, or videos that it lacks.
    """
    if config.unsampled == "forward":
        return None
    if store is None:
        raise ConfigError(
            "No features for the snippets that are not sampled.",
            "unsampled = store",
            "Give --features STORE, made with the same backbone, weights, stride and clips.",
        )
    if plan.recipe.windows.fit != "pad":
        raise ConfigError(
            "Resized videos have other snippets than a store.",
            f"windows.fit = {plan.recipe.windows.fit}, unsampled = store",
            "Use --unsampled forward.",
        )
    wanted = plan.recipe.features[0]
    tables = open_tables([Path(store)], backbone=wanted.backbone, stride=wanted.stride)
    check_recipe(plan.recipe, "this training", [tables[0].spec], [tables[0].store])
    videos = plan.coverage(plan.subsets.train).stored_as.values()
    prefix = "" if plan.spec is None else plan.spec.feature_prefix
    there = match_videos({}, list(videos), tables[0].names(), prefix)
    if there.without_features:
        raise ConfigError(
            "The store lacks training videos.",
            f"{tables[0].store}: {len(there.without_features)} missing, first "
            f"{', '.join(there.without_features[:3])}",
            "Extract them first.",
        )
    return FeatureBank(FeatureSource(tables), there.stored_as, config.update_store_features)
