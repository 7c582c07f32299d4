"""Which subsets of an annotation file are trained on, validated on and tested on.

A data set's spec knows; elsewhere the usual names do. What stays unclear is asked for.
"""

from __future__ import annotations

from typing import NamedTuple

from tadpipe.annotations import Annotations
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import ConfigError

TRAIN_NAMES = ("training", "train")
TEST_NAMES = ("test", "testing", "validation", "val")
VALIDATION_NAMES = ("validation", "val")


class Subsets(NamedTuple):
    """Names as the file spells them."""

    train: str
    test: str | None  # scored once, after the last epoch
    validation: str | None  # reported during training


def choose_subsets(
    annotations: Annotations,
    spec: DatasetSpec | None = None,
    *,
    train: str | None = None,
    test: str | None = None,
    validation: str | None = None,
) -> Subsets:
    """Choose by what is asked for, then by the data set, then by the usual names.

    Raises:
        ConfigError: no training subset can be told, or nothing would be held out honestly.
        AnnotationError: a subset asked for does not exist.
    """
    names = annotations.subset_names()
    for asked in (train, test, validation):
        if asked is not None:
            annotations.subset(asked)  # raises with the names there are
    if spec is not None and train is None:
        split = spec.split(names, annotations.source)
        train, test = split.train, test or split.test
    train = _spelled(names, train) or _guess_train(names, annotations.source)
    others = [name for name in names if name != train and _has_actions(annotations, name)]
    test = _spelled(names, test) or _first(others, TEST_NAMES)
    if validation is None:
        validation = _first([name for name in others if name != test], VALIDATION_NAMES)
    validation = _spelled(names, validation)
    if test == train:
        raise ConfigError(
            "The test subset is the training subset.",
            f"{annotations.source}: both '{train}'",
            f"Subsets: {', '.join(names)}. Name another with --test-subset.",
        )
    if validation is not None and validation == test:
        raise ConfigError(
            "The validation subset is the test subset.",
            f"{annotations.source}: both '{test}'",
            f"Subsets: {', '.join(names)}. Nothing may be tuned on the test subset; "
            "name another with --val-subset.",
        )
    return Subsets(train, test, validation)


def _guess_train(names: list[str], source: str) -> str:
    if len(names) == 1:
        return names[0]
    found = _first(names, TRAIN_NAMES)
    if found is None and _first(names, ("test", "testing")) is not None:
        found = _first(names, VALIDATION_NAMES)  # THUMOS14 trains on its validation videos
    if found is None:
        raise ConfigError(
            "Which subset to train on is not clear.",
            f"{source}: subsets {', '.join(names) or 'none'}",
            "Name one with --subset.",
        )
    return found


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    """The file's spelling of the first wanted name it has."""
    known = {name.lower(): name for name in names}
    return next((known[name] for name in wanted if name in known), None)


def _spelled(names: list[str], asked: str | None) -> str | None:
    return None if asked is None else _first(names, (asked.lower(),))


def _has_actions(annotations: Annotations, subset: str) -> bool:
    return any(video.actions for video in annotations.subset(subset).values())
