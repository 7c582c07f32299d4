"""What became of each video of a run, and what the reports of such runs have in common."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from tadpipe.pipeline.video_files import printable


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


class Outcomes:
    """A report with one outcome per video: how many, which failed, what to exit with."""

    dry_run: bool
    videos: list[VideoOutcome]

    def count(self, status: str) -> int:
        return sum(video.status == status for video in self.videos)

    @property
    def exit_code(self) -> int:
        return 3 if self.count("failed") else 0

    def failed_lines(self) -> list[str]:
        """The failed videos with their reasons."""
        return [
            f"failed  {printable(video.name)}: {video.reason}: {printable(video.message)}"
            for video in self.videos
            if video.status == "failed"
        ]

    def counts_text(self, reused: str = "reused") -> str:
        done = "to do" if self.dry_run else "done"
        return (
            f"{len(self.videos)} videos: {self.count('done')} {done}, "
            f"{self.count('reused')} {reused}, {self.count('failed')} failed"
        )

    def counts(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "dry_run": self.dry_run,
            "done": self.count("done"),
            "reused": self.count("reused"),
            "failed": self.count("failed"),
        }
