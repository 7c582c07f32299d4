"""What a report is about: systems (a detector trained one way), each over its seeds.

Charts and tables are drawn from these, never from files. Fractions, seconds, bytes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tadpipe.evaluation.detection_map import DetectionScore
from tadpipe.evaluation.diagnosis import Diagnosis

# Okabe and Ito's colours, which colour-blind eyes tell apart, without the two that vanish on a
# white or a dark page.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999")


class Spread(NamedTuple):
    """A figure over the seeds."""

    mean: float
    deviation: float | None  # of the sample; None for a single seed

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def span(self) -> tuple[float, float]:
        """Mean minus and plus one standard deviation."""
        deviation = self.deviation or 0.0
        return self.mean - deviation, self.mean + deviation


class Cost(NamedTuple):
    """What a system takes; None where it was not measured."""

    parameters: int | None = None
    gflops: float | None = None  # one window
    train_sec: float | None = None
    peak_bytes: float | None = None
    peak_of: str = ""
    detect_sec_per_minute: float | None = None  # of video


class LevelSimilarity(NamedTuple):
    """How alike the features of a pyramid level are at different times."""

    average_cosine: list[float]  # by level, finest first; mean over pairs of times and videos
    video: str  # whose matrix it is
    level_stride: int
    matrix: list[list[float]]  # cosine between two times
    actions: list[tuple[float, float]]  # of the video, in rows of the matrix


class SensitivityCurves(NamedTuple):
    """What ASL learned: how much a place in an action says about its class and its ends."""

    labels: tuple[str, ...]
    position: list[float]  # -0.5 start of the action, 0.5 its end
    classification: list[list[float]]  # [class][position]
    localisation: list[list[float]]


class FrameSensitivity(NamedTuple):
    """What ASL makes of the frames of one action; a value for each point that answers for it."""

    video: str
    label: str
    start_sec: float
    end_sec: float
    time_sec: list[float]
    classification: list[float]  # h_cls = p_cls + q_cls
    class_classification: list[float]  # p_cls, the part that all actions of the class share
    localisation: list[float]  # h_loc = p_loc + q_loc
    class_localisation: list[float]  # p_loc


@dataclass(frozen=True)
class System:
    """A detector trained one way, over its seeds."""

    name: str  # unique in a report
    detector: str  # "" where only detections are known
    backbone: str
    seeds: tuple[int | None, ...]
    folders: tuple[str, ...]
    scores: tuple[DetectionScore, ...]  # by seed
    diagnosis: Diagnosis  # of the first seed
    cost: Cost = field(default_factory=Cost)  # means over the seeds
    notes: tuple[str, ...] = ()  # what was left out or is odd
    similarity: LevelSimilarity | None = None
    sensitivity: SensitivityCurves | None = None
    frame_sensitivity: tuple[FrameSensitivity, ...] = ()

    @property
    def average_map(self) -> Spread:
        return Spread.of([score.average_map for score in self.scores])

    @property
    def map_at(self) -> list[Spread]:
        """By threshold."""
        return [Spread.of(column) for column in zip(*self._maps(), strict=True)]

    def _maps(self) -> list[list[float]]:
        return [score.map_at.tolist() for score in self.scores]

    def class_ap(self) -> list[Spread]:
        """Mean over the thresholds, by class."""
        rows = [score.ap.mean(axis=0).tolist() for score in self.scores]
        return [Spread.of(column) for column in zip(*rows, strict=True)]

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready, for the table of systems."""
        return {
            "name": self.name,
            "detector": self.detector,
            "backbone": self.backbone,
            "seeds": list(self.seeds),
            "folders": list(self.folders),
            "map": [list(value) for value in self.map_at],
            "average": list(self.average_map),
            "cost": self.cost._asdict(),
            "notes": list(self.notes),
        }


def percent(value: float) -> float | None:
    """Percent with two digits for a chart; None where there is nothing to measure."""
    return None if math.isnan(value) else round(100 * value, 2)


def run_colours(names: Sequence[str]) -> list[str]:
    """A colour for each system; they repeat after seven."""
    return [COLOURS[i % len(COLOURS)] for i in range(len(names))]
