"""What a training run will do, decided before anything is written.

From stores, preset and annotations follow the labels, the subsets, the videos on both sides and
the recipe; whatever does not fit together is an error here.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tadpipe.annotations import Annotations, Detections, Video
from tadpipe.config import to_mapping
from tadpipe.datasets import DATASETS
from tadpipe.datasets.annotation_files import read_annotations
from tadpipe.datasets.sources import Coverage, FeatureSource, match_videos
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.datasets.windows import TrainingWindows
from tadpipe.errors import ConfigError, StoreError
from tadpipe.pipeline.class_fusion import (
    ClassScores,
    check_takes_class_scores,
    check_used,
    load_class_scores,
    takes_class_scores,
    with_one_label,
)
from tadpipe.pipeline.evaluate import evaluate
from tadpipe.pipeline.evaluation_result import Evaluation
from tadpipe.pipeline.feature_tables import Table
from tadpipe.pipeline.presets import Preset
from tadpipe.pipeline.recipe import ANY_LABEL, Recipe, check_preset
from tadpipe.pipeline.subsets import Subsets, choose_subsets
from tadpipe.registry import resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainPlan:
    """Everything that is decided before the first step."""

    preset_name: str
    preset: Preset
    recipe: Recipe
    tables: tuple[Table, ...]
    source: FeatureSource
    annotations: Annotations  # what is trained on
    annotations_path: str | Path | None  # None = the store's copy
    spec: DatasetSpec | None
    subsets: Subsets
    seed: int
    scores: ClassScores | None = None  # that name the actions found

    def coverage(self, subset: str) -> Coverage:
        """Which videos of a subset have features."""
        return match_videos(
            self.annotations.videos,
            list(self.annotations.subset(subset)),
            self.source.names,
            "" if self.spec is None else self.spec.feature_prefix,
        )

    def training_windows(self) -> TrainingWindows:
        """The videos trained on.

        Raises:
            StoreError: no video of the training subset has features.
        """
        videos = self.annotations.subset(self.subsets.train)
        stored_as = self.coverage(self.subsets.train).stored_as
        if not stored_as:
            raise StoreError(
                "No video of the training subset has features.",
                f"{self.store_names()}: {len(self.source.names)} videos "
                f"({_some(self.source.names)});  {self.annotations.source}: {len(videos)} videos "
                f"of '{self.subsets.train}' ({_some(list(videos))})",
                "Extract these videos, or name another store, --annotations or --subset.",
            )
        chosen = {stored: videos[name] for name, stored in stored_as.items()}
        return TrainingWindows(
            self.source, chosen, self.label_ids(), self.recipe.windows, self.recipe.window_len
        )

    def label_ids(self) -> dict[str, int]:
        """Annotated label -> class number; all of them 0 for a class-agnostic detector."""
        if self.recipe.windows.class_agnostic:
            return dict.fromkeys(self.annotations.labels, 0)
        return self.recipe.label_ids

    @property
    def has_one_label(self) -> bool:
        """Whether actions are found without names: no classes and no class scores."""
        return self.recipe.windows.class_agnostic and self.scores is None

    def truth(self) -> Annotations:
        """What is scored against; one label for all where nothing tells them apart."""
        kept = _load(self.annotations_path, self.tables, self.spec, for_evaluation=True)
        return with_one_label(kept) if self.has_one_label else kept

    def with_scores(self, scores: ClassScores) -> TrainPlan:
        """The plan with class scores for what is found.

        Raises:
            ConfigError: NMS is by class, or a video that is detected on has no class scores.
        """
        check_takes_class_scores(self.recipe)
        looked_at = [self.subsets.test]
        if self.preset.training.validate_every:
            looked_at.append(self.subsets.validation)
        for subset in looked_at:
            if subset is not None:
                scores.check(self.coverage(subset).stored_as)
        return replace(self, scores=scores)

    def with_score_file(self, class_scores: str | Path | None, *, skip_unscored: bool) -> TrainPlan:
        """The plan with the class scores of a file, if one is given.

        Raises:
            ConfigError: see `with_scores` and `check_used`. AnnotationError: a wrong file.
        """
        check_used(class_scores, (), skip_unscored=skip_unscored)
        if class_scores is None:
            return self
        return self.with_scores(
            load_class_scores(
                class_scores, self.annotations, self.spec, skip_unscored=skip_unscored
            )
        )

    def labelled(self, found: Detections) -> Detections:
        """What was found, with labels by the class scores if there are any."""
        return found if self.scores is None else self.scores.label(found, self.recipe.class_scores)

    def stated_scores(self) -> dict[str, Any] | None:
        """Where the labels come from, JSON-ready; None without class scores."""
        return None if self.scores is None else self.scores.stated(self.recipe.class_scores)

    def score(self, found: Detections, subset: str) -> Evaluation:
        """mAP on a subset, by the data set's thresholds and protocol."""
        evaluation = evaluate(
            found,
            annotations=self.truth(),
            dataset=None if self.spec is None else self.spec.name,
            subset=subset,
        )
        return replace(
            evaluation,
            has_one_label=self.has_one_label,
            class_scores=self.stated_scores(),
            unscored=() if self.scores is None else self.scores.missing(found),
        )

    def durations_sec(self, videos: Mapping[str, str]) -> dict[str, float | None]:
        """Length of annotated videos: as annotated, else as stored."""
        annotated = self.annotations.videos
        return {
            name: annotated[name].duration_sec or self.tables[0].duration_sec(stored)
            for name, stored in videos.items()
        }

    def store_names(self) -> str:
        return ", ".join(table.store for table in self.tables)

    def config(self) -> dict[str, Any]:
        """What the run folder's config.json holds."""
        config = {
            "preset": self.preset_name,
            "detector": self.preset.detector,
            "dataset": None if self.spec is None else self.spec.name,
            "stores": [table.store for table in self.tables],
            "annotations": self.annotations.source,
            "subsets": self.subsets._asdict(),
            "labels": list(self.recipe.labels),
            "seed": self.seed,
            "features": [{**to_mapping(s), "fid": s.fid} for s in self.recipe.features],
            "model": self.recipe.model,
            "decode": to_mapping(self.preset.decode),
            "nms": to_mapping(self.preset.nms),
            "windows": to_mapping(self.preset.windows),
            "training": to_mapping(self.preset.training),
        }
        if self.scores is not None:
            config["class_scores"] = self.stated_scores()
        return config


