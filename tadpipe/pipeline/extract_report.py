"""What an extraction did: one outcome per video, their sums, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tadpipe.location import Location
from tadpipe.pipeline.video_files import printable
from tadpipe.store.run_progress import RunProgress, rates_text


class VideoOutcome(NamedTuple):
    """What became of one video."""

    name: str
    status: Literal["done", "reused", "failed"]
    reason: str = ""  # a VideoReason when it failed or is a copy
    message: str = ""
    rows: int = 0
    frames_decoded: int = 0
    seconds: float = 0.0
    bytes: int = 0


@dataclass
class ExtractReport:
    """The result of a run over a list of videos."""

    store: Location
    fid: str
    dry_run: bool = False
    videos: list[VideoOutcome] = field(default_factory=list)
    seconds: float = 0.0
    annotated_without_video: list[str] = field(default_factory=list)
    progress: RunProgress | None = None  # of the one process that did it

    def count(self, status: str) -> int:
        return sum(video.status == status for video in self.videos)

    def total(self, quantity: Literal["rows", "frames_decoded", "bytes"]) -> int:
        """Sum over the videos done in this run."""
        return sum(getattr(video, quantity) for video in self.videos if video.status == "done")

    @property
    def exit_code(self) -> int:
        return 3 if self.count("failed") else 0

    def text(self) -> str:
        """The failed videos with their reasons, then one line: done, reused, failed, seconds."""
        lines = [
            f"failed  {printable(video.name)}: {video.reason}: {video.message}"
            for video in self.videos
            if video.status == "failed"
        ]
        if self.annotated_without_video:
            names = self.annotated_without_video
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"{len(names)} annotated videos have no file here: {shown}")
        done = "to do" if self.dry_run else "done"
        lines.append(
            f"{len(self.videos)} videos: {self.count('done')} {done}, "
            f"{self.count('reused')} reused, {self.count('failed')} failed; "
            f"{self.total('rows')} snippets, {self.total('frames_decoded')} frames, "
            f"{self.total('bytes') / 1e6:.1f} MB in {self.seconds:.1f} s -> {self.store}"
        )
        if self.progress is not None and self.progress.clips:
            lines.append(rates_text(self.progress))
        return "\n".join(lines)

    def to_mapping(self) -> dict[str, Any]:
        return {
            "store": str(self.store),
            "fid": self.fid,
            "dry_run": self.dry_run,
            "done": self.count("done"),
            "reused": self.count("reused"),
            "failed": self.count("failed"),
            "snippets": self.total("rows"),
            "frames_decoded": self.total("frames_decoded"),
            "bytes": self.total("bytes"),
            "seconds": self.seconds,
            "rates": None if self.progress is None else self.progress.rates(),
            "annotated_without_video": self.annotated_without_video,
            "videos": [video._asdict() for video in self.videos],
        }
