"""What `tadpipe evaluate` does: detections against annotations, by a named protocol.

What was scored is always said beside the score: the number of videos, those without detections,
those blocked, labels that are no class, and equal scores, whose order decides the result.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tadpipe.annotations import (
    Annotations,
    Detections,
    load_annotations,
    load_detections,
)
from tadpipe.config import write_atomically
from tadpipe.datasets import DATASETS
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.epic_csv import load_epic_csv
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.evaluation.characteristics import Bins
from tadpipe.evaluation.detection_map import DetectionScore, score_detections
from tadpipe.evaluation.diagnosis import Diagnosis
from tadpipe.evaluation.epic import TIOUS as EPIC_TIOUS
from tadpipe.evaluation.epic import load_submission, score_epic
from tadpipe.evaluation.proposals import ProposalRecall, average_recall
from tadpipe.evaluation.protocols import Protocol, protocol_named
from tadpipe.evaluation.tables import DetectionTable, TruthTable
from tadpipe.json_text import read_json, shown
from tadpipe.pipeline.class_fusion import Labelled, check_used, labelled_for_scoring, source_text
from tadpipe.pipeline.error_analysis import (
    BinChoice,
    chosen_bins,
    find_epic_errors,
    find_errors,
)
from tadpipe.pipeline.error_table import errors_text
from tadpipe.pipeline.recipe import RECIPE_FILE
from tadpipe.pipeline.run_settings import run_settings
from tadpipe.pipeline.score_table import count_text, score_text
from tadpipe.registry import resolve

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)  # where no data set says otherwise
DETECTIONS_FILE = "detections.json"  # in a run folder
EVALUATION_FILE = "eval.json"
ERRORS_FILE = "errors.json"
TEXT_WIDTH = 120  # of the tables of errors, where no terminal has its own


@dataclass(frozen=True)
class Evaluation:
    """The scores of one evaluation and what they were computed from."""

    scores: Mapping[str, DetectionScore]  # task -> score; the only task is "detection", but EPIC
    subset: str
    detections: str = ""  # files, "" when given as objects
    annotations: str = ""
    dataset: str | None = None
    defects: tuple[Defect, ...] = ()  # of the annotations
    blocked_because: Mapping[str, str] | None = None  # video -> reason, as far as known
    proposals: ProposalRecall | None = None  # AR@AN, when asked for
    has_one_label: bool = False  # class-agnostic detections, and no class scores
    class_scores: Mapping[str, Any] | None = None  # where the labels come from, if from a file
    unscored: tuple[str, ...] = ()  # videos without class scores, whose detections were dropped
    errors: Mapping[str, Diagnosis] | None = None  # task -> diagnosis, when asked for

    @property
    def score(self) -> DetectionScore:
        """The score of detection; of EPIC's three tasks the score of actions."""
        return list(self.scores.values())[-1]

    @property
    def average_map(self) -> float:
        """Mean of mAP over the thresholds, a fraction."""
        return self.score.average_map

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready; fractions, not percent. Several tasks are nested by name."""
        mapping: dict[str, Any] = {
            "detections": self.detections,
            "annotations": self.annotations,
            "dataset": self.dataset,
            "subset": self.subset,
            "class_agnostic": self.has_one_label,
            "class_scores": self.class_scores,
            "unscored": list(self.unscored),
        }
        if len(self.scores) == 1:
            mapping |= self.score.to_mapping()
        else:
            mapping |= {task: score.to_mapping() for task, score in self.scores.items()}
        if self.blocked_because:
            reasons = self.blocked_because
            mapping["blocked_because"] = {v: reasons[v] for v in self.score.blocked if v in reasons}
        if self.proposals is not None:
            mapping["proposals"] = {
                "auc": self.proposals.auc,
                "average_recall": self.proposals.average_recall.tolist(),
                "proposals_per_video": self.proposals.proposals_per_video.tolist(),
            }
        mapping["annotation_defects"] = [str(defect) for defect in self.defects]
        if self.errors is not None:
            mapping["errors"] = self._errors_mapping(self.errors)
        return mapping

    def _errors_mapping(self, errors: Mapping[str, Diagnosis]) -> dict[str, Any]:
        documents = {task: diagnosis.to_mapping() for task, diagnosis in errors.items()}
        return documents if len(documents) > 1 else next(iter(documents.values()))

    def text(self, per_class: bool = False, width: int = TEXT_WIDTH) -> str:
        """The scores as tables for a person, in percent; those of errors are `width` wide."""
        heads = [name for name in (self.dataset, self.subset and f"subset {self.subset}") if name]
        blocks = [
            score_text(
                score,
                ", ".join([*heads, *([task] if len(self.scores) > 1 else [])]),
                per_class=per_class,
                blocked_because=self.blocked_because or {},
            )
            for task, score in self.scores.items()
        ]
        if self.proposals is not None:
            curve = self.proposals
            points = [n for n in (1, 5, 10, 50, 100) if n <= curve.proposals_per_video[-1] + 0.5]
            recalls = "  ".join(f"AR@{n} {100 * curve.at(n):.2f}" for n in points)
            blocks.append(f"proposals: {recalls}  AUC {100 * curve.auc:.2f}")
        if self.has_one_label or self.class_scores is not None:
            blocks.append(source_text(self.class_scores, self.unscored))
        errors = sum(not defect.is_warning for defect in self.defects)
        if errors:
            entries = count_text(errors, "annotation entry", "annotation entries")
            blocks.append(f"{entries} with errors left out")
        if len(self.defects) > errors:
            odd = [str(defect) for defect in self.defects if defect.is_warning]
            oddities = count_text(len(odd), "oddity", "oddities")
            blocks.append(f"{oddities} in the annotations, first: {odd[0]}")
        for task, diagnosis in (self.errors or {}).items():
            head = f"\n{task}" if len(self.scores) > 1 else ""
            blocks.append(f"{head}\n{errors_text(diagnosis, width=width, per_class=per_class)}")
        return "\n".join(blocks)

    def save(self, path: Path) -> None:
        """Write it as JSON; into a folder as `eval.json`, and the errors as `errors.json`."""
        mapping = self.to_mapping()
        if path.is_dir():
            if "errors" in mapping:
                write_atomically(path / ERRORS_FILE, json.dumps(mapping.pop("errors")) + "\n")
            path = path / EVALUATION_FILE
        write_atomically(path, json.dumps(mapping, indent=1) + "\n")


def evaluate(
    detections: str | Path | Detections,
    *,
    annotations: str | Path | Annotations | None = None,
    dataset: str | None = None,
    subset: str | None = None,
    protocol: str | Protocol | None = None,
    tious: Sequence[float] | None = None,
    blocked: str | Path | Collection[str] | None = None,
    top_k: Sequence[int] = (1, 5),
    max_an: int | None = None,
    skip_defects: bool = False,
    class_scores: str | Path | None = None,
    skip_unscored: bool = False,
    sets: Sequence[str] = (),
    errors: bool = False,
    bins: BinChoice | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Score detections.

    Args:
        detections: results JSON, a run folder that holds `detections.json`, or the detections.
        annotations: ActivityNet-style JSON, or the CSV of EPIC-Kitchens-100, whose submission
            JSON is scored in verbs, nouns and actions.  Default: what the run was trained with,
            and then its data set and test subset, too.
        dataset: a name of `tadpipe list datasets`: its test subset, thresholds, protocol, dropped
            labels and block list are used where nothing else is given.
        subset: needed when the annotations have several and no data set is named.
        protocol: activitynet, actionformer, opentad or epic, or own rules.  Default: opentad.
        tious: thresholds.  Default: the data set's, else 0.3 to 0.7 in steps of 0.1.
        blocked: videos to leave out, or a file that lists them; replaces the data set's own list.
        top_k: the k of Recall@kx.
        max_an: also compute AR@AN up to this average number of proposals per video.
        skip_defects: leave out annotation entries with errors instead of stopping.
        class_scores: file of video-level class scores, for detections of one label or of a run
            with class-agnostic NMS.
        skip_unscored: videos without class scores get no detections; without it an error.
        sets: changes of how class scores are fused, as "class_scores.rule=product".
        errors: also say what is wrong with the detections: `Evaluation.errors`.
        bins: of coverage, length and number of instances, for `errors`: activitynet, thumos14,
            quantiles, or a JSON file.  Default: the data set's, else quantiles.
        out: file for the result as JSON, or a folder: `eval.json` and `errors.json` in it.
    Raises:
        AnnotationError: files with defects, a subset that does not exist, no ground truth.
        ConfigError: no annotations, an unknown name, a threshold out of range.
    """
    if annotations is None:
        run = run_settings(detections)
        annotations, dataset = run.annotations, dataset or run.dataset
        subset = subset or run.subset
    if annotations is None:
        raise ConfigError(
            "No annotations to score against.",
            todo="Give --annotations, or set `annotations` in tadpipe.toml.",
        )
    spec: DatasetSpec | None = None
    if dataset is not None:
        spec = resolve("dataset", DATASETS, dataset)
    if bins is not None and not errors:
        raise ConfigError("Bins are for the analysis of errors.", f"{bins}", "Add --errors.")
    error_bins = chosen_bins(bins, dataset) if errors else None
    left_out = load_video_list(blocked) if isinstance(blocked, (str, Path)) else blocked
    if isinstance(annotations, (str, Path)) and Path(annotations).suffix.lower() == ".csv":
        if class_scores is not None:
            raise ConfigError(
                "Class scores are not for submissions of EPIC-Kitchens-100.",
                f"{annotations}, {class_scores}",
                "Give annotations in JSON.",
            )
        check_used(None, sets, skip_unscored=skip_unscored)
        rules = _rules(protocol, "epic")
        result = _evaluate_epic(
            detections, Path(annotations), rules, tious, left_out, top_k, error_bins
        )
    else:
        rules = _rules(protocol, spec.protocol if spec else "opentad")
        truth = _load_truth(annotations, spec, skip_defects)
        found, source = _load_found(detections)
        labelled = labelled_for_scoring(
            found,
            _run_of(source),
            truth,
            spec,
            class_scores=class_scores,
            skip_unscored=skip_unscored,
            sets=sets,
        )
        result = _evaluate_json(
            labelled, spec, subset, rules, tious, left_out, top_k, max_an, error_bins
        )
        result = replace(result, detections=source)
    if out is not None:
        result.save(Path(out))
    return result


