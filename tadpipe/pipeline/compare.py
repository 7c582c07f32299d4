"""Several detectors, several seeds, the same features, subsets and scoring: what `compare` does.

Order: a plan per detector, checked against each other -> runs that are not finished yet, one
process each -> all detections scored anew by one protocol -> paired bootstrap -> Comparison.
`out`/<detector>/seed<N> is an ordinary run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tadpipe.annotations import Annotations, Detections, load_detections
from tadpipe.config import to_mapping, write_atomically
from tadpipe.detectors import DETECTORS
from tadpipe.errors import ConfigError, StoreError
from tadpipe.evaluation.bootstrap import (
    RankedMatches,
    draw_videos,
    paired_interval,
    rank_matches,
    resampled_map,
)
from tadpipe.evaluation.detection_map import DetectionScore
from tadpipe.evaluation.tables import DetectionTable, Floats, TruthTable
from tadpipe.pipeline.compare_queue import finish_runs
from tadpipe.pipeline.compare_run import RunRequest, read_cost
from tadpipe.pipeline.compare_table import (
    Comparison,
    DetectorResult,
    Difference,
    PlannedRun,
    SeedResult,
    State,
)
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.evaluate import DETECTIONS_FILE, evaluate
from tadpipe.pipeline.feature_tables import open_tables
from tadpipe.pipeline.presets import DEFAULT, load_preset
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.run_folder import CONFIG_FILE, check_run_folder, write_json
from tadpipe.pipeline.train_plan import TrainPlan, make_plan, with_class_scores
from tadpipe.registry import resolve

COMPARISON_FILE = "compare.json"
TABLE_FILE = "compare.txt"
LEVEL = 0.95  # of the intervals
REACH = ("window_len", "max_buffer_len_factor")  # what a model sees at once, in training and test

__all__ = ["Comparison", "compare"]


def compare(
    features: str | Path | Sequence[str | Path],
    *,
    detectors: Sequence[str],
    seeds: int = 3,
    out: str | Path = "compare",
    presets: Sequence[str] = (),
    preset_name: str = DEFAULT,
    sets: Sequence[str] = (),
    annotations: str | Path | None = None,
    dataset: str | None = None,
    subset: str | None = None,
    test_subset: str | None = None,
    backbone: str | None = None,
    stride: int | None = None,
    class_scores: str | Path | None = None,
    skip_unscored: bool = False,
    device: str = "auto",
    resamples: int = 1000,
    workers: int = 1,
    seed: int = 0,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Comparison:
    """Train several detectors with several seeds on the same features, and compare them.

    A finished run of the same configuration is reused, an unfinished one goes on, so that a
    repeated command continues; several such commands at once share the runs between them.
    What is not listed here is as in `train_detector`.

    Args:
        seeds: runs of each detector, with the seeds `seed`, `seed` + 1, ...
        out: folder of the runs, of `compare.json` and of `compare.txt`.
        presets: names or TOML files, each for the detector it is of; the other detectors use
            <detector>/`preset_name`.
        sets: changes of every preset.
        class_scores: file of video-level class scores, for the detectors whose NMS is over all
            classes together; the others keep their own labels. Runs do not depend on it: their
            detections are labelled when they are scored.
        resamples: of the videos, in the paired bootstrap.
        workers: runs at the same time; they share torch's threads between them, and what they
            take in wall time and memory is that of a shared machine.
        seed: the first training seed, and that of the bootstrap.
    Raises:
        ConfigError, AnnotationError, StoreError, CheckpointError: before anything is trained.
        TadpipeError: a run failed; those that are finished are kept.
    """
    if min(seeds, resamples, workers) < 1:
        raise ConfigError(
            "At least one seed, one resample and one worker.",
            f"seeds = {seeds}, resamples = {resamples}, workers = {workers}",
        )
    device, out = resolve_device(device), Path(out)
    paths = [features] if isinstance(features, (str, Path)) else list(features)
    tables = open_tables([Path(path) for path in paths], backbone=backbone, stride=stride)
    plans = {
        detector: make_plan(
            tables,
            name,
            load_preset(name, sets, detector),
            annotations=annotations,
            dataset=dataset,
            subset=subset,
            test_subset=test_subset,
            val_subset=None,
            seed=seed,
        )
        for detector, name in choose_presets(detectors, presets, preset_name).items()
    }
    plans = with_class_scores(plans, class_scores, skip_unscored)
    comparison = _describe(plans, out, seeds, resamples)
    if dry_run:
        return comparison
    requests = [
        RunRequest(
            features=tuple(map(str, paths)),
            detector=planned.detector,
            preset=planned.preset,
            sets=tuple(sets),
            out=str(planned.run),
            annotations=None if annotations is None else str(annotations),
            dataset=dataset,
            subset=subset,
            test_subset=test_subset,
            backbone=backbone,
            stride=stride,
            device=device,
            seed=planned.seed,
            threads=max(torch.get_num_threads() // workers, 1),
        )
        for planned in comparison.planned
    ]
    finish_runs(requests, workers, progress)
    counts = [sum(p.state == s for p in comparison.planned) for s in ("finished", "unfinished")]
    comparison = _scored(comparison, plans)
    write_json(out / COMPARISON_FILE, comparison.to_mapping())
    write_atomically(out / TABLE_FILE, comparison.text() + "\n")
    progress.end(
        f"{len(requests)} runs: {counts[0]} reused, {counts[1]} resumed, "
        f"{len(requests) - sum(counts)} trained -> {out}"
    )
    return comparison


def choose_presets(
    detectors: Sequence[str], presets: Sequence[str], preset_name: str
) -> dict[str, str]:
    """Detector -> preset, in the order of the detectors.

    Raises:
        ConfigError: no detector, one named twice or unknown, or a preset of none of them.
    """
    if not detectors or len(set(detectors)) != len(detectors):
        raise ConfigError(
            "Name at least one detector, and each of them once.",
            f"detectors: {', '.join(detectors) or 'none'}",
        )
    chosen: dict[str, str] = {}
    for detector in detectors:
        resolve("detector", DETECTORS, detector)
    for name in presets:
        detector = load_preset(name).detector
        if detector not in detectors or detector in chosen:
            raise ConfigError(
                "A preset is for one of the detectors compared, and each has one.",
                f"preset {name}: {detector};  detectors: {', '.join(detectors)}",
                "Leave it out, or add its detector.",
            )
        chosen[detector] = name
    return {detector: chosen.get(detector, f"{detector}/{preset_name}") for detector in detectors}


def recipe_differences(plans: Mapping[str, TrainPlan]) -> dict[str, dict[str, Any]]:
    """Setting -> detector -> value, for what is not the same for all; models are not compared."""
    settings: dict[str, dict[str, Any]] = {}
    for detector, plan in plans.items():
        tables = {
            "model": {key: plan.recipe.model[key] for key in REACH if key in plan.recipe.model},
            "windows": to_mapping(plan.preset.windows),
            "decode": to_mapping(plan.preset.decode),
            "nms": to_mapping(plan.preset.nms),
            "training": to_mapping(plan.preset.training),
        }
        if plan.scores is not None:
            tables["class_scores"] = to_mapping(plan.preset.class_scores)
        for table, values in tables.items():
            for key, value in values.items():
                settings.setdefault(f"{table}.{key}", {})[detector] = value
    return {
        name: values
        for name, values in settings.items()
        if len(values) < len(plans) or len({str(value) for value in values.values()}) > 1
    }


def _describe(plans: Mapping[str, TrainPlan], out: Path, seeds: int, resamples: int) -> Comparison:
    """What is compared and which runs are there; raises for what cannot be compared."""
    first = next(iter(plans.values()))
    for plan in plans.values():
        ours, theirs = _scoring(first), _scoring(plan)
        if ours != theirs:
            raise ConfigError(
                "The presets are for different data, so their scores cannot be compared.",
                f"{first.preset_name}: {ours};  {plan.preset_name}: {theirs}",
                "Name one data set for all with --dataset, and subsets with --test-subset.",
            )
    if first.subsets.test is None:
        raise ConfigError(
            "No subset to score on.",
            f"{first.annotations.source}: trained on '{first.subsets.train}', no other has actions",
            "Name one with --test-subset.",
        )
    videos = first.coverage(first.subsets.test).stored_as
    if not videos:
        raise StoreError(
            "No video of the test subset has features.",
            f"{first.store_names()}: none of '{first.subsets.test}'",
            "Extract these videos, or name another subset with --test-subset.",
        )
    durations = first.durations_sec(videos).values()
    return Comparison(
        planned=tuple(
            _planned(replace(plan, seed=first.seed + number, scores=None), out)
            for number in range(seeds)
            for plan in plans.values()
        ),
        features=tuple(table.store for table in first.tables),
        subsets=first.subsets,
        train_videos=len(first.training_windows()),
        test_videos=len(videos),
        test_minutes=sum(duration or 0.0 for duration in durations) / 60,
        recipes=recipe_differences(plans),
        level=LEVEL,
        resamples=resamples,
        seed=first.seed,
    )


def _scoring(plan: TrainPlan) -> str:
    """What the score depends on besides the detections, but the labels."""
    dataset = "no data set" if plan.spec is None else plan.spec.name
    return f"{dataset}, trained on '{plan.subsets.train}', scored on '{plan.subsets.test}'"


def _planned(plan: TrainPlan, out: Path) -> PlannedRun:
    """One run, and how far its folder is.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    run = out / plan.preset.detector / f"seed{plan.seed}"
    check_run_folder(run, plan.config(), resume=True)
    state: State = "unfinished" if (run / CONFIG_FILE).exists() else "new"
    if read_cost(run) is not None:
        state = "finished"
    return PlannedRun(
        detector=plan.preset.detector,
        preset=plan.preset_name,
        seed=plan.seed,
        run=run,
        state=state,
        epochs=plan.preset.training.epochs_to_run,
    )


