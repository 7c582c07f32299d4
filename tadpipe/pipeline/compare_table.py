"""What a comparison found, as JSON and as tables for a person.

Detectors that tell classes apart and class-agnostic ones are different tasks: each kind has a
table of its own, and no difference is taken between them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tadpipe.config import to_mapping
from tadpipe.evaluation.bootstrap import Interval
from tadpipe.pipeline.class_fusion import source_text
from tadpipe.pipeline.compare_run import RunCost
from tadpipe.pipeline.recipe import ANY_LABEL
from tadpipe.pipeline.score_table import count_text
from tadpipe.pipeline.subsets import Subsets
from tadpipe.pipeline.text_table import Row, fitted, prose

MIB = 2**20
TEXT_WIDTH = 120  # of the tables, where no terminal has its own
State = Literal["finished", "unfinished", "new"]


@dataclass(frozen=True)
class PlannedRun:
    """One detector with one seed, and what its folder holds when the comparison begins."""

    detector: str
    preset: str
    seed: int
    run: Path
    state: State
    epochs: int


@dataclass(frozen=True)
class SeedResult:
    """A finished run."""

    seed: int
    run: Path
    map_at: tuple[float, ...]  # by tIoU, fractions
    average_map: float
    cost: RunCost


@dataclass(frozen=True)
class DetectorResult:
    """A detector over its seeds."""

    detector: str
    preset: str
    labels: int  # scored; 1 for a class-agnostic detector
    class_agnostic: bool  # all actions under one label, without class scores
    seeds: tuple[SeedResult, ...]
    class_scores: Mapping[str, Any] | None = None  # where the labels come from, if from a file
    unscored: tuple[str, ...] = ()  # videos without class scores, whose detections were dropped

    def spread(self, values: Sequence[float]) -> tuple[float, float | None]:
        """Mean and sample standard deviation over the seeds; None for a single seed."""
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    @property
    def average_map(self) -> tuple[float, float | None]:
        return self.spread([result.average_map for result in self.seeds])

    @property
    def map_at(self) -> list[tuple[float, float | None]]:
        """By tIoU."""
        return [
            self.spread(column)
            for column in zip(*(result.map_at for result in self.seeds), strict=True)
        ]

    def mean_cost(self, name: str) -> float | None:
        """Mean of one figure of `RunCost` over the seeds that have it."""
        values = [getattr(result.cost, name) for result in self.seeds]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    def to_mapping(self, minutes: float) -> dict[str, Any]:
        """JSON-ready; `minutes` of video were detected on."""
        cost = self.seeds[0].cost
        detect_sec = self.mean_cost("detect_sec") or 0.0
        detect_cpu_sec = self.mean_cost("detect_cpu_sec") or 0.0
        return {
            "detector": self.detector,
            "preset": self.preset,
            "labels": self.labels,
            "class_agnostic": self.class_agnostic,
            "class_scores": self.class_scores,
            "unscored": list(self.unscored),
            "average_map": _named(self.average_map),
            "map": [_named(value) for value in self.map_at],
            "parameters": cost.parameters,
            "gflops_per_window": cost.flops / 1e9,
            "window_len": cost.window_len,
            "train_sec": self.mean_cost("train_sec"),
            "train_cpu_sec": self.mean_cost("train_cpu_sec"),
            "peak_bytes": self.mean_cost("peak_bytes"),
            "peak_of": cost.peak_of,
            "detect_sec_per_minute": detect_sec / minutes,
            "detect_cpu_sec_per_minute": detect_cpu_sec / minutes,
            "seeds": [
                {
                    "seed": result.seed,
                    "run": str(result.run),
                    "map": list(result.map_at),
                    "average_map": result.average_map,
                    "cost": to_mapping(result.cost),
                }
                for result in self.seeds
            ],
        }


@dataclass(frozen=True)
class Difference:
    """Average mAP of `first` minus that of `second`, means over the seeds."""

    first: str
    second: str
    interval: Interval

    def to_mapping(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, **self.interval._asdict()}


@dataclass(frozen=True)
class Comparison:
    """Detectors on the same features, subsets and protocol; a dry run has only `planned`."""

    planned: tuple[PlannedRun, ...]
    features: tuple[str, ...]
    subsets: Subsets
    train_videos: int
    test_videos: int  # detected on
    test_minutes: float  # of these videos
    recipes: Mapping[str, Mapping[str, Any]]  # setting -> detector -> value, where they differ
    level: float  # of the intervals
    resamples: int
    seed: int  # the first training seed, and that of the resamples
    protocol: str = ""
    tious: tuple[float, ...] = ()
    scored_videos: int = 0  # of the test subset, with or without features; resampled
    detectors: tuple[DetectorResult, ...] = ()
    differences: tuple[Difference, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready; mAP as fractions."""
        planned = [
            {
                "detector": p.detector,
                "preset": p.preset,
                "seed": p.seed,
                "run": str(p.run),
                "state": p.state,
            }
            for p in self.planned
        ]
        shared = {
            "features": list(self.features),
            "subsets": self.subsets._asdict(),
            "train_videos": self.train_videos,
            "test_videos": self.test_videos,
            "test_minutes": self.test_minutes,
            "recipe_differences": {name: dict(values) for name, values in self.recipes.items()},
        }
        if not self.detectors:
            return {"dry_run": True, "planned": planned, **shared}
        return {
            **shared,
            "protocol": self.protocol,
            "tious": list(self.tious),
            "scored_videos": self.scored_videos,
            "detectors": [result.to_mapping(self.test_minutes) for result in self.detectors],
            "bootstrap": {
                "resamples": self.resamples,
                "seed": self.seed,
                "level": self.level,
                "differences": [difference.to_mapping() for difference in self.differences],
            },
        }

    def text(self, width: int = TEXT_WIDTH) -> str:
        """The tables, one below the other, in `width` columns; lines of a plan may be longer."""
        if not self.detectors:
            plan = [_plan_line(run) for run in self.planned]  # ends in a path to copy
            return "\n".join([*plan, *self._recipe_lines(width)])
        seeds = count_text(len(self.detectors[0].seeds), "seed")
        head = (
            f"protocol {self.protocol}, subset {self.subsets.test}, "
            f"{count_text(self.scored_videos, 'video')}, {seeds}; mAP in percent"
            + (", mean ± standard deviation over the seeds" if seeds != "1 seed" else "")
        )
        blocks = [prose(head, width)]
        kinds = [[d for d in self.detectors if d.class_agnostic is kind] for kind in (False, True)]
        for results in (kind for kind in kinds if kind):
            notes = [line for note in self._kind_lines(results) for line in prose(note, width)]
            blocks.append([*notes, *fitted(self._score_rows(results), width)])
        blocks.append(self._cost_lines(width))
        if self.differences:
            blocks.append(self._difference_lines(width))
        blocks.append(self._recipe_lines(width))
        return "\n\n".join("\n".join(block) for block in blocks if block)

    def _kind_lines(self, results: Sequence[DetectorResult]) -> list[str]:
        if results[0].class_agnostic:
            note = "" if len(results) == len(self.detectors) else "; not comparable with the others"
            return [
                "class-agnostic, no class scores given: all actions scored under the one label "
                f"'{ANY_LABEL}'{note}"
            ]
        return [
            f"scored by class, {count_text(results[0].labels, 'class', 'classes')}",
            *(
                f"{result.detector}: {source_text(result.class_scores, result.unscored)}"
                for result in results
                if result.class_scores is not None
            ),
        ]

    def _score_rows(self, results: Sequence[DetectorResult]) -> list[Row]:
        rows: list[Row] = [("mAP@tIoU", *(f"{tiou:.2f}" for tiou in self.tious), "average")]
        for result in results:
            values = [*result.map_at, result.average_map]
            rows.append((result.detector, *(_percent(value) for value in values)))
        return rows

    def _cost_lines(self, width: int) -> list[str]:
        heads = ("cost, means", "parameters", "window", "GFLOPs/window", "train s", "train CPU s")
        rows = [(*heads, "peak MiB", "detect s/min", "detect CPU s/min")]
        for result in self.detectors:
            figures = result.to_mapping(self.test_minutes)
            peak = figures["peak_bytes"]
            rows.append(
                (
                    result.detector,
                    f"{figures['parameters']:,}",
                    str(figures["window_len"]),
                    _number(figures["gflops_per_window"], 3),
                    _number(figures["train_sec"], 1),
                    _number(figures["train_cpu_sec"], 1),
                    _number(None if peak is None else peak / MIB, 0),
                    _number(figures["detect_sec_per_minute"], 3),
                    _number(figures["detect_cpu_sec_per_minute"], 3),
                )
            )
        costs = [seed.cost for result in self.detectors for seed in result.seeds]
        resumed = sum(cost.steps_timed < cost.steps for cost in costs)
        lines = [
            *fitted(rows, width),
            *prose(
                f"peak: {', '.join(sorted({cost.peak_of for cost in costs}))} in training, above "
                "that held before; detect: per minute of the "
                f"{count_text(self.test_videos, 'test video')}",
                width,
            ),
        ]
        if resumed:
            text = f"{count_text(resumed, 'run')} resumed: time scaled up from the steps timed"
            lines += prose(text, width)
        return lines

    def _difference_lines(self, width: int) -> list[str]:
        head = (
            f"differences of average mAP, points; {100 * self.level:g} % interval of "
            f"{self.resamples} paired resamples of the videos, seed {self.seed}"
        )
        rows: list[Row] = [("first - second", "difference", "low", "high", "sign flips")]
        for difference in self.differences:
            found = difference.interval
            points = (f"{100 * value:+.2f}" for value in found[:3])
            rows.append(
                (
                    f"{difference.first} - {difference.second}",
                    *points,
                    f"{100 * found.flipped:.1f} %",
                )
            )
        return [*prose(head, width), *fitted(rows, width)]

    def _recipe_lines(self, width: int) -> list[str]:
        if not self.recipes:
            return []
        names = list(dict.fromkeys(run.detector for run in self.planned))
        rows = [("recipes differ in", *names)]
        for setting, values in self.recipes.items():
            rows.append((setting, *(_setting(values.get(name)) for name in names)))
        return fitted(rows, width)


def _plan_line(run: PlannedRun) -> str:
    verb = {"finished": "reuse", "unfinished": "go on with", "new": "train"}[run.state]
    return (
        f"would {verb} {run.detector} (preset {run.preset}), seed {run.seed}, "
        f"{count_text(run.epochs, 'epoch')} -> {run.run}"
    )


def _named(value: tuple[float, float | None]) -> dict[str, float | None]:
    return {"mean": value[0], "std": value[1]}


def _percent(value: tuple[float, float | None]) -> str:
    mean, deviation = value
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _setting(value: Any) -> str:
    return "-" if value is None else str(value).replace("'", "")
