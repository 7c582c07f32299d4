"""What `tadpipe evaluate` does: detections against annotations, by a named protocol.

What was scored is always said beside the score: the number of videos, those without detections,
those blocked, labels that are no class, and equal scores, whose order decides the result.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from tadpipe.evaluation.detection_map import DetectionScore, score_detections
from tadpipe.evaluation.epic import TIOUS as EPIC_TIOUS
from tadpipe.evaluation.epic import load_submission, score_epic
from tadpipe.evaluation.proposals import ProposalRecall, average_recall
from tadpipe.evaluation.protocols import Protocol, protocol_named
from tadpipe.evaluation.tables import DetectionTable, TruthTable
from tadpipe.json_text import read_json, shown
from tadpipe.pipeline.feature_tables import remembered_annotations
from tadpipe.pipeline.score_table import count_text, score_text
from tadpipe.registry import resolve
from tadpipe.store.feature_store import FeatureStore

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)  # where no data set says otherwise
DETECTIONS_FILE = "detections.json"  # in a run folder


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
        return mapping

    def text(self, per_class: bool = False) -> str:
        """The scores as tables for a person, in percent."""
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
        errors = sum(not defect.is_warning for defect in self.defects)
        if errors:
            entries = count_text(errors, "annotation entry", "annotation entries")
            blocks.append(f"{entries} with errors left out")
        if len(self.defects) > errors:
            odd = [str(defect) for defect in self.defects if defect.is_warning]
            oddities = count_text(len(odd), "oddity", "oddities")
            blocks.append(f"{oddities} in the annotations, first: {odd[0]}")
        return "\n".join(blocks)


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
        out: file for the result as JSON.
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
    left_out = load_video_list(blocked) if isinstance(blocked, (str, Path)) else blocked
    if isinstance(annotations, (str, Path)) and Path(annotations).suffix.lower() == ".csv":
        rules = _rules(protocol, "epic")
        result = _evaluate_epic(detections, Path(annotations), rules, tious, left_out, top_k)
    else:
        rules = _rules(protocol, spec.protocol if spec else "opentad")
        truth = _load_truth(annotations, spec, skip_defects)
        result = _evaluate_json(
            detections, truth, spec, subset, rules, tious, left_out, top_k, max_an
        )
    if out is not None:
        write_atomically(Path(out), json.dumps(result.to_mapping(), indent=1) + "\n")
    return result


class RunSettings(NamedTuple):
    """What a run folder says about the annotations it was trained with."""

    annotations: str | Path | Annotations | None = None
    dataset: str | None = None
    subset: str | None = None


def run_settings(detections: str | Path | Detections) -> RunSettings:
    """The annotations, data set and test subset of a run folder; nothing for anything else.

    Raises:
        ConfigError: the run's config.json cannot be read.
    """
    if not isinstance(detections, (str, Path)):
        return RunSettings()
    path = Path(detections) / "config.json"
    if not path.is_file():
        return RunSettings()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        annotations = _seen_from(path.parent, Path(config["annotations"]))
        subset, dataset = config["subsets"]["test"], config["dataset"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("The run's configuration cannot be read.", f"{path}: {error}") from None
    if annotations.is_file():
        return RunSettings(annotations, dataset, subset)
    store = _seen_from(path.parent, config["stores"][0])
    return RunSettings(_remembered(store, dataset), dataset, subset)


def _seen_from(run: Path, path: str | Path) -> Path:
    """A path of a run's config.json: below a folder the run is in, else as seen from here."""
    above = (folder / path for folder in run.absolute().parents)
    return next((place for place in above if place.exists()), Path(path))


def _remembered(store: Path, dataset: str | None) -> Annotations | None:
    """The store's own copy of the annotations that a run was trained with, if it is there."""
    if not store.exists():
        return None
    spec: DatasetSpec | None = resolve("dataset", DATASETS, dataset) if dataset else None
    drop = () if spec is None else spec.dropped_labels
    return remembered_annotations(
        FeatureStore.open(store), strict=True, drop_labels=drop, for_evaluation=True
    )


def _evaluate_json(
    detections: str | Path | Detections,
    truth: Annotations,
    spec: DatasetSpec | None,
    subset: str | None,
    rules: Protocol,
    tious: Sequence[float] | None,
    blocked: Collection[str] | None,
    top_k: Sequence[int],
    max_an: int | None,
) -> Evaluation:
    name = _subset_name(truth, spec, subset)
    reasons: Mapping[str, str] = {}
    if blocked is None:
        reasons = spec.blocked_videos(rules.name) if spec else {}
        blocked = tuple(reasons)
    found, source = _load_found(detections)
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
    return Evaluation(
        {"detection": score},
        subset=name,
        detections=source,
        annotations=truth.source,
        dataset=spec.name if spec else None,
        defects=truth.defects,
        blocked_because=reasons,
        proposals=curve,
    )


def _evaluate_epic(
    detections: str | Path | Detections,
    annotations: Path,
    rules: Protocol,
    tious: Sequence[float] | None,
    blocked: Collection[str] | None,
    top_k: Sequence[int],
) -> Evaluation:
    if not isinstance(detections, (str, Path)):
        raise ConfigError(
            "Detections of EPIC-Kitchens-100 are scored from a submission file.",
            str(annotations),
            "Give the path of the submission JSON, or annotations in JSON.",
        )
    path = _detection_file(Path(detections))
    scores = score_epic(
        load_epic_csv(annotations),
        load_submission(path),
        tious or EPIC_TIOUS,
        protocol=rules,
        blocked=blocked or (),
        top_k=top_k,
    )
    return Evaluation(scores, subset="", detections=str(path), annotations=str(annotations))


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