class _Scored(NamedTuple):
    """A detector's result, and its figure on every resample."""

    result: DetectorResult
    score: DetectionScore  # of the first seed
    resampled: Floats  # [R], average mAP, mean over the seeds


def _scored(comparison: Comparison, plans: Mapping[str, TrainPlan]) -> Comparison:
    """Score every run by the same rules, and every difference within a kind of detector."""
    scored = [_score_detector(comparison, plan) for plan in plans.values()]
    differences = [
        Difference(
            a.result.detector,
            b.result.detector,
            paired_interval(
                a.resampled,
                b.resampled,
                a.result.average_map[0] - b.result.average_map[0],
                level=comparison.level,
            ),
        )
        for a, b in combinations(scored, 2)
        if a.result.class_agnostic == b.result.class_agnostic
    ]
    score = scored[0].score
    return replace(
        comparison,
        protocol=score.protocol.name,
        tious=score.tious,
        scored_videos=score.videos,
        detectors=tuple(item.result for item in scored),
        differences=tuple(differences),
    )


def _score_detector(comparison: Comparison, plan: TrainPlan) -> _Scored:
    """Score all seeds of a detector."""
    truth = plan.truth()
    results, scores, resampled = [], [], []
    for planned in comparison.planned:
        if planned.detector != plan.preset.detector:
            continue
        found = plan.labelled(_detections(planned.run, plan))
        score = evaluate(
            found,
            annotations=truth,
            dataset=None if plan.spec is None else plan.spec.name,
            subset=plan.subsets.test,
            top_k=(),
        ).score
        cost = read_cost(planned.run)
        assert cost is not None  # `finish_runs` made every run finished
        maps = tuple(score.map_at.tolist())
        results.append(SeedResult(planned.seed, planned.run, maps, score.average_map, cost))
        scores.append(score)
        matches = _matches(truth, found, score, plan.subsets.test or "")
        drawn = draw_videos(matches, comparison.resamples, comparison.seed)
        resampled.append(resampled_map(matches, drawn).mean(axis=1))
    result = DetectorResult(
        detector=plan.preset.detector,
        preset=plan.preset_name,
        labels=len(scores[0].labels),
        class_agnostic=plan.has_one_label,
        seeds=tuple(results),
        class_scores=plan.stated_scores(),
        unscored=() if plan.scores is None else plan.scores.missing(found),
    )
    mean: Floats = sum(resampled[1:], start=resampled[0]) / len(resampled)
    return _Scored(result, scores[0], mean)


def _detections(run: Path, plan: TrainPlan) -> Detections:
    """A run's detections.

    Raises:
        ConfigError: they are of other videos than the store and the annotations have now.
    """
    found = load_detections(run / DETECTIONS_FILE)
    expected = plan.coverage(plan.subsets.test or "").stored_as
    if set(found) != set(expected):
        odd = sorted(set(found) ^ set(expected))
        raise ConfigError(
            "The test videos are not those that a finished run detected on.",
            f"run {run}: {len(found)} videos, now {len(expected)}; different: "
            + ", ".join(odd[:5]),
            "The store or the annotations have changed; compare in another --out.",
        )
    return found


def _matches(
    truth: Annotations, found: Detections, score: DetectionScore, subset: str
) -> RankedMatches:
    """What `evaluate` matched, kept for resampling."""
    ids = truth.label_ids or {label: i for i, label in enumerate(truth.labels)}
    return rank_matches(
        TruthTable.from_videos(truth.subset(subset), ids),
        DetectionTable.from_detections(found),
        score.tious,
        protocol=score.protocol,
        blocked=score.blocked,
    )
