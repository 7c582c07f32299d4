"""What a run folder says about the annotations it was trained with, for scoring it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from tadpipe.annotations import Annotations, Detections
from tadpipe.datasets import DATASETS
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import ConfigError
from tadpipe.pipeline.feature_tables import remembered_annotations
from tadpipe.registry import resolve
from tadpipe.store.feature_store import FeatureStore


class RunSettings(NamedTuple):
    """What a run folder says about the annotations it was trained with."""

    annotations: str | Path | Annotations | None = None
    dataset: str | None = None
    subset: str | None = None


def run_settings(detections: str | Path | Detections) -> RunSettings:
    """The annotations, data set and test subset of a run folder; nothing for anything else.

    Raises:
        ConfigError: the run's config.json cannot be read.
    """
    if not isinstance(detections, (str, Path)):
        return RunSettings()
    path = Path(detections) / "config.json"
    if not path.is_file():
        return RunSettings()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        subset, dataset = config["subsets"]["test"], config["dataset"]
        if config["annotations"] is None:  # an imported checkpoint without any
            return RunSettings(None, dataset, subset)
        annotations = _seen_from(path.parent, Path(config["annotations"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("The run's configuration cannot be read.", f"{path}: {error}") from None
    if annotations.exists():
        return RunSettings(annotations, dataset, subset)
    store = _seen_from(path.parent, config["stores"][0])
    return RunSettings(_remembered(store, dataset), dataset, subset)


def run_stores(run: Path) -> list[Path]:
    """The stores that a run was trained on, as seen from here; they may be gone."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return [_seen_from(run, store) for store in config["stores"]]


def _seen_from(run: Path, path: str | Path) -> Path:
    """A path of a run's config.json: below a folder the run is in, else as seen from here."""
    above = (folder / path for folder in run.absolute().parents)
    return next((place for place in above if place.exists()), Path(path))


def _remembered(store: Path, dataset: str | None) -> Annotations | None:
    """The store's own copy of the annotations that a run was trained with, if it is there."""
    if not FeatureStore.exists(store):
        return None
    spec: DatasetSpec | None = resolve("dataset", DATASETS, dataset) if dataset else None
    return remembered_annotations(FeatureStore.open(store), spec, strict=True, for_evaluation=True)
