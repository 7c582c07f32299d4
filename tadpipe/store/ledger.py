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


def append(folder: Path, writer_id: str, fid: str, row: LedgerRow) -> None:
    """Add a line to the writer's file; a name that is not Unicode text is escaped by JSON."""
    append_line(folder / f"{writer_id}.jsonl", json.dumps({"fid": fid, **asdict(row)}))


def read(folder: Path) -> Iterator[tuple[str, LedgerRow]]:
    """(fid, row) of every attempt, oldest first."""
    return read_files(folder.glob("*.jsonl"))


def read_files(paths: Iterable[Path]) -> Iterator[tuple[str, LedgerRow]]:
    """(fid, row) of every line of some files, oldest first."""
    found: list[tuple[str, LedgerRow]] = []
    for path in sorted(paths):
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                values: dict[str, Any] = json.loads(line)
                found.append((values.pop("fid"), LedgerRow(**values)))
            except (ValueError, TypeError, KeyError):
                logger.warning("%s:%d: unreadable line left out", path, number)
    yield from sorted(found, key=lambda item: item[1].at_unix_sec)
