"""What no official checkpoint says: which features it was trained on, and what its classes are.

The features are those of a store, or of a release whose convention is known; the labels come from
annotations that number their classes, or from a file. Nothing is assumed: what is missing is asked
for, and what an official configuration says otherwise is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tadpipe.annotations import Annotations
from tadpipe.datasets.annotation_files import read_annotations, read_class_map
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import ConfigError
from tadpipe.pipeline.feature_provenance import state_provenance
from tadpipe.pipeline.feature_tables import StoreTable, open_tables, remembered_annotations
from tadpipe.pipeline.recipe import ANY_LABEL
from tadpipe.pipeline.subsets import choose_subsets
from tadpipe.store.metadata import FeatureSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """The features an imported detector is for."""

    specs: tuple[FeatureSpec, ...]  # one per store, in the order of the channels
    names: tuple[str, ...]  # of the stores or conventions, for messages
    tables: tuple[StoreTable, ...] = ()  # empty: no store is at hand


def find_features(
    stores: Sequence[str | Path],
    conventions: Sequence[str],
    *,
    backbone: str | None = None,
    stride: int | None = None,
) -> Features:
    """The features named.

    Raises:
        ConfigError: none or both kinds are named, or a convention leaves something open.
        StoreError: see `open_tables`.
    """
    if stores and conventions:
        raise ConfigError(
            "Features are named twice.",
            f"--features {', '.join(map(str, stores))};  --convention {', '.join(conventions)}",
            "Leave one of the two out.",
        )
    if stores:
        tables = open_tables([Path(store) for store in stores], backbone=backbone, stride=stride)
        names = tuple(table.store for table in tables)
        return Features(tuple(table.spec for table in tables), names, tables)
    if not conventions:
        raise ConfigError(
            "It is not stated which features the detector was trained on.",
            "a checkpoint does not say",
            "Give --features STORE, or --convention NAME for released features (docs/import.md).",
        )
    specs = []
    for name in conventions:
        try:
            specs.append(state_provenance(name).spec)
        except ConfigError as error:
            raise ConfigError(
                error.what, error.where, "Import the features into a store and give --features."
            ) from None
    return Features(tuple(specs), tuple(f"convention {name}" for name in conventions))


def check_stated_features(stated: Mapping[str, Any], source: str, features: Features) -> None:
    """Refuse features that are not those of the official configuration.

    Args:
        stated: as `official_files.stated_features`.
    Raises:
        ConfigError: another stride, span, rate or width.
    """
    actual: dict[str, set[float | None]] = {
        "stride": {float(spec.stride) for spec in features.specs},
        "span": {float(spec.span_frames) for spec in features.specs},
        "fps": {spec.fps for spec in features.specs},
    }
    wrong = [
        f"{key} {value:g}, {', '.join(features.names)}: {', '.join(map(str, actual[key]))}"
        for key, value in stated.items()
        if key in actual and float(value) not in actual[key]
    ]
    if wrong:
        raise ConfigError(
            "Features do not fit the official configuration.",
            "\n".join(f"{source}: {line}" for line in wrong),
            "Use the features the checkpoint was trained on.",
        )


def check_width(channels: int | tuple[int, ...], features: Features, where: str) -> None:
    """Refuse features that are not as wide as the checkpoint's input.

    Args:
        channels: of each source, where every source has a projection of its own; they may also
            come concatenated from one store.
    Raises:
        ConfigError: another number of channels.
    """
    widths = tuple(spec.channels for spec in features.specs)
    wanted = (channels,) if isinstance(channels, int) else channels
    if sum(wanted) != sum(widths) or (len(wanted) > 1 < len(widths) and wanted != widths):
        raise ConfigError(
            "Features do not fit the checkpoint.",
            f"{', '.join(features.names)}: {', '.join(map(str, widths))} channels;  "
            f"{where}: {channels}",
            "Use the features the checkpoint was trained on; --features once per store.",
        )


def find_annotations(
    path: str | Path | None, features: Features, spec: DatasetSpec | None
) -> Annotations | None:
    """The annotations named, else the first copy a store remembers, else none."""
    if path is not None:
        return read_annotations(path, spec)
    for table in features.tables:
        kept = remembered_annotations(table.features.store, spec)
        if kept is not None:
            return kept
    return None


def find_test_subset(truth: Annotations, spec: DatasetSpec | None, asked: str | None) -> str | None:
    """The subset to score: as asked for, as the data set or the usual names tell, else none.

    Raises:
        AnnotationError: it does not exist, or the file is not split like the data set.
    """
    if asked is not None:
        names = {video.subset for video in truth.subset(asked).values()}
        return names.pop()
    if spec is not None:
        return spec.split(truth.subset_names(), truth.source).test
    return choose_subsets(truth).test


def class_labels(
    count: int,
    *,
    labels: str | Path | None,
    truth: Annotations | None,
    class_agnostic: bool,
    where: str,
) -> tuple[str, ...]:
    """The label of every class by its number.

    Args:
        count: classes of the checkpoint.
        labels: file with one name per line; else the annotations must number their classes.
        class_agnostic: all actions are one class, whatever their labels.
        where: the checkpoint, for messages.
    Raises:
        ConfigError: no order is stated, or it is one of another number of classes.
    """
    if labels is not None:
        names = read_class_map(Path(labels))
        _check_count(len(names), count, f"{labels}: {len(names)} lines", where)
        return names
    if class_agnostic:
        _check_count(1, count, "windows.class_agnostic = true", where)
        return (ANY_LABEL,)
    if truth is None or not truth.label_ids:
        raise ConfigError(
            "The order of the classes is not stated.",
            f"{where}: {count} classes;  "
            + ("no annotations" if truth is None else f"{truth.source}: no label_id"),
            "Give --annotations whose entries have `label_id`, or --labels FILE with one label "
            "per line in the order of the official classes"
            + ("; or --set windows.class_agnostic=true." if count == 1 else "."),
        )
    numbered = {number: label for label, number in truth.label_ids.items()}
    highest = max(numbered) + 1
    if highest > count:
        _check_count(highest, count, f"{truth.source}: label_id up to {highest - 1}", where)
    unnamed = [number for number in range(count) if number not in numbered]
    if unnamed:
        logger.warning(
            "%s names %d of %d classes; the others are called by their number (class %d, ...)",
            truth.source,
            len(numbered),
            count,
            unnamed[0],
        )
    return tuple(numbered.get(number, f"class {number}") for number in range(count))


def _check_count(given: int, count: int, source: str, where: str) -> None:
    if given != count:
        raise ConfigError(
            "The labels are not those of the checkpoint.",
            f"{where}: {count} classes;  {source}",
            "Give the labels of the data set it was trained on (--annotations or --labels)"
            + (", or --set windows.class_agnostic=true." if count == 1 else "."),
        )
