"""The runs of a report: which ones, scored anew with their errors, and whether they compare."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tadpipe.annotations import Annotations
from tadpipe.datasets import DATASETS
from tadpipe.datasets.annotation_files import read_annotations
from tadpipe.datasets.epic_files import is_epic
from tadpipe.errors import ConfigError
from tadpipe.evaluation.diagnosis import Diagnosis
from tadpipe.pipeline.class_fusion import takes_class_scores
from tadpipe.pipeline.evaluate import DETECTIONS_FILE, evaluate
from tadpipe.pipeline.evaluation_result import Evaluation
from tadpipe.pipeline.recipe import RECIPE_FILE, load_recipe
from tadpipe.pipeline.run_folder import CONFIG_FILE
from tadpipe.pipeline.run_settings import run_settings
from tadpipe.pipeline.score_table import count_text
from tadpipe.pipeline.video_files import printable
from tadpipe.registry import resolve

NOTED = 5  # names that a note lists


@dataclass
class ScoredRun:
    """One scored run."""

    path: Path  # a run folder or a file of detections
    evaluation: Evaluation
    durations: Mapping[str, float]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def diagnosis(self) -> Diagnosis:
        """Of detection; of EPIC's three tasks that of actions."""
        assert self.evaluation.errors is not None
        return list(self.evaluation.errors.values())[-1]

    @property
    def group(self) -> str:
        """The same for runs that differ in the seed alone."""
        if not self.config:
            return str(self.path)
        return json.dumps({**self.config, "seed": None}, sort_keys=True)

    @property
    def scored_durations(self) -> dict[str, float]:
        """Seconds of the scored videos, as far as known."""
        scored = self.diagnosis.problem.truth.videos
        return {name: self.durations[name] for name in scored if name in self.durations}


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders and result files; a folder without detections stands for the runs below it.

    Raises:
        ConfigError: none given, or a folder without any.
    """
    if not paths:
        raise ConfigError("No run to report on.", todo="Name run folders or results JSON.")
    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or (path / DETECTIONS_FILE).is_file():
            found.append(path)
            continue
        depths = ("*", "*/*")
        inside = [
            p.parent for depth in depths for p in sorted(path.glob(f"{depth}/{DETECTIONS_FILE}"))
        ]
        if not inside:
            raise ConfigError(
                "The folder holds no finished run.",
                f"{printable(path)}: no {DETECTIONS_FILE}, here or two folders below",
                "Name the folders of runs whose training has finished.",
            )
        found += inside
    unique = {os.path.realpath(path): path for path in found}
    return list(unique.values())


def score_run(
    path: Path,
    annotations: str | Path | Annotations | None,
    dataset: str | None,
    subset: str | None,
    class_scores: str | Path | None,
    skip_unscored: bool,
    truths: dict[str, str | Path | Annotations],
) -> ScoredRun:
    """Score one run; `truths` keeps annotations that were read already."""
    settings = run_settings(path)
    if annotations is None:
        annotations = settings.annotations
        dataset, subset = dataset or settings.dataset, subset or settings.subset
    spec = resolve("dataset", DATASETS, dataset) if dataset else None
    if isinstance(annotations, (str, Path)) and not is_epic(Path(annotations)):
        key = f"{annotations}\n{dataset}"
        if key not in truths:
            truths[key] = read_annotations(annotations, spec, strict=True, for_evaluation=True)
        annotations = truths[key]
    has_recipe = path.is_dir() and (path / RECIPE_FILE).is_file()
    with_scores = class_scores is not None and (
        not has_recipe or takes_class_scores(load_recipe(path))
    )
    evaluation = evaluate(
        path,
        annotations=annotations,
        dataset=dataset,
        subset=subset,
        class_scores=class_scores if with_scores else None,
        skip_unscored=skip_unscored and with_scores,
        errors=True,
    )
    durations = {}
    if isinstance(annotations, Annotations):
        durations = {
            name: video.duration_sec
            for name, video in annotations.videos.items()
            if video.duration_sec is not None
        }
    return ScoredRun(path, evaluation, durations, _config(path))


def _config(path: Path) -> Mapping[str, Any]:
    """The run's configuration, which `run_settings` could read; nothing for a results file."""
    file = path / CONFIG_FILE
    config: Mapping[str, Any] = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    )
    return config