def _evaluate_json(
    labelled: Labelled,
    spec: DatasetSpec | None,
    subset: str | None,
    rules: Protocol,
    tious: Sequence[float] | None,
    blocked: Collection[str] | None,
    top_k: Sequence[int],
    max_an: int | None,
    error_bins: Mapping[str, Bins] | None,
) -> Evaluation:
    found, truth = labelled.found, labelled.truth
    name = _subset_name(truth, spec, subset)
    reasons: Mapping[str, str] = {}
    if blocked is None:
        reasons = spec.blocked_videos(rules.name) if spec else {}
        blocked = tuple(reasons)
    ids = truth.label_ids or {label: i for i, label in enumerate(truth.labels)}
    truth_table = TruthTable.from_videos(truth.subset(name), ids)
    found_table = DetectionTable.from_detections(found)
    thresholds = tious or (spec.tious if spec else TIOUS)
    score = score_detections(
        truth_table, found_table, thresholds, protocol=rules, blocked=blocked, top_k=top_k
    )
    curve = None
    if max_an is not None:
        variant: Literal["activitynet", "opentad"] = (
            "opentad" if rules.name == "opentad" else "activitynet"
        )
        curve = average_recall(
            truth_table, found_table, thresholds, max_an=max_an, variant=variant, blocked=blocked
        )
    diagnosis = None
    if error_bins is not None:
        diagnosis = find_errors(
            truth,
            truth_table,
            found_table,
            thresholds,
            protocol=rules,
            blocked=blocked,
            bins=error_bins,
            has_one_label=labelled.has_one_label,
        )
    return Evaluation(
        {"detection": score},
        subset=name,
        annotations=truth.source,
        dataset=spec.name if spec else None,
        defects=truth.defects,
        blocked_because=reasons,
        proposals=curve,
        has_one_label=labelled.has_one_label,
        class_scores=labelled.class_scores,
        unscored=labelled.unscored,
        errors=None if diagnosis is None else {"detection": diagnosis},
    )


