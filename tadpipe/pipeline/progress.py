"""How a pipeline function tells its caller how far it is; the command line draws it with tqdm.

Every pipeline function takes `progress: Progress = SILENT`; library code never prints.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Stages follow one another: begin, advance any number of times, end."""

    def begin(self, label: str, total: int | None, unit: str) -> None:
        """A stage of `total` units ("video", "step"); None when the number is unknown."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """`units` more are done; `note` replaces the text beside the bar ("41 snippets/s")."""

    def end(self, summary: str = "") -> None:
        """The stage is over; one summary line."""


class Silent:
    """Draws nothing."""

    def begin(self, label: str, total: int | None, unit: str) -> None:
        del label, total, unit

    def advance(self, units: int = 1, note: str = "") -> None:
        del units, note

    def end(self, summary: str = "") -> None:
        del summary


SILENT = Silent()
