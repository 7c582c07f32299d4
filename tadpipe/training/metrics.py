"""metrics.jsonl: one line per optimiser step and per validation, and TensorBoard when installed.

A line holds nothing that differs between two runs of the same training (no clock), so the file of
a killed and resumed run equals that of an uninterrupted one byte for byte.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tadpipe.config import write_atomically

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run; a last line cut by a crash is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not text.endswith("\n"):
            break
        lines.append(json.loads(text))
    return lines


class MetricsLog:
    """Appends to the files of a run, from optimiser step `first_step` on."""

    def __init__(self, folder: Path, *, first_step: int, tensorboard: bool) -> None:
        """Lines of `first_step` and later, left by a killed run, are taken out."""
        kept = [line for line in read_metrics(folder) if line["step"] < first_step]
        write_atomically(folder / FILE, "".join(_text(line) for line in kept))
        self._file = (folder / FILE).open("a", encoding="utf-8")
        self._board = _board(folder / TENSORBOARD, first_step) if tensorboard else None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line for step `step`."""
        self._file.write(_text({"step": step, **values}))
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Make sure that what was written survives a crash of the machine."""
        os.fsync(self._file.fileno())


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _board(folder: Path, first_step: int) -> Any:
    """A TensorBoard writer, or None when TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed; metrics.jsonl holds the same figures")
        return None
    return SummaryWriter(folder, purge_step=first_step)
