"""From videos to a backbone and a detector trained together: what `tadpipe e2e` does.

Order: plan -> train -> weights of both (averaged) -> detections and score of the test subset,
with features computed from the test videos by the tuned backbone. The run folder serves
`tadpipe detect --model`, `tadpipe extract --weights` and `tadpipe e2e --weights`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tadpipe.annotations import Detections, save_detections
from tadpipe.backbones.loading import load_backbone, save_backbone
from tadpipe.backbones.tia import Adaptable
from tadpipe.backbones.tuning import trainable_groups
from tadpipe.config import to_mapping
from tadpipe.errors import ConfigError
from tadpipe.pipeline.clip_batches import batch_of
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.e2e_detect import detect_on_videos
from tadpipe.pipeline.e2e_plan import (
    E2EOptions,
    PixelPlan,
    files_by_name,
    open_bank,
    pixel_preset,
    plan_pixels,
    trained_videos,
)
from tadpipe.pipeline.e2e_result import E2EResult
from tadpipe.pipeline.evaluate import DETECTIONS_FILE, Evaluation
from tadpipe.pipeline.frame_cache import FrameCache, keep_for
from tadpipe.pipeline.known_weights import KnownWeights, remember_weights
from tadpipe.pipeline.pixel_windows import FailedVideos, PixelLoader, PixelWindows
from tadpipe.pipeline.presets import choose_preset, load_preset
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.recipe import MODEL_FILE, RECIPE_FILE
from tadpipe.pipeline.run_folder import (
    BACKBONE_FILE,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    backbone_weights,
    check_run_folder,
    environment,
    write_json,
)
from tadpipe.pipeline.train_detector import EVALUATION_FILE, last_epoch
from tadpipe.pipeline.train_plan import TrainPlan, make_plan
from tadpipe.pipeline.video_features import VideoTable
from tadpipe.store.metadata import FeatureSpec
from tadpipe.training.checkpoint import save_weights
from tadpipe.training.distributed import ALONE, Ranks, join, own_device
from tadpipe.training.e2e import E2ELearner, PixelBatch
from tadpipe.training.loop import Trainer, train
from tadpipe.video.process import DecodeProcess

logger = logging.getLogger(__name__)

GIB = 1 << 30


def train_e2e(
    videos: Sequence[str | Path],
    *,
    annotations: str | Path,
    backbone: str,
    weights: str | Path | None = None,
    adapter: Literal["tia", "ladder", "plain", "longlora", "none"] | None = None,
    tune: Literal["adapter", "full", "frozen"] | None = None,
    egs: float | None = None,
    egs_strategy: str | None = None,
    unsampled: Literal["forward", "store"] | None = None,
    features: str | Path | None = None,
    representation: Literal["snippet", "frame"] | None = None,
    detector: str | None = None,
    preset: str | None = None,
    sets: Sequence[str] = (),
    stride: int | None = None,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
    dataset: str | None = None,
    subset: str | None = None,
    test_subset: str | None = None,
    val_subset: str | None = None,
    class_scores: str | Path | None = None,
    skip_unscored: bool = False,
    device: str = "auto",
    seed: int = 0,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> E2EResult:
    """Train a backbone and a detector together on videos.

    Args:
        videos: files and folders, of all subsets.
        backbone, weights: as of `extract`; `weights` may also be the folder of an earlier run.
        adapter, tune: what of the backbone trains; an adapter alone means tune = "adapter".
        egs: share of the clips that get gradients; 1 is the full gradient.
        egs_strategy: how they are chosen: random, grid, block, fps, dpp, gradient.
        unsampled: "forward" encodes the other clips too, "store" reads them from `features`.
        representation: "snippet" (a vector per clip) or "frame" (a window is one line of clips).
        detector, preset: as of `train_detector`; `sets` change the preset ("e2e.egs.ratio=0.5").
        stride: frames between grid steps; without it the preset's, else 4.
        out: run folder; without it, `runs`/e2e.
        resume: go on with the run in the folder; it must have the same configuration.
        subset, test_subset, val_subset, class_scores, skip_unscored: as of `train_detector`.
    Returns:
        What was done; `exit_code` is 3 when videos turned out unusable.
    Raises:
        ConfigError, AnnotationError, CheckpointError: before anything is written.
        TadpipeError: too many videos cannot be used, or the loss is not finite any more.
    """
    started = time.monotonic()
    device = own_device(resolve_device(device))
    options = E2EOptions(adapter, tune, egs, egs_strategy, unsampled, representation)
    name = choose_preset(detector, preset)
    loaded = pixel_preset(load_preset(name, [*options.as_sets(), *sets], detector))
    pixels = plan_pixels(loaded, backbone, weights, stride=stride, device=device, seed=seed)
    with DecodeProcess() as tests, DecodeProcess() as trainings:
        files = files_by_name(videos)
        table = VideoTable(
            files,
            pixels.backbone,
            pixels.spec,
            pixels.grid,
            tests,
            device=device,
            batch=batch_of(device),
        )
        plan = make_plan(
            [table],
            name,
            replace(loaded, e2e=pixels.config),
            annotations=annotations,
            dataset=dataset,
            subset=subset,
            test_subset=test_subset,
            val_subset=val_subset,
            seed=seed,
        ).with_score_file(class_scores, skip_unscored=skip_unscored)
        folder = Path(out) if out is not None else Path(runs) / "e2e"
        run = _Run(plan, pixels, table, folder, device, progress)
        check_run_folder(folder, run.config(), resume=resume)
        learner = run.learner(features)
        loader = run.loader(trainings)
        result = run.describe(learner, loader)
        if dry_run:
            return result
        if weights is not None:
            remember_weights(
                pixels.spec.adapter_sha256 or pixels.spec.weights_sha256,
                KnownWeights(backbone_weights(weights) or weights, seed),
            )
        ranks = join(device)
        with ranks.folder(folder) as own:
            run.start(ranks, own, loader)
            trainer = run.train(learner, loader, resume)
            evaluation = run.finish(trainer, loader.failed)
            failed = ranks.merged(dict.fromkeys((*loader.failed.since, *loader.failed.tested)))
    return replace(
        result,
        dry_run=False,
        failed=tuple(failed),
        seconds=time.monotonic() - started,
        losses=last_epoch(folder, result.steps // result.epochs) if ranks.is_first else {},
        evaluation=evaluation,
    )


class _Run:
    """The parts of one run and its folder."""

    def __init__(
        self,
        plan: TrainPlan,
        pixels: PixelPlan,
        table: VideoTable,
        folder: Path,
        device: str,
        progress: Progress,
    ) -> None:
        self.plan = plan
        self.pixels = pixels
        self.table = table
        self.folder = folder
        self.own = folder  # where this process writes
        self.device = device
        self.progress = progress
        self.ranks = ALONE

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return {**self.plan.config(), "e2e": to_mapping(self.pixels.config)}

    def learner(self, features: str | Path | None) -> E2ELearner:
        """Backbone and detector with fresh detector weights."""
        plan, config = self.plan, self.pixels.config
        torch.manual_seed(plan.seed)
        return E2ELearner(
            self.pixels.backbone,
            plan.recipe.make_model(),
            plan.preset.training,
            config,
            window_len=plan.recipe.window_len,
            seed=plan.seed,
            device=self.device,
            bank=open_bank(plan, config, features),
        )

    def loader(self, decoder: DecodeProcess) -> PixelLoader:
        """Training windows.

        Raises:
            ConfigError: no training video has a file.
        """
        plan, config = self.plan, self.pixels.config
        videos = trained_videos(plan, self.table)
        if not videos:
            annotated = list(plan.annotations.subset(plan.subsets.train))
            raise ConfigError(
                "No video of the training subset has a file.",
                f"{len(self.table.files)} files;  {plan.annotations.source}: {len(annotated)} "
                f"videos of '{plan.subsets.train}' ({', '.join(annotated[:3])}, ...)",
                "Name the folder that holds them, or another --annotations or --subset.",
            )
        recipe = self.pixels.backbone.pixels
        cache = FrameCache(
            decoder,
            keep_for(recipe, config.augment),
            limit_bytes=int(config.cache_gib * GIB),
            fps=self.pixels.spec.fps,
        )
        windows = PixelWindows(
            self.table.files,
            videos,
            plan.label_ids(),
            plan.recipe.windows,
            self.pixels.grid,
            cache,
            config.augment,
            recipe.size,
        )
        failed = FailedVideos(self.folder, len(windows), config.most_failed)
        return PixelLoader(windows, plan.preset.training.batch_size, seed=plan.seed, failed=failed)

    def describe(self, learner: E2ELearner, loader: PixelLoader) -> E2EResult:
        """What would be trained; a run of it fills in the rest."""
        plan, config = self.plan, self.pixels.config
        used = [name for name in plan.subsets if name is not None]
        missing = [video for name in used for video in plan.coverage(name).without_features]
        if missing:
            logger.warning(
                "%d annotated videos have no file: %s", len(missing), ", ".join(missing[:5])
            )
        training = plan.preset.training
        return E2EResult(
            run=self.folder,
            detector=plan.preset.detector,
            preset=plan.preset_name,
            backbone=self.pixels.backbone.name,
            tune=config.tune,
            adapter=config.adapter.kind,
            egs=config.egs.ratio if config.tune != "frozen" else 0.0,
            representation=config.representation,
            trained_parameters=_sizes(learner),
            videos=len(loader.windows),
            epochs=training.epochs_to_run,
            steps=training.epochs_to_run * training.steps_per_epoch(loader.steps_per_pass),
            without_files=tuple(missing),
            dry_run=True,
        )

    def start(self, ranks: Ranks, own: Path, loader: PixelLoader) -> None:
        """Take a share of every batch, and write what the run is before its first step."""
        ranks.check_batch(loader.batch_size)
        config = self.pixels.config
        if ranks.count > 1 and config.unsampled == "store" and config.update_store_features:
            raise ConfigError(
                "Several processes cannot keep one feature bank up to date.",
                f"{ranks.count} processes, unsampled = store",
                "Use --set e2e.update_store_features=false, or --unsampled forward.",
            )
        loader.part = ranks.part
        self.ranks, self.own = ranks, own
        own.mkdir(parents=True, exist_ok=True)
        write_json(own / CONFIG_FILE, self.config())
        write_json(own / RECIPE_FILE, self.plan.recipe.to_mapping())  # completed at the end
        write_json(own / ENVIRONMENT_FILE, environment(self.device, self.plan.seed))

    def train(self, learner: E2ELearner, loader: PixelLoader, resume: bool) -> Trainer[PixelBatch]:
        """The loop, with progress in steps and the report on the validation subset."""
        config = self.plan.preset.training
        done = 0

        def on_step(step: int, loss: float) -> None:
            nonlocal done
            self.progress.advance(step + 1 - done, f"loss {loss:.3f}")
            done = step + 1

        def validate(epoch: int) -> Mapping[str, float]:
            validation = self.plan.subsets.validation
            assert validation is not None  # checked by the plan
            found = self._detect(learner.detector, validation, loader.failed, SILENT)
            average = self.plan.score(self.plan.labelled(found), validation).average_map
            logger.info("epoch %d: average mAP %.4f on '%s'", epoch, average, validation)
            return {"epoch": epoch, "validation_map": average}

        steps = config.epochs_to_run * config.steps_per_epoch(loader.steps_per_pass)
        self.progress.begin("train", steps, "step")
        trainer = train(
            learner,
            loader,
            config,
            self.folder,
            resume=resume,
            validate=validate if config.validate_every else None,
            on_step=on_step,
            ranks=self.ranks,
        )
        self.progress.end()
        return trainer

    def finish(self, trainer: Trainer[PixelBatch], failed: FailedVideos) -> Evaluation | None:
        """Write both parts' averaged weights and the recipe; score the test subset."""
        learner = trainer.learner
        prefix = "detector."
        state = {
            name.removeprefix(prefix): value
            for name, value in trainer.ema.state.items()
            if name.startswith(prefix)
        }
        with trainer.ema.applied_to(trainer.model):
            spec = self._save_backbone()
            recipe = replace(
                self.plan.recipe, features=(spec,), resized_pixels=self.pixels.grid.resize
            )
            write_json(self.own / RECIPE_FILE, recipe.to_mapping())
            save_weights(self.own / MODEL_FILE, state)
            test = self.plan.subsets.test
            if test is None:
                return None
            found = self.plan.labelled(self._detect(learner.detector, test, failed, self.progress))
            save_detections(self.own / DETECTIONS_FILE, found)
            evaluation = self.plan.score(found, test)
            evaluation.save(self.own / EVALUATION_FILE)
            return evaluation

    def _save_backbone(self) -> FeatureSpec:
        """Keep the tuned backbone; the spec of the features it makes."""
        spec = self.pixels.spec
        if self.pixels.config.tune == "frozen":
            return spec
        path = self.own / BACKBONE_FILE
        save_backbone(path, self.pixels.backbone)
        tuned = load_backbone(spec.backbone, path)
        adapters = tuned.adapter_sha256 if isinstance(tuned, Adaptable) else ""
        if self.ranks.is_first:
            remember_weights(adapters or tuned.weights_sha256, KnownWeights(path))
        return replace(spec, weights_sha256=tuned.weights_sha256, adapter_sha256=adapters)

    def _detect(
        self, detector: nn.Module, subset: str, failed: FailedVideos, progress: Progress
    ) -> Detections:
        """Detections of the subset, each video in one process."""
        share = dict(self.ranks.share(list(self.plan.coverage(subset).stored_as.items())))
        label = f"detect on '{subset}'"
        found = detect_on_videos(
            detector, self.table, self.plan, share, failed, label=label, progress=progress
        )
        return self.ranks.merged(found)


def _sizes(learner: E2ELearner) -> dict[str, int]:
    """How many parameters train, by group."""
    groups = {"detector": dict(learner.detector.named_parameters())}
    groups |= trainable_groups(learner.backbone)
    return {
        name: sum(p.numel() for p in parameters.values() if p.requires_grad)
        for name, parameters in groups.items()
    }
