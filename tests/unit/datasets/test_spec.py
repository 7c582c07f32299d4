"""DatasetSpec: which subsets of a file are trained and tested on."""

from __future__ import annotations

import pytest

from tadpipe.datasets import DATASETS
from tadpipe.datasets.spec import DatasetSpec, Split
from tadpipe.datasets.thumos14 import THUMOS14
from tadpipe.errors import AnnotationError
from tadpipe.evaluation.protocols import PROTOCOLS
from tadpipe.registry import resolve

# Subsets of the releases, number of classes, first and last tIoU, whose rules are the official.
FACTS = {
    "activitynet": ("training", "validation", 200, 0.5, 0.95, "activitynet"),
    "charades": ("training", "testing", 157, 0.1, 0.9, "actionformer"),
    "ego4d_mq": ("train", "val", 110, 0.1, 0.5, "actionformer"),
    "ego4d_mq_opentad": ("train", "val", 110, 0.1, 0.5, "actionformer"),
    "epic_kitchens": ("train", "val", 300, 0.1, 0.5, "epic"),
    "epic_kitchens_noun": ("train", "val", 300, 0.1, 0.5, "epic"),
    "epic_kitchens_verb": ("training", "validation", 97, 0.1, 0.5, "epic"),
    "epic_sounds": ("train", "val", 44, 0.1, 0.5, "epic"),
    "fineaction": ("training", "validation", 106, 0.5, 0.95, "activitynet"),
    "hacs": ("training", "validation", 200, 0.5, 0.95, "activitynet"),
    "multithumos": ("training", "validation", 65, 0.1, 0.9, "actionformer"),
    "thumos14": ("training", "validation", 20, 0.3, 0.7, "actionformer"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_as_published(name: str) -> None:
    spec: DatasetSpec = resolve("dataset", DATASETS, name)
    train, test, classes, lowest, highest, official = FACTS[name]
    assert spec.name == name
    assert spec.split([test, train]) == Split(train, test)
    assert (spec.num_classes, spec.tious[0], spec.tious[-1]) == (classes, lowest, highest)
    assert (spec.official, spec.official in PROTOCOLS) == (official, True)


def test_subset_names_of_both_releases_are_known_without_case() -> None:
    assert THUMOS14.split(["Test", "Validation"]) == ("Validation", "Test")
    assert THUMOS14.split(["training", "validation"]) == ("training", "validation")


def test_unknown_subsets_are_listed() -> None:
    with pytest.raises(AnnotationError, match="subsets: mine, yours"):
        THUMOS14.split(["mine", "yours"], "a.json")


def test_blocked_videos_depend_on_the_protocol() -> None:
    assert set(THUMOS14.blocked_videos("opentad")) == {"video_test_0000270", "video_test_0001292"}
    assert THUMOS14.blocked_videos("actionformer") == {}
