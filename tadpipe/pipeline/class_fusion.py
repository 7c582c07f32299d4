"""Class scores at work: a file that is read and checked, and detections that get its labels.

Soft-NMS runs before, over all classes together; the label of a detection comes from the video it
is in (`class_scores.py`). Without class scores a class-agnostic detector is scored under one label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tadpipe.annotations import Annotations, Detections
from tadpipe.class_scores import ClassFusionConfig, fuse_class_scores
from tadpipe.config import apply_sets, build, to_mapping
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import ConfigError
from tadpipe.pipeline.class_score_files import VideoScores, read_class_scores
from tadpipe.pipeline.recipe import ANY_LABEL, Recipe, load_recipe
from tadpipe.pipeline.run_folder import CONFIG_FILE
from tadpipe.pipeline.score_table import count_text
from tadpipe.pipeline.video_files import printable

SHOWN = 10  # videos that an error or a summary names


@dataclass(frozen=True)
class ClassScores:
    """A score file, and what becomes of the videos it does not have."""

    file: str
    sha256: str
    videos: VideoScores  # by name without the data set's prefix
    prefix: str  # of video files, absent in annotations
    skip_unscored: bool

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the videos that the file does not have."""
        return tuple(n for n in names if n.removeprefix(self.prefix) not in self.videos)

    def check(self, names: Iterable[str]) -> None:
        """Refuse videos without class scores, unless they are to be skipped.

        Raises:
            ConfigError: names them.
        """
        missing = self.missing(names)
        if missing and not self.skip_unscored:
            raise ConfigError(
                f"{count_text(len(missing), 'video')} without class scores.",
                f"{self.file} does not have: {_some(missing)}",
                "Use the score file of these videos; with --skip-unscored they get no detections.",
            )

    def label(self, found: Detections, rule: ClassFusionConfig) -> Detections:
        """The detections with labels, best first; none in a video that is skipped.

        Raises:
            ConfigError: a video without scores that is not to be skipped, or scores below 0.
        """
        self.check(found)
        labelled: Detections = {}
        for name, detections in found.items():
            scores = self.videos.get(name.removeprefix(self.prefix))
            fused = [] if scores is None else fuse_class_scores(detections, scores, rule)
            labelled[name] = sorted(fused, key=lambda each: -each.score)  # stable
        return labelled

    def stated(self, rule: ClassFusionConfig) -> dict[str, Any]:
        """JSON-ready: where labels come from, and how."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "skip_unscored": self.skip_unscored,
            **to_mapping(rule),
        }


def load_class_scores(
    path: str | Path,
    annotations: Annotations,
    spec: DatasetSpec | None,
    *,
    skip_unscored: bool,
) -> ClassScores:
    """Read a score file for the labels of annotations; without labels, for whatever it names.

    Raises:
        AnnotationError: see `read_class_scores`.
    """
    prefix = "" if spec is None else spec.feature_prefix
    scores = read_class_scores(path, annotations.labels, annotations.label_ids)
    videos = {name.removeprefix(prefix): entry for name, entry in scores.items()}
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ClassScores(str(path), sha256, videos, prefix, skip_unscored)


def takes_class_scores(recipe: Recipe) -> bool:
    """Whether NMS ran over all classes together, so that labels can be given afterwards."""
    return recipe.windows.class_agnostic or not recipe.nms.multiclass


def check_takes_class_scores(recipe: Recipe) -> None:
    """Refuse class scores for detections that NMS has treated class by class.

    Raises:
        ConfigError: it has.
    """
    if not takes_class_scores(recipe):
        raise ConfigError(
            "Class scores need class-agnostic NMS.",
            f"{recipe.detector}, preset {recipe.preset}: nms.multiclass = true",
            "Leave --class-scores out, or train with --set nms.multiclass=false.",
        )


def changed_rule(rule: ClassFusionConfig, sets: Sequence[str]) -> ClassFusionConfig:
    """The rule with `class_scores.key=value` assignments.

    Raises:
        ConfigError: another table, an unknown key or a wrong value.
    """
    changed = apply_sets({"class_scores": to_mapping(rule)}, sets)
    others = [name for name in changed if name != "class_scores"]
    if others:
        raise ConfigError(
            "Only class_scores can be changed here.",
            f"--set {others[0]}...",
            "Example: --set class_scores.rule=product",
        )
    return build(ClassFusionConfig, changed["class_scores"], "--set: class_scores")


def check_used(path: str | Path | None, sets: Sequence[str], *, skip_unscored: bool) -> None:
    """Refuse settings of class scores without class scores.

    Raises:
        ConfigError: --set or --skip-unscored alone.
    """
    if path is None and (sets or skip_unscored):
        raise ConfigError(
            "There are no class scores to apply this to.",
            " ".join([*(f"--set {each}" for each in sets), "--skip-unscored" * skip_unscored]),
            "Give --class-scores FILE.",
        )


def with_one_label(annotations: Annotations) -> Annotations:
    """What a class-agnostic detector without class scores is scored against."""
    videos = {
        name: replace(
            video, actions=tuple(action._replace(label=ANY_LABEL) for action in video.actions)
        )
        for name, video in annotations.videos.items()
    }
    return replace(annotations, videos=videos, labels=(ANY_LABEL,), label_ids={})


class Labelled(NamedTuple):
    """Detections and what they are scored against."""

    found: Detections
    truth: Annotations
    has_one_label: bool = False  # nothing names the actions
    class_scores: Mapping[str, Any] | None = None  # where the labels come from
    unscored: tuple[str, ...] = ()  # videos skipped without class scores


def labelled_for_scoring(
    found: Detections,
    run: Path | None,
    truth: Annotations,
    spec: DatasetSpec | None,
    *,
    class_scores: str | Path | None,
    skip_unscored: bool,
    sets: Sequence[str],
) -> Labelled:
    """Give stored detections labels by class scores; without any, say what they are scored as.

    Args:
        run: run folder the detections are from, if any; its recipe has the rule, else it is that
            of ActionFormer. `sets` change it.
    Raises:
        ConfigError: the detections have labels already, or see `ClassScores.label`.
        AnnotationError: see `read_class_scores`.
    """
    check_used(class_scores, sets, skip_unscored=skip_unscored)
    before = None if run is None else _stated_before(run / CONFIG_FILE)
    labels = {detection.label for detections in found.values() for detection in detections}
    if class_scores is None:
        if labels == {ANY_LABEL} and ANY_LABEL not in truth.labels:
            return Labelled(found, with_one_label(truth), has_one_label=True)
        return Labelled(found, truth, class_scores=before)
    rule = ClassFusionConfig()
    if before is not None or (run is None and len(labels) > 1):
        raise ConfigError(
            "The detections have labels already.",
            f"{len(labels)} labels" if before is None else f"{run}: by {before.get('file')}",
            "Leave --class-scores out, or detect again without class scores.",
        )
    if run is not None:
        recipe = load_recipe(run)
        check_takes_class_scores(recipe)
        rule = recipe.class_scores
    rule = changed_rule(rule, sets)
    scores = load_class_scores(class_scores, truth, spec, skip_unscored=skip_unscored)
    return Labelled(
        scores.label(found, rule),
        truth,
        class_scores=scores.stated(rule),
        unscored=scores.missing(found),
    )


def _stated_before(path: Path) -> Mapping[str, Any] | None:
    """The class scores that a run's detections were labelled with.

    Raises:
        ConfigError: the run's config.json cannot be read.
    """
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        stated = config.get("class_scores")
    except (ValueError, AttributeError) as error:
        raise ConfigError("The run's configuration cannot be read.", f"{path}: {error}") from None
    return stated if isinstance(stated, dict) else None


def source_text(stated: Mapping[str, Any] | None, skipped: Sequence[str] = ()) -> str:
    """Where the labels come from, for a person.

    Args:
        stated: as `ClassScores.stated`; None where no class scores were given.
        skipped: videos without class scores.
    """
    if stated is None:
        return f"no class scores given: all actions under the one label '{ANY_LABEL}'"
    rule = "sqrt(score x class score)" if stated["rule"] == "sqrt" else "score x class score"
    scale = "" if stated["scale"] == "none" else f", class scores by {stated['scale']}"
    text = (
        f"labels by class scores {stated['file']}: {rule}{scale}, "
        f"top {count_text(stated['top_k'], 'class', 'classes')}"
    )
    if skipped:
        videos = count_text(len(skipped), "video")
        text += f"\n{videos} skipped without class scores: {_some(skipped)}"
    return text


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
