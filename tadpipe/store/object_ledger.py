"""The ledger of a store on object storage, where nothing can be appended to.

A writer appends to a file on its own machine, as it does in a folder store, and puts the file
whole, under a name of the writer's own, every few seconds and when it ends; after some lines a new
file begins. What a killed writer had not put yet is put by the next one on that machine. So it is
with what the writer says of its progress, but that this is always one file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tadpipe.store import ledger, run_progress
from tadpipe.store.ledger import LedgerRow
from tadpipe.store.objects import Objects
from tadpipe.store.run_progress import RunProgress

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
        self._put_sec: dict[str, float] = {}  # file -> monotonic seconds of the last put

    def record(self, writer_id: str, fid: str, row: LedgerRow) -> None:
        number, lines = self._current.get(writer_id, (self._next_number(writer_id), 0))
        stem = f"{writer_id}.{number:05d}"
        ledger.append(self._folder, stem, fid, row)
        lines += 1
        name = f"{stem}{_SUFFIX}"
        if lines >= LINES:
            self._hand_over(name)
            number, lines = number + 1, 0
        else:
            self._put_now_and_then(name)
        self._current[writer_id] = number, lines

    def tell(self, progress: RunProgress) -> None:
        """Keep what a writer says of itself."""
        run_progress.write(self._folder, progress)
        self._put_now_and_then(f"{progress.writer}{run_progress.SUFFIX}")

    def close(self, writer_id: str) -> None:
        """Put what is left of a writer's lines, and its last word."""
        number, lines = self._current.pop(writer_id, (0, 0))
        if lines:
            self._hand_over(f"{writer_id}.{number:05d}{_SUFFIX}")
        self._hand_over(f"{writer_id}{run_progress.SUFFIX}")

    def adopt(self, is_alive: Callable[[str], bool]) -> None:
        """Put what writers of this machine left that are no more."""
        for name in [*self._local(_SUFFIX), *self._local(run_progress.SUFFIX)]:
            writer_id = name.split(".")[0]
            if writer_id not in self._current and not is_alive(writer_id):
                self._hand_over(name)

    def lines(self) -> list[ledger.Line]:
        """Every attempt, oldest first, also those still on this machine only."""
        return ledger.read_lines(self._files(_SUFFIX))

    def told(self) -> list[RunProgress]:
        """What every writer said last, here or in the store."""
        return run_progress.read(self._files(run_progress.SUFFIX))

    def _files(self, suffix: str) -> list[Path]:
        """All there are of a kind: this machine's own, and the others once they are read."""
        local = self._local(suffix)
        missing: dict[str, Path] = {}  # key -> where it is kept once read
        files = [self._folder / name for name in local]
        for key, fact in self._objects.listing("ledger").items():
            name = key.removeprefix("ledger/")
            if not name.endswith(suffix) or name in local:
                continue
            version = "".join(filter(str.isalnum, fact.version))
            kept = self._cache / f"{name.removesuffix(suffix)}.{version}{suffix}"
            files.append(kept)
            if not kept.exists():
                missing[key] = kept
        for key, raw in self._objects.read_many(list(missing)).items():
            kept = missing[key]
            kept.parent.mkdir(parents=True, exist_ok=True)
            stem = key.removeprefix("ledger/").removesuffix(suffix)
            for older in self._cache.glob(f"{stem}.*{suffix}"):
                older.unlink(missing_ok=True)
            kept.write_bytes(raw)
        return [path for path in files if path.exists()]

    def _local(self, suffix: str) -> list[str]:
        return sorted(path.name for path in self._folder.glob(f"*{suffix}"))

    def _put_now_and_then(self, name: str) -> None:
        if time.monotonic() - self._put_sec.get(name, 0.0) >= PUT_EVERY_SEC:
            self._objects.put(f"ledger/{name}", self._folder / name)
            self._put_sec[name] = time.monotonic()

    def _hand_over(self, name: str) -> None:
        """Put a file that is not written to any more; then this machine need not keep it."""
        path = self._folder / name
        try:
            self._objects.put(f"ledger/{name}", path)
        except FileNotFoundError:  # nothing was said, or another writer did the same this moment
            return
        path.unlink(missing_ok=True)

    def _next_number(self, writer_id: str) -> int:
        """Files of a writer of this name, in an earlier life, are not written over."""
        names = [key.removeprefix("ledger/") for key in self._objects.listing("ledger")]
        names += self._local(_SUFFIX)
        mine = [n for n in names if n.startswith(f"{writer_id}.") and n.endswith(_SUFFIX)]
        return max((int(name.split(".")[1]) for name in mine), default=-1) + 1
