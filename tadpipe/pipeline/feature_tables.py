"""The features a command works on: one spec of each store named, at one stride.

What a store remembers besides features, lengths of videos and a copy of the annotations, is
handed over here too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tadpipe.annotations import Annotations
from tadpipe.datasets.annotation_files import read_annotations
from tadpipe.datasets.sources import FeatureRows
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import NoAnswerError
from tadpipe.store.feature_store import FeatureStore, StoredFeatures
from tadpipe.store.feature_view import FeatureView
from tadpipe.store.metadata import FeatureSpec


@dataclass(frozen=True)
class StoreTable:
    """The features of one spec in one store, read at `spec.stride`."""

    store: str  # its path, as it was named
    spec: FeatureSpec
    features: StoredFeatures

    @property
    def channels(self) -> int:
        return self.spec.channels

    def names(self) -> Sequence[str]:
        return self.features.names()

    def open(self, name: str) -> FeatureView:
        return self.features.open(name)

    def duration_sec(self, name: str) -> float:
        """Length of a video, as found when it was extracted."""
        return self.features.store.videos(self.features.fid)[name].duration_sec

    def remembered_annotations(
        self, spec: DatasetSpec | None, *, for_evaluation: bool = False
    ) -> Annotations | None:
        """The store's copy; see the function of the same name."""
        return remembered_annotations(self.features.store, spec, for_evaluation=for_evaluation)


class Table(Protocol):
    """Features to train on, whether stored or computed from videos."""

    @property
    def store(self) -> str:
        """What to call it."""

    @property
    def spec(self) -> FeatureSpec: ...

    @property
    def channels(self) -> int: ...

    def names(self) -> Sequence[str]: ...

    def open(self, name: str) -> FeatureRows: ...

    def duration_sec(self, name: str) -> float: ...

    def remembered_annotations(
        self, spec: DatasetSpec | None, *, for_evaluation: bool = False
    ) -> Annotations | None: ...


def is_there(store: Path) -> bool:
    """Whether a store is there, or may be: opening it says why its storage does not answer."""
    try:
        return FeatureStore.exists(store)
    except NoAnswerError:
        return True


def open_tables(
    stores: Sequence[Path], *, backbone: str | None = None, stride: int | None = None
) -> tuple[StoreTable, ...]:
    """Open stores and choose their features.

    Args:
        backbone, stride: needed where a store holds several; a multiple of the stored stride is
            read by leaving rows out, and described as if extracted so.
    Raises:
        StoreError: a store that is not there or holds nothing that fits.
        ConfigError: it holds several that fit.
    """
    tables = []
    for path in stores:
        opened = FeatureStore.open(path)
        opened.keep_rows()
        features = opened.table(backbone=backbone, stride=stride)
        spec = replace(features.spec, stride=features.stride)
        tables.append(StoreTable(str(features.store.path), spec, features))
    return tuple(tables)


def remembered_annotations(
    store: FeatureStore,
    spec: DatasetSpec | None,
    *,
    strict: bool | None = None,
    for_evaluation: bool = False,
) -> Annotations | None:
    """The annotations a store remembers, read as `read_annotations` does; None without any."""
    raw = store.annotations()
    if raw is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        path.write_bytes(raw)
        kept = read_annotations(path, spec, strict=strict, for_evaluation=for_evaluation)
    return replace(kept, source=f"{store.path}: annotations")
