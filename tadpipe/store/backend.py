"""What a kind of store must be able to do; everything else is written once, above it.

A backend keeps, per feature spec, immutable parts (rows [R, C] and row times [R]) and immutable
commits. Both kinds pass the same contract tests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tadpipe.errors import StoreError
from tadpipe.store.commits import Commit
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.spool import SpooledVideo

FORMAT_VERSION = 1
VERSION_KEY = "tadpipe_store_version"
SPEC_KEY = "tadpipe_feature_spec"
Array = np.ndarray[Any, Any]


class PartRows(Protocol):
    """The arrays of one part."""

    @property
    def shape(self) -> tuple[int, int]: ...  # rows, channels

    def read(self, start: int, stop: int, step: int) -> Array: ...  # [n, C], memory of its own

    def times(self, start: int, stop: int) -> Array: ...  # [n] float64


class Flaw(NamedTuple):
    """Rows of a part that cannot be trusted, and why."""

    first_row: int
    stop_row: int
    message: str


class Backend(ABC):
    """One store on disk."""

    path: Path
    work: Path  # folder of the ledger and other things beside the features

    @abstractmethod
    def specs(self) -> dict[str, FeatureSpec]:
        """fid -> spec, sorted by fid."""

    @abstractmethod
    def commits(self, fid: str) -> Iterator[Commit]:
        """Every readable commit of a spec, in any order; a damaged one is logged and left out."""

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
        videos: Sequence[SpooledVideo],
        folder: Path,
    ) -> None:
        """Make a part and its commit visible, the commit last, both whole or not at all.

        Args:
            videos: the rows of the part, in order; none for a commit without a part.
            folder: on the same file system, of the caller alone; for half-written things.
        """

    @abstractmethod
    def rows_worth_packing(self, fid: str, part_rows: int) -> int:
        """Spooled rows at which a part is packed, where the writer asks for `part_rows`."""

    @abstractmethod
    def remember_catalogue(self, fid: str) -> None:
        """Refresh whatever makes opening quicker; nothing depends on it."""

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

    @property
    def ledger(self) -> Path:
        return self.work / "ledger"


def check_version(version: object, path: Path) -> None:
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
