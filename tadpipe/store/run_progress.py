"""How far a run that writes to a store is, for whoever asks from another terminal.

Each writer keeps one small file beside its ledger up to date, `ledger/<writer>.progress.json`, and
leaves it as its last word; on object storage every few seconds (object_ledger.py). Nothing else
depends on it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SUFFIX = ".progress.json"


@dataclass(frozen=True)
class RunProgress:
    """What one writer has done since it began."""

    writer: str
    fid: str
    host: str
    pid: int
    began_unix_sec: float
    updated_unix_sec: float
    ended: bool  # the writer has left; False for ever after a kill
    videos_total: int | None  # None where the writer gets its videos bit by bit
    done: int
    reused: int
    failed: int
    frames_decoded: int  # also of the videos under way, like the next three
    clips: int
    seconds: float  # of extraction
    device_busy_sec: float  # of these, that the backbone was at work

    @property
    def videos_per_hour(self) -> float:
        """Of videos that had to be extracted."""
        return 3600 * self._per_sec(self.done + self.failed)

    @property
    def frames_per_sec(self) -> float:
        return self._per_sec(self.frames_decoded)

    @property
    def clips_per_sec(self) -> float:
        return self._per_sec(self.clips)

    @property
    def device_waited(self) -> float:
        """Share of the time, 0..1, in which the backbone had nothing to do."""
        return min(max(1.0 - self._per_sec(self.device_busy_sec), 0.0), 1.0) if self.clips else 1.0

    @property
    def left_sec(self) -> float | None:
        """Seconds to the end, at the mean speed so far; None while nothing tells."""
        finished = self.done + self.failed
        if self.ended:
            return 0.0
        if self.videos_total is None or not finished:
            return None
        return (self.videos_total - self.reused - finished) * self.seconds / finished

    def rates(self) -> dict[str, float | None]:
        """The derived figures, for JSON."""
        return {
            "videos_per_hour": self.videos_per_hour,
            "frames_per_sec": self.frames_per_sec,
            "clips_per_sec": self.clips_per_sec,
            "device_waited": self.device_waited,
            "left_sec": self.left_sec,
        }

    def _per_sec(self, quantity: float) -> float:
        return quantity / self.seconds if self.seconds > 0 else 0.0


def write(folder: Path, progress: RunProgress) -> None:
    """Replace a writer's file in one step; it need not survive a power cut.

    Raises:
        OSError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{progress.writer}{SUFFIX}"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(progress)))
    os.replace(temporary, path)


def read(paths: Iterable[Path]) -> list[RunProgress]:
    """What writers said last, the one first that began first."""
    found = []
    for path in paths:
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
            found.append(RunProgress(**values))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError):
            logger.warning("%s: unreadable progress left out", path)
    return sorted(found, key=lambda progress: progress.began_unix_sec)


def rates_text(progress: RunProgress) -> str:
    """The rates on one line, for a bar, a summary or a status."""
    text = (
        f"{progress.videos_per_hour:.1f} videos/h, {progress.frames_per_sec:.0f} frames/s, "
        f"{progress.clips_per_sec:.1f} clips/s, backbone waits {progress.device_waited:.0%}"
    )
    left = progress.left_sec
    return text if left is None or progress.ended else f"{text}, {clock_text(left)} left"


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
