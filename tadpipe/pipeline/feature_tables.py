"""The features a command works on: one spec of each store named, at one stride.

What a store remembers besides features, lengths of videos and a copy of the annotations, is
handed over here too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tadpipe.annotations import Annotations, load_annotations
from tadpipe.store.feature_store import FeatureStore, FeatureView, StoredFeatures
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
        features = FeatureStore.open(path).table(backbone=backbone, stride=stride)
        spec = replace(features.spec, stride=features.stride)
        tables.append(StoreTable(str(path), spec, features))
    return tuple(tables)


def remembered_annotations(
    store: FeatureStore,
    *,
    strict: bool,
    drop_labels: Collection[str] = (),
    for_evaluation: bool = False,
) -> Annotations | None:
    """The annotations a store remembers, read as `load_annotations` does; None without any."""
    raw = store.annotations()
    if raw is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        path.write_bytes(raw)
        kept = load_annotations(
            path, strict=strict, drop_labels=drop_labels, for_evaluation=for_evaluation
        )
    return replace(kept, source=f"{store.path}: annotations")
