"""The ledger: one JSON line per video and attempt - done, reused or failed, why, at what cost.

Each writer appends to a file of its own, one write per line, so that writers never wait for each
other; a line cut off by a kill is the last of its file and is left out when the ledger is read.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tadpipe.store.durable import append_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LedgerRow:
    """What became of one video in one run."""

    name: str
    status: Literal["done", "reused", "failed"]
    reason: str = ""  # a VideoReason where it failed or is a copy
    message: str = ""
    content_sha256: str = ""
    seconds: float = 0.0
    frames_decoded: int = 0
    bytes: int = 0  # of feature rows
    at_unix_sec: float = field(default_factory=time.time)


Line = dict[str, Any]  # a row with its fid, as JSON has it
_KEYS = {"fid", *LedgerRow.__dataclass_fields__}


def append(folder: Path, writer_id: str, fid: str, row: LedgerRow) -> None:
    """Add a line to the writer's file; a name that is not Unicode text is escaped by JSON."""
    append_line(folder / f"{writer_id}.jsonl", json.dumps({"fid": fid, **asdict(row)}))


def read(folder: Path) -> Iterator[tuple[str, LedgerRow]]:
    """(fid, row) of every attempt, oldest first."""
    return rows_of(read_lines(folder.glob("*.jsonl")))


def rows_of(lines: Iterable[Line]) -> Iterator[tuple[str, LedgerRow]]:
    """(fid, row) of lines."""
    for line in lines:
        values = dict(line)
        yield values.pop("fid"), LedgerRow(**values)


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """The lines of some files as they are, oldest first: quicker than rows, for many of them."""
    found: list[Line] = []
    for path in sorted(paths):
        raw = path.read_bytes()
        try:  # all lines at once takes a third of the time
            lines = json.loads(b"[%b]" % b",".join(raw.splitlines()))
        except ValueError:
            lines = list(_whole_lines(path, raw))
        found += [line for line in lines if isinstance(line, dict) and line.keys() == _KEYS]
    return sorted(found, key=_when)


def _whole_lines(path: Path, raw: bytes) -> Iterator[Line]:
    """Line by line: one of them is torn."""
    for number, line in enumerate(raw.splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError:
            logger.warning("%s:%d: unreadable line left out", path, number)


def _when(line: Line) -> float:
    return float(line["at_unix_sec"])
