"""The ledger of a store on object storage, where nothing can be appended to.

A writer appends to a file on its own machine, as it does in a folder store, and puts the file
whole, under a name of the writer's own, every few seconds and when it ends; after some lines a new
file begins. What a killed writer had not put yet is put by the next one on that machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tadpipe.store import ledger
from tadpipe.store.ledger import LedgerRow
from tadpipe.store.objects import Objects

LINES = 1000  # of one object
PUT_EVERY_SEC = 5.0
_SUFFIX = ".jsonl"


class ObjectLedger:
    """Ledger files on this machine and what of them is in the store.

    Args:
        folder: of the files that are not wholly in the store yet.
        cache: of the files read from the store before.
    """

    def __init__(self, objects: Objects, folder: Path, cache: Path) -> None:
        self._objects = objects
        self._folder = folder
        self._cache = cache
        self._current: dict[str, tuple[int, int]] = {}  # writer -> (number of its file, lines)
        self._put_sec: dict[str, float] = {}  # writer -> monotonic seconds of the last put

    def record(self, writer_id: str, fid: str, row: LedgerRow) -> None:
        number, lines = self._current.get(writer_id, (self._next_number(writer_id), 0))
        stem = f"{writer_id}.{number:05d}"
        ledger.append(self._folder, stem, fid, row)
        lines += 1
        if lines >= LINES:
            self._hand_over(stem)
            number, lines = number + 1, 0
        elif time.monotonic() - self._put_sec.get(writer_id, 0.0) >= PUT_EVERY_SEC:
            self._objects.put(_key(stem), self._folder / f"{stem}{_SUFFIX}")
            self._put_sec[writer_id] = time.monotonic()
        self._current[writer_id] = number, lines

    def close(self, writer_id: str) -> None:
        """Put what is left of a writer's lines."""
        number, lines = self._current.pop(writer_id, (0, 0))
        if lines:
            self._hand_over(f"{writer_id}.{number:05d}")

    def adopt(self, is_alive: Callable[[str], bool]) -> None:
        """Put what writers of this machine left that are no more."""
        for path in self._folder.glob(f"*{_SUFFIX}"):
            writer_id = path.stem.rpartition(".")[0]
            if writer_id not in self._current and not is_alive(writer_id):
                self._hand_over(path.stem)

    def lines(self) -> list[ledger.Line]:
        """Every attempt, oldest first, also those still on this machine only."""
        local = {path.stem for path in self._folder.glob(f"*{_SUFFIX}")}
        facts = self._objects.listing("ledger")
        missing: dict[str, Path] = {}  # key -> where it is kept once read
        files = [self._folder / f"{stem}{_SUFFIX}" for stem in sorted(local)]
        for key, fact in facts.items():
            stem = key.removeprefix("ledger/").removesuffix(_SUFFIX)
            if not key.endswith(_SUFFIX) or stem in local:
                continue
            version = "".join(filter(str.isalnum, fact.version))
            kept = self._cache / f"{stem}.{version}{_SUFFIX}"
            files.append(kept)
            if not kept.exists():
                missing[key] = kept
        for key, raw in self._objects.read_many(list(missing)).items():
            kept = missing[key]
            kept.parent.mkdir(parents=True, exist_ok=True)
            for older in self._cache.glob(f"{kept.name.rsplit('.', 2)[0]}.*"):
                older.unlink(missing_ok=True)
            kept.write_bytes(raw)
        return ledger.read_lines(path for path in files if path.exists())

    def _hand_over(self, stem: str) -> None:
        """Put a file that is not written to any more; then this machine need not keep it."""
        path = self._folder / f"{stem}{_SUFFIX}"
        try:
            self._objects.put(_key(stem), path)
        except FileNotFoundError:  # another writer did the same this moment
            return
        path.unlink(missing_ok=True)

    def _next_number(self, writer_id: str) -> int:
        """Files of a writer of this name, in an earlier life, are not written over."""
        names = [key.removeprefix("ledger/") for key in self._objects.listing("ledger")]
        names += [path.name for path in self._folder.glob(f"{writer_id}.*{_SUFFIX}")]
        mine = [name for name in names if name.startswith(f"{writer_id}.")]
        return max((int(name.split(".")[1]) for name in mine), default=-1) + 1


def _key(stem: str) -> str:
    return f"ledger/{stem}{_SUFFIX}"
