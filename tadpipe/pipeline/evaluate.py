"""What `tadpipe evaluate` does: detections against annotations, by a named protocol.

What was scored is always said beside the score: the number of videos, those without detections,
those blocked, labels that are no class, and equal scores, whose order decides the result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tadpipe.annotations import (
    Annotations,
    Detections,
    load_detections,
)
from tadpipe.datasets import DATASETS
from tadpipe.datasets.annotation_files import read_annotations
from tadpipe.datasets.epic_files import epic_truth_file, is_epic
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.epic_csv import load_epic_csv
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.evaluation.characteristics import Bins
from tadpipe.evaluation.detection_map import score_detections
from tadpipe.evaluation.epic import TIOUS as EPIC_TIOUS
from tadpipe.evaluation.epic import load_submission, score_epic
from tadpipe.evaluation.proposals import average_recall
from tadpipe.evaluation.protocols import Protocol, protocol_named
from tadpipe.evaluation.tables import DetectionTable, TruthTable
from tadpipe.json_text import read_json, shown
from tadpipe.pipeline.class_fusion import Labelled, check_used, labelled_for_scoring
from tadpipe.pipeline.error_analysis import (
    BinChoice,
    chosen_bins,
    find_epic_errors,
    find_errors,
)
from tadpipe.pipeline.evaluation_result import Evaluation
from tadpipe.pipeline.recipe import RECIPE_FILE
from tadpipe.pipeline.run_settings import run_settings
from tadpipe.registry import resolve

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)  # where no data set says otherwise
DETECTIONS_FILE = "detections.json"  # in a run folder


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
        annotations: ActivityNet-style JSON, the CSV of EPIC-Kitchens-100, Ego4D's moments files,
            or the folder of either. A submission JSON is scored against the CSV in verbs, nouns
            and actions unless the data set names one.  Default: what the run was trained with,
            and then its data set and test subset, too.
        dataset: a name of `tadpipe list datasets`: its test subset, thresholds, protocol, dropped
            labels and block list are used where nothing else is given.
        subset: needed when the annotations have several and no data set is named.
        protocol: activitynet, actionformer, opentad, epic or official, or own rules.
            Default: opentad, and epic for submissions.
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
    challenge = _challenge_file(annotations, spec)
    if challenge is not None:
        if class_scores is not None:
            raise ConfigError(
                "Class scores are not for submissions of EPIC-Kitchens-100.",
                f"{annotations}, {class_scores}",
                "Score a task with --dataset epic_kitchens_verb or epic_kitchens_noun.",
            )
        check_used(None, sets, skip_unscored=skip_unscored)
        rules = _rules(protocol, "epic", "epic")
        result = _evaluate_epic(
            detections,
            challenge,
            rules,
            tious,
            left_out,
            top_k,
            error_bins,
        )
    else:
        rules = _rules(
            protocol, spec.protocol if spec else "opentad", spec.official if spec else None
        )
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
            "Give the path of the submission JSON, or --dataset epic_kitchens_verb or _noun.",
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


def _challenge_file(annotations: str | Path | Annotations, spec: DatasetSpec | None) -> Path | None:
    """EPIC's CSV if a submission is scored in verbs, nouns and actions: where no task is named."""
    if isinstance(annotations, Annotations) or (spec is not None and spec.task is not None):
        return None
    path = Path(annotations)
    return epic_truth_file(path) if is_epic(path) else None


def _rules(protocol: str | Protocol | None, default: str, official: str | None) -> Protocol:
    """The protocol asked for; `official` is what the data set calls so."""
    if isinstance(protocol, Protocol):
        return protocol
    return protocol_named(protocol or default, official)


def _load_truth(
    annotations: str | Path | Annotations, spec: DatasetSpec | None, skip_defects: bool
) -> Annotations:
    if isinstance(annotations, Annotations):
        return annotations
    return read_annotations(annotations, spec, strict=not skip_defects, for_evaluation=True)


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