def _evaluate_epic(
    detections: str | Path | Detections,
    annotations: Path,
    rules: Protocol,
    tious: Sequence[float] | None,
    blocked: Collection[str] | None,
    top_k: Sequence[int],
    error_bins: Mapping[str, Bins] | None,
) -> Evaluation:
    if not isinstance(detections, (str, Path)):
        raise ConfigError(
            "Detections of EPIC-Kitchens-100 are scored from a submission file.",
            str(annotations),
            "Give the path of the submission JSON, or annotations in JSON.",
        )
    path = _detection_file(Path(detections))
    truth, found = load_epic_csv(annotations), load_submission(path)
    thresholds, left_out = tious or EPIC_TIOUS, blocked or ()
    scores = score_epic(truth, found, thresholds, protocol=rules, blocked=left_out, top_k=top_k)
    errors = None
    if error_bins is not None:
        errors = find_epic_errors(
            annotations,
            truth,
            found,
            thresholds,
            protocol=rules,
            blocked=left_out,
            bins=error_bins,
        )
    return Evaluation(
        scores, subset="", detections=str(path), annotations=str(annotations), errors=errors
    )


def _rules(protocol: str | Protocol | None, default: str) -> Protocol:
    return protocol if isinstance(protocol, Protocol) else protocol_named(protocol or default)


