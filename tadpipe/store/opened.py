"""What the writer, the checks, the clean-up and the reports need of an opened store.

`FeatureStore` offers it; they ask for no more, so that none of them imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tadpipe.location import Location
from tadpipe.store.backend import Backend
from tadpipe.store.catalogue import Catalogue
from tadpipe.store.metadata import FeatureSpec


class OpenStore(Protocol):
    """A store on disk with what is known of it in memory."""

    path: Location
    backend: Backend

    def refresh(self) -> None:
        """See what other writers committed since."""

    def specs(self) -> dict[str, FeatureSpec]:
        """fid -> spec."""

    def spec(self, fid: str) -> FeatureSpec:
        """The spec of an id; StoreError without one."""

    def videos(self, fid: str) -> Catalogue:
        """Name -> VideoRow."""

    def has_content(self, fid: str, sha256: str) -> bool:
        """Whether the content is stored, or finished and about to be."""

    def annotations_sha256(self) -> str | None:
        """Of the copy of the annotations, None without one."""

    def note_spooled(self, fid: str, sha256: str) -> None:
        """A writer of this store holds a finished video."""

    def note_committed(self, fid: str, contents: Sequence[str] = ()) -> None:
        """The commits changed; these contents left the spool."""
