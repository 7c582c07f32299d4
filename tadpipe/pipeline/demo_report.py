"""What the demo made and how well it did, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tadpipe.pipeline.evaluate import Evaluation
from tadpipe.report.timeline import VideoTimeline, terminal_timeline

PICTURE_VIDEOS = 6  # held-out videos in the picture


@dataclass
class DemoReport:
    """What the demo made and how well it did on the held-out videos."""

    folder: Path
    scores: dict[str, Evaluation] = field(default_factory=dict)  # detector, frozen features
    control: Evaluation | None = None  # frozen backbone, pixels augmented as in end_to_end
    end_to_end: Evaluation | None = None
    tuned_scores: dict[str, Evaluation] = field(default_factory=dict)  # features of end_to_end
    trivial: Evaluation | None = None
    chance_map: list[float] = field(default_factory=list)  # mAP at each tIoU, mean of seeds
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> duration
    picture: Path | None = None
    example: VideoTimeline | None = None  # the held-out video that the terminal shows
    labels: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready; fractions, not percent."""
        assert self.trivial is not None
        assert self.control is not None
        assert self.end_to_end is not None
        return {
            "folder": str(self.folder),
            "tious": list(self.trivial.score.tious),
            "detectors": {name: each.to_mapping() for name, each in self.scores.items()},
            "control": self.control.to_mapping(),
            "end_to_end": self.end_to_end.to_mapping(),
            "detectors_tuned": {n: each.to_mapping() for n, each in self.tuned_scores.items()},
            "trivial": self.trivial.to_mapping(),
            "chance_map": self.chance_map,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "picture": str(self.picture),
        }

    def text(self, *, width: int = 80, colour: bool = False) -> str:
        """The table, the timeline of one held-out video, the picture, the time it took."""
        assert self.example is not None
        video = self.example
        timeline = terminal_timeline(
            video.truth,
            video.detections,
            video.duration_sec,
            labels=self.labels,
            width=width,
            colour=colour,
        )
        stages = ", ".join(f"{name} {value:.0f}" for name, value in self.seconds.items())
        return "\n".join(
            [
                *self._table(),
                "",
                f"Held-out video {video.name}: truth, and what the model tuned end to end found",
                timeline,
                "",
                f"Picture of {PICTURE_VIDEOS} held-out videos: {self.picture}",
                f"Seconds: {stages}; {self.total_seconds:.0f} in all",
            ]
        )

    def _table(self) -> list[str]:
        assert self.trivial is not None
        assert self.control is not None
        assert self.end_to_end is not None
        score = self.trivial.score
        named = [
            *((f"{name}, frozen features", each) for name, each in self.scores.items()),
            ("control: frozen, pixels augmented", self.control),
            ("tuned end to end", self.end_to_end),
            *((f"{name}, tuned features", each) for name, each in self.tuned_scores.items()),
            ("trivial: sliding segments", self.trivial),
        ]
        rows = [(name, each.score.map_at.tolist()) for name, each in named]
        rows.append(("chance: random segments", self.chance_map))
        head = "".join(f"{tiou:>7.1f}" for tiou in score.tious)
        lines = [
            f"Held-out: {score.videos} videos with {int(score.num_truth.sum())} actions of "
            f"{len(score.labels)} classes, by actors not seen in training.",
            f"{'mAP (%) at tIoU':<34}{head}{'average':>9}",
        ]
        for name, values in rows:
            cells = "".join(f"{100 * value:>7.1f}" for value in values)
            lines.append(f"{name:<34}{cells}{100 * sum(values) / len(values):>9.1f}")
        return lines