def check_comparable(runs: Sequence[ScoredRun]) -> None:
    """Refuse runs that were scored on different actions or thresholds.

    Raises:
        ConfigError: names the first two that differ.
    """
    first = runs[0]
    for run in runs[1:]:
        if _same_task(first, run):
            continue
        tasks = [f"{printable(each.path)}: {task_text(each)}" for each in (first, run)]
        raise ConfigError(
            "The runs are scored on different actions, so one page cannot compare them.",
            "\n".join(tasks),
            "Write a report for each kind, or give all of them the same --annotations, --dataset "
            "and --subset (for detectors without classes --class-scores).",
        )


def _same_task(a: ScoredRun, b: ScoredRun) -> bool:
    ours, theirs = a.diagnosis.problem.truth, b.diagnosis.problem.truth
    names = (ours.videos, ours.labels) == (theirs.videos, theirs.labels)
    return (
        names
        and a.diagnosis.tious == b.diagnosis.tious
        and a.evaluation.has_one_label == b.evaluation.has_one_label
        and all(
            np.array_equal(getattr(ours, column), getattr(theirs, column))
            for column in ("video", "label", "start_sec", "end_sec")
        )
    )


def task_text(run: ScoredRun) -> str:
    truth = run.diagnosis.problem.truth
    kind = "without classes" if run.evaluation.has_one_label else "by class"
    parts = [
        f"'{run.evaluation.subset}'",
        count_text(len(truth.videos), "video"),
        count_text(truth.video.size, "action"),
        count_text(len(truth.labels), "class", "classes"),
        f"tIoU {', '.join(f'{tiou:g}' for tiou in run.diagnosis.tious)}",
    ]
    return f"{', '.join(parts)}, {kind}"


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each run: its folder's; that above where it is only called by a seed."""
    names = []
    for path in (Path(os.path.abspath(path)) for path in paths):
        own = path.name if path.is_dir() else path.stem
        names.append(path.parent.name if re.fullmatch(r"seed\d+", own) else own)
    longer = [
        f"{name} ({Path(os.path.abspath(path)).parent.name})" if names.count(name) > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]
    return [
        f"{name} {longer[: i + 1].count(name)}" if longer.count(name) > 1 else name
        for i, name in enumerate(longer)
    ]


def notes_of(run: ScoredRun, *, with_seed: bool) -> list[str]:
    """What was left out of a score, or is odd."""
    score, seed = run.evaluation.score, run.config.get("seed")
    notes = []
    for names, what in (
        (score.missing, "videos with actions have no detection"),
        (score.foreign, "videos with detections are not in the subset"),
        (score.blocked, "videos are left out by the block list"),
        ([f"{label} ({n})" for label, n in score.unknown_labels.items()],
         "predicted labels are no class"),
        (run.evaluation.unscored, "videos have no class scores"),
        ([str(defect) for defect in run.evaluation.defects], "oddities in the annotations"),
    ):  # fmt: skip
        if names:
            more = ", ..." if len(names) > NOTED else ""
            notes.append(f"{len(names)} {what}: {', '.join(names[:NOTED])}{more}")
    if score.tied_scores:
        notes.append(f"{score.tied_scores} detections share their score with another one")
    if run.diagnosis.dropped:
        notes.append(
            f"{run.diagnosis.dropped} actions of no length or longer than their video are left "
            "out of the diagnosis and the viewer"
        )
    return [f"seed {seed}: {note}" for note in notes] if with_seed else notes