def _load_truth(
    annotations: str | Path | Annotations, spec: DatasetSpec | None, skip_defects: bool
) -> Annotations:
    if isinstance(annotations, Annotations):
        return annotations
    return load_annotations(
        annotations,
        strict=not skip_defects,
        drop_labels=spec.dropped_labels if spec else (),
        for_evaluation=True,
    )


def _load_found(detections: str | Path | Detections) -> tuple[Detections, str]:
    """The detections and the file they came from."""
    if not isinstance(detections, (str, Path)):
        return detections, ""
    path = _detection_file(Path(detections))
    return load_detections(path), str(path)


def _detection_file(path: Path) -> Path:
    """The file itself, or the one in a run folder.

    Raises:
        ConfigError: a folder without detections.
    """
    if not path.is_dir():
        return path
    inside = path / DETECTIONS_FILE
    if not inside.is_file():
        raise ConfigError(
            "The folder holds no detections.",
            str(inside),
            "Give a results JSON, or a run folder whose training has finished.",
        )
    return inside


def _run_of(source: str) -> Path | None:
    """The run folder that a file of detections was written to by its training."""
    folder = Path(source).parent
    is_run = Path(source).name == DETECTIONS_FILE and (folder / RECIPE_FILE).is_file()
    return folder if is_run else None


def _subset_name(truth: Annotations, spec: DatasetSpec | None, subset: str | None) -> str:
    """The subset to score, as the annotations spell it.

    Raises:
        AnnotationError: it does not exist, or there are several to choose from.
    """
    names = truth.subset_names()
    if subset is not None:
        spelled = {name.lower(): name for name in names}
        # An unknown name is passed on: Annotations.subset raises and lists those that exist.
        return spelled.get(subset.lower(), subset)
    if spec is not None and len(names) > 1:
        return spec.split(names, truth.source).test
    if len({name.lower() for name in names}) == 1:
        return names[0]
    raise AnnotationError(
        "The annotations have several subsets." if names else "The annotations have no video.",
        [Defect(truth.source, "$.database", f"subsets: {', '.join(names) or 'none'}")],
        "Name the one to score with --subset, or name the data set with --dataset.",
    )


def load_video_list(path: str | Path) -> tuple[str, ...]:
    """Read a block list: a JSON list of video names, or text with one name per line.

    Raises:
        AnnotationError: unreadable, or JSON that is not a list of names.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AnnotationError(
                "The list of videos cannot be read.", [Defect(str(path), "", str(error))]
            ) from None
        return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AnnotationError(
            "The file is not a list of videos.",
            [Defect(str(path), "$", shown(names))],
            'Write ["video1", "video2"], or a text file with one name per line.',
        )
    return tuple(dict.fromkeys(names))
