"""The errors tadpipe raises on purpose: what is wrong, where and with which value, what to do.

The command line prints them without a traceback and exits with their `exit_code`
(0 done, 1 failed, 2 wrong usage or configuration, 3 done in part).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class TadpipeError(Exception):
    """Root of all errors a user can cause and mend.

    Args:
        what: one sentence, ends in a full stop.
        where: the file, key or object, with the offending value; may span lines.
        todo: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        super().__init__(what, where, todo)
        self.what = what
        self.where = where
        self.todo = todo

    def __str__(self) -> str:
        parts = (self.what, _indent(self.where), _indent(self.todo))
        return "\n".join(part for part in parts if part)


class ConfigError(TadpipeError, ValueError):
    """A wrong option, preset, project file or value."""

    exit_code = 2


class StoreError(TadpipeError, OSError):
    """A feature store that is missing, damaged, busy or does not hold what was asked for."""

    def __str__(self) -> str:  # OSError would print its first two arguments as errno and text
        return TadpipeError.__str__(self)


class NoAnswerError(StoreError):
    """Storage that does not answer, or refuses to: nothing follows about what it holds."""


class CheckpointError(TadpipeError, ValueError):
    """Weights that cannot be read or do not fit the model."""


class VideoReason(StrEnum):
    """Why a video could not be used; the words of the ledger."""

    NOT_FOUND = "not-found"
    NOT_A_VIDEO = "not-a-video"
    NO_VIDEO_STREAM = "no-video-stream"
    TRUNCATED = "truncated"
    DECODE_ERROR = "decode-error"
    DECODE_TIMEOUT = "decode-timeout"
    TOO_SHORT = "too-short"
    PERMISSION = "permission"
    DUPLICATE_CONTENT = "duplicate-content"
    WORKER_DIED = "worker-died"
    OUT_OF_MEMORY = "out-of-memory"


class VideoError(TadpipeError, ValueError):
    """A video that cannot be decoded as asked; `reason` is what the ledger records."""

    def __init__(self, reason: VideoReason, what: str, where: str = "", todo: str = "") -> None:
        super().__init__(what, where, todo)
        self.reason = reason
        self.args = (reason, what, where, todo)  # so that it survives pickling between processes


@dataclass(frozen=True)
class Defect:
    """One thing wrong in an annotation or detection file."""

    file: str
    place: str  # JSON path, e.g. $.database["v1"].annotations[3].segment
    message: str
    is_warning: bool = False  # odd, but as published files have it: what it concerns is kept

    def __str__(self) -> str:
        kind = "warning: " if self.is_warning else ""
        return f"{self.file}: {self.place}: {kind}{self.message}"


class AnnotationError(TadpipeError, ValueError):
    """Annotations or detections with defects; all of them, not the first."""

    exit_code = 2

    def __init__(self, what: str, defects: Sequence[Defect] = (), todo: str = "") -> None:
        super().__init__(what, "\n".join(str(defect) for defect in defects), todo)
        self.defects = tuple(defects)
        self.args = (what, self.defects, todo)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