def make_plan(
    tables: Sequence[Table],
    preset_name: str,
    preset: Preset,
    *,
    annotations: str | Path | None,
    dataset: str | None,
    subset: str | None,
    test_subset: str | None,
    val_subset: str | None,
    seed: int,
) -> TrainPlan:
    """Decide everything; arguments as in `train_detector`.

    Raises:
        ConfigError, AnnotationError, StoreError: something is missing or does not fit.
    """
    names = [table.store for table in tables]
    specs = tuple(table.spec for table in tables)
    check_preset(preset.features, preset_name, preset.detector, specs, names)
    name = dataset or preset.dataset
    spec: DatasetSpec | None = resolve("dataset", DATASETS, name) if name else None
    truth = _load(annotations, tables, spec)
    subsets = choose_subsets(truth, spec, train=subset, test=test_subset, validation=val_subset)
    preset = _with_validation(preset, subsets, asked=val_subset is not None)
    widths = tuple(spec.channels for spec in specs)
    labels = (ANY_LABEL,) if preset.windows.class_agnostic else truth.labels
    if not labels:
        raise ConfigError("The annotations have no labels.", truth.source, "Annotate some actions.")
    model = preset.model_config(
        widths if preset.features.separate else sum(widths), len(labels), preset_name
    )
    model = _without_empty_classes(model, preset, truth.subset(subsets.train), labels)
    recipe = Recipe(
        detector=preset.detector,
        preset=preset_name,
        dataset=name,
        features=specs,
        labels=tuple(labels),
        model=to_mapping(model),
        decode=preset.decode,
        nms=preset.nms,
        windows=preset.windows,
        class_scores=preset.class_scores,
    )
    source = FeatureSource(tables)
    if source.only_in_some:
        logger.warning(
            "%d videos are not in all of %s: %s",
            len(source.only_in_some),
            ", ".join(names),
            _some(source.only_in_some),
        )
    return TrainPlan(
        preset_name,
        preset,
        recipe,
        tuple(tables),
        source,
        truth,
        annotations,
        spec,
        subsets,
        seed,
    )


def with_class_scores(
    plans: dict[str, TrainPlan], path: str | Path | None, skip_unscored: bool
) -> dict[str, TrainPlan]:
    """Plans of several detectors, with class scores for those that can use them.

    Raises:
        ConfigError: no detector can use them, or a test video has none.
        AnnotationError: see `read_class_scores`.
    """
    check_used(path, (), skip_unscored=skip_unscored)
    if path is None:
        return plans
    first = next(iter(plans.values()))
    taking = [detector for detector, plan in plans.items() if takes_class_scores(plan.recipe)]
    if not taking:
        check_takes_class_scores(first.recipe)  # says why
    scores = load_class_scores(path, first.annotations, first.spec, skip_unscored=skip_unscored)
    return {
        detector: plan.with_scores(scores) if detector in taking else plan
        for detector, plan in plans.items()
    }


def _load(
    path: str | Path | None,
    tables: Sequence[Table],
    spec: DatasetSpec | None,
    *,
    for_evaluation: bool = False,
) -> Annotations:
    """The annotations asked for, else the first copy a store remembers."""
    if path is not None:
        return read_annotations(path, spec, for_evaluation=for_evaluation)
    for table in tables:
        kept = table.remembered_annotations(spec, for_evaluation=for_evaluation)
        if kept is not None:
            return kept
    raise ConfigError(
        "No annotations to train with.",
        f"{', '.join(table.store for table in tables)} remembers none",
        "Give --annotations, or set `annotations` in tadpipe.toml and extract again.",
    )


def _with_validation(preset: Preset, subsets: Subsets, *, asked: bool) -> Preset:
    """A validation subset that was asked for is reported ten times, unless the preset says."""
    training = preset.training
    if training.validate_every and subsets.validation is None:
        raise ConfigError(
            "No subset to validate on.",
            f"training.validate_every = {training.validate_every}",
            "Name one with --val-subset; it must not be the test subset.",
        )
    if asked and not training.validate_every:
        every = max(training.epochs_to_run // 10, 1)
        return replace(preset, training=replace(training, validate_every=every))
    return preset


def _without_empty_classes(
    model: Any, preset: Preset, videos: Mapping[str, Video], labels: Sequence[str]
) -> Any:
    """Name the classes without a training action to a detector that holds them down.

    EPIC-Kitchens-100 numbers 300 nouns of which some never occur (ActionFormer, `head_empty_cls`).
    """
    known = {field.name for field in dataclasses.fields(model)}
    if "empty_classes" not in known or "empty_classes" in preset.model:
        return model
    if preset.windows.class_agnostic:
        return model
    seen = {action.label for video in videos.values() for action in video.actions}
    empty = tuple(number for number, label in enumerate(labels) if label not in seen)
    return replace(model, empty_classes=empty)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
