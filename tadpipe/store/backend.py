"""What a kind of store must be able to do; everything else is written once, above it.

A backend keeps, per feature spec, immutable parts (rows [R, C] and row times [R]) and immutable
commits. Both kinds pass the same contract tests.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tadpipe.errors import ConfigError, StoreError
from tadpipe.location import Location
from tadpipe.store import ledger, run_progress
from tadpipe.store.commits import Commit, encode
from tadpipe.store.ledger import LedgerRow
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.run_progress import RunProgress
from tadpipe.store.shards import Flaw, parse_metadata
from tadpipe.store.spool import FinishedVideo

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
VERSION_KEY = "tadpipe_store_version"
SPEC_KEY = "tadpipe_feature_spec"
COVER_SHARE = 8  # the catalogue is written again when a share of 1/8 of the commits is new
COVER_COMMITS = 64  # or so many: each costs opening a read
Array = np.ndarray[Any, Any]


class PartRows(Protocol):
    """The arrays of one part."""

    @property
    def shape(self) -> tuple[int, int]: ...  # rows, channels

    def read(self, start: int, stop: int, step: int) -> Array: ...  # [n, C], memory of its own

    def times(self, start: int, stop: int) -> Array: ...  # [n] float64


class Backend(ABC):
    """One store on disk, or on object storage."""

    path: Location
    work: Path  # folder on this machine: spool, ledger and other things beside the features

    def __init__(self) -> None:
        self._covered: dict[str, int] = {}  # fid -> commits found in the catalogue
        self._uncovered: dict[str, set[str]] = {}  # fid -> commits read one by one

    @abstractmethod
    def specs(self) -> dict[str, FeatureSpec]:
        """fid -> spec, sorted by fid."""

    def commits(self, fid: str, known: Mapping[str, Commit]) -> Iterator[Commit]:
        """Every readable commit of a spec, in any order; a damaged one is logged and left out.

        Args:
            known: id -> commit, of those read before; they never change.
        """
        wanted = set(self.commit_ids(fid))
        yield from (known[commit_id] for commit_id in wanted & known.keys())
        wanted -= known.keys()
        for commit in self._remembered(fid) if wanted else ():
            if commit.id in wanted:
                wanted.remove(commit.id)
                self._covered[fid] = self._covered.get(fid, 0) + 1
                yield commit
                if not wanted:
                    return
        self._uncovered.setdefault(fid, set()).update(wanted)
        yield from self._read_commits(fid, sorted(wanted))

    def _remembered(self, fid: str) -> Iterator[Commit]:
        """Commits that can be had more quickly than one by one, perhaps some twice."""
        yield from ()

    def _read_commits(self, fid: str, commit_ids: Sequence[str]) -> Iterator[Commit]:
        for commit_id in commit_ids:
            try:
                yield self.read_commit(fid, commit_id)
            except StoreError as error:
                logger.warning("%s Its videos count as not present.", error)

    @abstractmethod
    def commit_ids(self, fid: str) -> list[str]: ...

    @abstractmethod
    def read_commit(self, fid: str, commit_id: str) -> Commit:
        """Read one commit from its own place; StoreError if it is damaged."""

    @abstractmethod
    def open_part(self, fid: str, part: str) -> PartRows: ...

    @abstractmethod
    def check_part(self, fid: str, commit: Commit) -> list[Flaw]:
        """What is wrong with a part as far as sizes, indexes and metadata tell."""

    @abstractmethod
    def spool_root(self, fid: str) -> Path:
        """The folder that holds one spool folder per writer."""

    @abstractmethod
    def spooled_fids(self) -> list[str]:
        """Specs that writers, living or dead, have spool folders for."""

    @abstractmethod
    def exclusive(self) -> AbstractContextManager[None]:
        """Hold what is needed to write; nested holds of one store are one."""

    @abstractmethod
    def publish(
        self,
        spec: FeatureSpec,
        commit: Commit,
        videos: Sequence[FinishedVideo],
        folder: Path,
    ) -> None:
        """Make a part and its commit visible, the commit last, both whole or not at all.

        Args:
            videos: the rows of the part, in order; none for a commit without a part.
            folder: on the same file system, of the caller alone; for half-written things.
        """

    parts_are_files = True  # whether `fetch_part` and `publish_files` are for this kind

    @abstractmethod
    def fetch_part(self, fid: str, part: str, into: Path) -> None:
        """Bring the files of a part into a new folder, by hard links where those can be."""

    @abstractmethod
    def publish_files(self, spec: FeatureSpec, commit: Commit, building: Path | None) -> None:
        """As `publish`, of a part whose files are in a folder, which is used up."""

    @abstractmethod
    def ages_sec(self, fid: str, commits: Sequence[str], parts: Sequence[str]) -> dict[str, float]:
        """For how long commits and parts have been there, by the clock of where they are.

        Those that are gone are left out; infinite where age does not matter.
        """

    @abstractmethod
    def rows_worth_packing(self, fid: str, part_rows: int) -> int:
        """Spooled rows at which a part is packed, where the writer asks for `part_rows`."""

    def remember_catalogue(
        self, fid: str, commits: Sequence[Commit], removed: bool = False
    ) -> None:
        """Write the commits down end to end, so that opening is quick; nothing depends on it.

        Only once so many are new that all writing of it together stays in proportion: with many
        writers the catalogue is what each of them would write the whole of.

        Args:
            removed: commits have gone for which it still has lines.
        """
        new = len(self._uncovered.get(fid, ()))
        is_due = new * COVER_SHARE >= self._covered.get(fid, 0) or new >= COVER_COMMITS
        if commits and (removed or (new and is_due)):
            self._write_catalogue(fid, b"".join(map(encode, commits)))
            self._covered[fid] = len(commits)
            self._uncovered[fid] = set()

    def _write_catalogue(self, fid: str, raw: bytes) -> None:
        """Nothing to write where commits are together anyway."""
        return

    @abstractmethod
    def unreferenced_parts(self, fid: str) -> list[str]:
        """Parts without a commit."""

    @abstractmethod
    def remove(self, fid: str, parts: Sequence[str], commits: Sequence[str]) -> int:
        """Remove commits, then parts; returns the bytes that became free."""

    @abstractmethod
    def annotations(self) -> tuple[bytes, str] | None:
        """The annotations as they were given, and their SHA-256."""

    @abstractmethod
    def set_annotations(self, raw: bytes, sha256: str) -> None: ...

    @abstractmethod
    def bytes_on_disk(self) -> int: ...

    def record(self, writer_id: str, fid: str, row: LedgerRow) -> None:
        """Add a line to a writer's ledger."""
        ledger.append(self.work / "ledger", writer_id, fid, row)

    def close_ledger(self, writer_id: str) -> None:
        """Make all lines of a writer visible, where they are not at once."""
        return

    def ledger_lines(self) -> list[ledger.Line]:
        """Every attempt as its line of the ledger, oldest first."""
        return ledger.read_lines((self.work / "ledger").glob("*.jsonl"))

    def tell(self, progress: RunProgress) -> None:
        """Keep what a writer says of itself, in place of what it said before.

        Raises:
            OSError, StoreError: it cannot be kept.
        """
        run_progress.write(self.work / "ledger", progress)

    def told(self) -> list[RunProgress]:
        """What every writer said last, the one first that began first."""
        return run_progress.read((self.work / "ledger").glob(f"*{run_progress.SUFFIX}"))

    def attempts(self) -> Iterator[tuple[str, LedgerRow]]:
        """(fid, row) of every attempt, oldest first."""
        return ledger.rows_of(self.ledger_lines())


def spec_of_group(raw: bytes, place: str) -> FeatureSpec:
    """The spec in the zarr.json of its group.

    Raises:
        StoreError: damaged.
    """
    attributes = parse_metadata(raw, place).get("attributes", {})
    try:
        return FeatureSpec.from_mapping(attributes[SPEC_KEY], place)
    except (ConfigError, KeyError, TypeError) as error:
        raise StoreError(
            "The description of these features is damaged.", f"{place}: {error}"
        ) from None


def check_version(version: object, path: Location) -> None:
    """Refuse what is no store, and stores of a format this version does not know."""
    if version is None:
        raise StoreError(
            "Not a feature store.",
            f"{path}: no {VERSION_KEY}",
            "Name a store that tadpipe extract wrote, or another path for a new one.",
        )
    if version != FORMAT_VERSION:
        raise StoreError(
            "The store was written in another format version.",
            f"{path}: version {version}; this tadpipe reads version {FORMAT_VERSION}",
            "Upgrade tadpipe.",
        )


def group_attributes(spec: FeatureSpec) -> Mapping[str, Any]:
    """Attributes of a spec's group, in every kind of store."""
    return {SPEC_KEY: spec.to_mapping()}
