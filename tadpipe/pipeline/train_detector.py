"""From a feature store to a trained and scored detector: what `tadpipe train-detector` does.

Order: what to train on (features, annotations, subsets, labels) -> Plan -> train -> weights ->
detections and score of the test subset. Nothing is chosen by the test subset: it is looked at
once, after the last epoch.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tadpipe.annotations import Detections, save_detections
from tadpipe.datasets.loader import Batch, WindowLoader
from tadpipe.pipeline.detect import detect_on_source
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.evaluate import DETECTIONS_FILE, Evaluation
from tadpipe.pipeline.evaluation_result import EVALUATION_FILE
from tadpipe.pipeline.feature_tables import open_tables
from tadpipe.pipeline.presets import choose_preset, load_preset
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.recipe import (
    MODEL_FILE,
    PLAIN_FILE,
    RECIPE_FILE,
    check_recipe,
    load_detector,
    load_recipe,
)
from tadpipe.pipeline.run_folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    check_run_folder,
    environment,
    write_json,
)
from tadpipe.pipeline.subsets import Subsets
from tadpipe.pipeline.train_plan import TrainPlan, make_plan
from tadpipe.training.checkpoint import save_weights
from tadpipe.training.distributed import Ranks, join, own_device
from tadpipe.training.loop import DetectorLearner, Trainer, train
from tadpipe.training.metrics import read_metrics

logger = logging.getLogger(__name__)

MOST_OF_START = 0.2  # published trainings keep up to 13.5 % of the initial weights

__all__ = ["TrainResult", "load_detector", "train_detector"]


@dataclass(frozen=True)
class TrainResult:
    """What a training run did."""

    run: Path
    detector: str
    preset: str
    parameters: int
    videos: int  # trained on
    epochs: int
    steps: int  # in all; with dry_run, those it would take
    subsets: Subsets
    without_features: tuple[str, ...]  # annotated videos of the subsets used
    without_annotations: tuple[str, ...]  # stored videos the annotations do not have
    dry_run: bool = False
    seconds: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)  # means over the last epoch
    evaluation: Evaluation | None = None  # of the averaged weights on the test subset

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        mapping = {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "run": str(self.run),
            "subsets": self.subsets._asdict(),
            "without_features": list(self.without_features),
            "without_annotations": list(self.without_annotations),
            "losses": dict(self.losses),
        }
        mapping["evaluation"] = None if self.evaluation is None else self.evaluation.to_mapping()
        return mapping

    def text(self) -> str:
        """The score, what was left out, and one summary line."""
        lines = [] if self.evaluation is None else [self.evaluation.text()]
        for names, what in (
            (self.without_features, "annotated videos have no features"),
            (self.without_annotations, "stored videos have no annotations"),
        ):
            if names:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                lines.append(f"{len(names)} {what}: {shown}")
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        verb = "would train" if self.dry_run else "trained"
        lines.append(
            f"{verb} {self.detector} ({self.parameters:,} parameters, preset "
            f"{self.preset}) on {self.videos} videos of '{self.subsets.train}', {self.epochs} "
            f"epochs, {self.steps} steps"
            + (f", last epoch {losses}" if losses else "")
            + (f", {self.seconds:.0f} s" if not self.dry_run else "")
            + f" -> {self.run}"
        )
        return "\n".join(lines)


def train_detector(
    features: str | Path | Sequence[str | Path],
    *,
    detector: str | None = None,
    preset: str | None = None,
    sets: Sequence[str] = (),
    out: str | Path | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
    annotations: str | Path | None = None,
    dataset: str | None = None,
    subset: str | None = None,
    test_subset: str | None = None,
    val_subset: str | None = None,
    backbone: str | None = None,
    stride: int | None = None,
    class_scores: str | Path | None = None,
    skip_unscored: bool = False,
    device: str = "auto",
    seed: int = 0,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train a detector on stored features.

    Args:
        features: a store, or several whose channels are concatenated on a common time axis.
        detector, preset: names; without a preset the detector's default one (actionformer).
        sets: changes of the preset, as "training.epochs=20".
        out: run folder; without it, `runs`/<detector>.
        resume: go on with the run in the folder; it must have the same configuration.
        annotations: JSON; without it, the copy a store remembers.
        subset, test_subset, val_subset: without them as the data set or the usual names tell.
            The test subset is scored once, at the end; the validation subset is reported every
            `training.validate_every` epochs and never chosen by.
        backbone, stride: which features, where a store holds several.
        class_scores: file of video-level class scores, which name the actions found; how they are
            fused is the preset's `[class_scores]`.
        skip_unscored: videos without class scores get no detections; without it an error.
    Raises:
        ConfigError, AnnotationError, StoreError, CheckpointError: before anything is written.
    """
    started = time.monotonic()
    device = own_device(resolve_device(device))
    paths = [features] if isinstance(features, (str, Path)) else list(features)
    tables = open_tables([Path(path) for path in paths], backbone=backbone, stride=stride)
    preset_name = choose_preset(detector, preset)
    plan = make_plan(
        tables,
        preset_name,
        load_preset(preset_name, sets, detector),
        annotations=annotations,
        dataset=dataset,
        subset=subset,
        test_subset=test_subset,
        val_subset=val_subset,
        seed=seed,
    )
    plan = plan.with_score_file(class_scores, skip_unscored=skip_unscored)
    folder = Path(out) if out is not None else Path(runs) / plan.preset.detector
    if resume and (folder / RECIPE_FILE).exists():
        names = [table.store for table in tables]
        check_recipe(load_recipe(folder), f"run {folder}", plan.recipe.features, names)
    check_run_folder(folder, plan.config(), resume=resume)
    torch.manual_seed(seed)
    model = plan.recipe.make_model()
    loader = WindowLoader(plan.training_windows(), plan.preset.training.batch_size, seed=seed)
    result = _describe(plan, folder, model, loader)
    if dry_run:
        return result
    ranks = join(device)
    with ranks.folder(folder) as own:
        ranks.check_batch(loader.batch_size)
        loader.part = ranks.part
        _write_start(own, plan, device)
        trainer = _train(model, loader, plan, folder, device, resume, progress, ranks)
        save_weights(own / MODEL_FILE, trainer.ema.state)
        save_weights(own / PLAIN_FILE, model.state_dict())
        evaluation = None
        if plan.subsets.test is not None:
            with trainer.ema.applied_to(model):
                found = plan.labelled(_detect(model, plan, plan.subsets.test, progress, ranks))
            save_detections(own / DETECTIONS_FILE, found)
            evaluation = plan.score(found, plan.subsets.test)
            evaluation.save(own / EVALUATION_FILE)
    return replace(
        result,
        dry_run=False,
        seconds=time.monotonic() - started,
        losses=last_epoch(folder, result.steps // result.epochs) if ranks.is_first else {},
        evaluation=evaluation,
    )


def _describe(plan: TrainPlan, folder: Path, model: nn.Module, loader: WindowLoader) -> TrainResult:
    """What would be trained; a run of it fills in the rest."""
    used = [name for name in plan.subsets if name is not None]
    missing = [video for name in used for video in plan.coverage(name).without_features]
    unknown = plan.coverage(plan.subsets.train).without_annotations
    for names, what in (
        (missing, "annotated videos without features"),
        (unknown, "stored videos without annotations"),
    ):
        if names:
            logger.warning("%d %s: %s", len(names), what, ", ".join(names[:5]))
    config = plan.preset.training
    steps = config.epochs_to_run * config.steps_per_epoch(loader.steps_per_pass)
    if config.ema_decay**steps > MOST_OF_START:
        logger.warning(
            "after %d steps the averaged weights still hold %.0f %% of the initial ones; "
            "lower training.ema_decay or train longer",
            steps,
            100 * config.ema_decay**steps,
        )
    return TrainResult(
        run=folder,
        detector=plan.preset.detector,
        preset=plan.preset_name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        videos=len(loader.windows.names),
        epochs=config.epochs_to_run,
        steps=steps,
        subsets=plan.subsets,
        without_features=tuple(missing),
        without_annotations=tuple(unknown),
        dry_run=True,
    )


def _write_start(folder: Path, plan: TrainPlan, device: str) -> None:
    """What the run is, before its first step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, plan.config())
    write_json(folder / RECIPE_FILE, plan.recipe.to_mapping())
    write_json(folder / ENVIRONMENT_FILE, environment(device, plan.seed))


def _train(
    model: nn.Module,
    loader: WindowLoader,
    plan: TrainPlan,
    folder: Path,
    device: str,
    resume: bool,
    progress: Progress,
    ranks: Ranks,
) -> Trainer[Batch]:
    """The loop, with progress in steps and the report on the validation subset."""
    config = plan.preset.training
    done = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal done
        progress.advance(step + 1 - done, f"loss {loss:.3f}")
        done = step + 1

    def validate(epoch: int) -> Mapping[str, float]:
        assert plan.subsets.validation is not None  # checked by the plan
        found = plan.labelled(_detect(model, plan, plan.subsets.validation, SILENT, ranks))
        average = plan.score(found, plan.subsets.validation).average_map
        logger.info("epoch %d: average mAP %.4f on '%s'", epoch, average, plan.subsets.validation)
        return {"epoch": epoch, "validation_map": average}

    steps = config.epochs_to_run * config.steps_per_epoch(loader.steps_per_pass)
    progress.begin("train", steps, "step")
    trainer = train(
        DetectorLearner(model, config, device),
        loader,
        config,
        folder,
        resume=resume,
        validate=validate if config.validate_every else None,
        on_step=on_step,
        ranks=ranks,
    )
    progress.end()
    return trainer


def _detect(
    model: nn.Module, plan: TrainPlan, subset: str, progress: Progress, ranks: Ranks
) -> Detections:
    """Detections of the subset's videos that have features, each video in one process."""
    videos = plan.coverage(subset).stored_as
    found = detect_on_source(
        model,
        plan.source,
        dict(ranks.share(list(videos.items()))),
        plan.recipe,
        durations_sec=plan.durations_sec(videos),
        label=f"detect on '{subset}'",
        progress=progress,
    )
    return ranks.merged(found)


def last_epoch(folder: Path, steps_per_epoch: int) -> dict[str, float]:
    """Mean of every loss term over the last epoch."""
    lines = [line for line in read_metrics(folder) if "loss" in line][-steps_per_epoch:]
    terms = [name for name in lines[0] if name not in ("step", "grad_norm", "learning_rate")]
    return {name: sum(line[name] for line in lines) / len(lines) for name in terms}
