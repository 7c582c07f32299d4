"""What an extraction did: one outcome per video, their sums, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tadpipe.location import Location
from tadpipe.pipeline.video_files import VideoFile
from tadpipe.pipeline.video_outcomes import Outcomes, VideoOutcome
from tadpipe.store.run_progress import RunProgress, rates_text


class ExtractRates(NamedTuple):
    """What a calibration measured."""

    passes_per_sec: float  # clips, or windows of frames
    frames_per_sec: float | None  # decoded and prepared by one decoder; None = no video could be
    batch: int  # clips of a pass
    seconds: float  # that it took


@dataclass(frozen=True)
class ExtractPlan:
    """What a run would take."""

    unit: str  # what the backbone takes: "clip", or "window" of frames
    passes: int  # how many of them
    flops_per_pass: int
    frames: int  # to decode
    device: str
    shares_cores: bool  # decoders and backbone run on the same cores
    decoders: int
    dtype: str
    rates: ExtractRates | None  # None where nothing was measured

    @property
    def backbone_hours(self) -> float | None:
        return None if self.rates is None else self.passes / self.rates.passes_per_sec / 3600

    @property
    def decoding_hours(self) -> float | None:
        """By all decoders of the run."""
        if self.rates is None or self.rates.frames_per_sec is None:
            return None
        return self.frames / self.rates.frames_per_sec / self.decoders / 3600

    @property
    def hours(self) -> float | None:
        """Of one process: the longer of the two, their sum where they share the cores."""
        backbone, decoding = self.backbone_hours, self.decoding_hours
        if backbone is None or decoding is None:
            return None
        return backbone + decoding if self.shares_cores else max(backbone, decoding)

    def lines(self) -> list[str]:
        """Work, and hours where they were measured."""
        total = self.passes * self.flops_per_pass
        work = (
            f"{self.passes:,} {self.unit}s of {self.flops_per_pass / 1e9:,.2f} GFLOPs: "
            f"{total / 1e15:,.3f} PFLOPs"
        )
        if self.rates is None:
            return [work]
        frames = self.rates.frames_per_sec
        measured = (
            f"{self.device}, {self.dtype}, batch {self.rates.batch}: "
            f"{self.rates.passes_per_sec:,.2f} {self.unit}s/s"
            + ("" if frames is None else f", {frames:,.0f} frames/s decoded")
            + f" (measured in {self.rates.seconds:.0f} s)"
        )
        if self.hours is None:
            return [work, f"{measured}; no video could be decoded, so the hours are not known"]
        return [
            work,
            f"{measured}: about {_hours(self.hours)}, backbone {_hours(self.backbone_hours)}, "
            f"decoding {_hours(self.decoding_hours)}",
        ]

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "unit": self.unit,
            "passes": self.passes,
            "flops_per_pass": self.flops_per_pass,
            "flops": self.passes * self.flops_per_pass,
            "frames": self.frames,
            "device": self.device,
            "dtype": self.dtype,
            "decoders": self.decoders,
            "rates": None if self.rates is None else self.rates._asdict(),
            "backbone_hours": self.backbone_hours,
            "decoding_hours": self.decoding_hours,
            "hours": self.hours,
        }


def _hours(hours: float | None) -> str:
    if hours is None:
        return "–"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


@dataclass
class ExtractReport(Outcomes):
    """The result of a run over a list of videos."""

    store: Location
    fid: str
    dry_run: bool = False
    videos: list[VideoOutcome] = field(default_factory=list)
    seconds: float = 0.0
    annotated_without_video: list[str] = field(default_factory=list)
    progress: RunProgress | None = None  # of the one process that did it
    shared_sec: float | None = None  # that several workers took
    plan: ExtractPlan | None = None  # of a dry run

    def take(self, outcomes: Iterable[VideoOutcome], files: Sequence[VideoFile]) -> None:
        """What came of the files, however it came, in their order."""
        place = {file.name: number for number, file in enumerate(files)}
        self.videos = sorted(outcomes, key=lambda video: place[video.name])

    def total(self, quantity: Literal["rows", "frames_decoded", "bytes"]) -> int:
        """Sum over the videos done in this run."""
        return sum(getattr(video, quantity) for video in self.videos if video.status == "done")

    def rates(self) -> dict[str, float | None] | None:
        """What one process counted, or what workers did together; None of a dry run.

        Of workers only what is finished is known here: clips are stored rows, and how long
        backbones waited is not known.
        """
        if self.progress is not None:
            return self.progress.rates()
        if self.shared_sec is None:
            return None
        frames = sum(video.frames_decoded for video in self.videos)
        return {
            "videos_per_hour": 3600 * (self.count("done") + self.count("failed")) / self.shared_sec,
            "frames_per_sec": frames / self.shared_sec,
            "clips_per_sec": self.total("rows") / self.shared_sec,
            "device_waited": None,
            "left_sec": 0.0,
        }

    def text(self) -> str:
        """The failed videos with their reasons, then one line: done, reused, failed, seconds."""
        lines = self.failed_lines()
        if self.annotated_without_video:
            names = self.annotated_without_video
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"{len(names)} annotated videos have no file here: {shown}")
        lines.append(
            f"{self.counts_text()}; "
            f"{self.total('rows')} snippets, {self.total('frames_decoded')} frames, "
            f"{self.total('bytes') / 1e6:.1f} MB in {self.seconds:.1f} s -> {self.store}"
        )
        if self.plan is not None:
            lines += self.plan.lines()
        if self.progress is not None and self.progress.clips:
            lines.append(rates_text(self.progress))
        rates = self.rates()
        if self.shared_sec is not None and rates is not None and self.total("rows"):
            lines.append(
                f"{rates['videos_per_hour']:.1f} videos/h, {rates['frames_per_sec']:.0f} frames/s, "
                f"{rates['clips_per_sec']:.1f} clips/s by all workers"
            )
        return "\n".join(lines)

    def to_mapping(self) -> dict[str, Any]:
        return {
            "store": str(self.store),
            "fid": self.fid,
            **self.counts(),
            "snippets": self.total("rows"),
            "frames_decoded": self.total("frames_decoded"),
            "bytes": self.total("bytes"),
            "seconds": self.seconds,
            "rates": self.rates(),
            "plan": None if self.plan is None else self.plan.to_mapping(),
            "annotated_without_video": self.annotated_without_video,
            "videos": [video._asdict() for video in self.videos],
        }
