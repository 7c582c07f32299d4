"""What an import of feature files did: one outcome per video, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tadpipe.location import Location
from tadpipe.pipeline.video_files import printable
from tadpipe.pipeline.video_outcomes import Outcomes, VideoOutcome


@dataclass
class ImportReport(Outcomes):
    """What became of each video of an import."""

    store: Location
    fid: str
    dry_run: bool = False
    videos: list[VideoOutcome] = field(default_factory=list)
    other_lengths: list[str] = field(default_factory=list)  # rows and annotated duration disagree
    seconds: float = 0.0

    def text(self) -> str:
        """The files that failed with their reasons, lengths that differ, then one line of sums."""
        lines = self.failed_lines()
        if self.other_lengths:
            shown = ", ".join(map(printable, self.other_lengths[:5]))
            dots = ", ..." if len(self.other_lengths) > 5 else ""
            count = len(self.other_lengths)
            lines.append(
                f"{count} differ from their annotated duration by more than a clip: {shown}{dots}"
            )
        rows = sum(video.rows for video in self.videos if video.status == "done")
        lines.append(f"{self.counts_text()}; {rows} rows in {self.seconds:.1f} s -> {self.store}")
        return "\n".join(lines)

    def to_mapping(self) -> dict[str, Any]:
        return {
            "store": str(self.store),
            "fid": self.fid,
            **self.counts(),
            "seconds": self.seconds,
            "other_lengths": self.other_lengths,
            "videos": [{**video._asdict(), "name": printable(video.name)} for video in self.videos],
        }
