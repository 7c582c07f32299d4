"""DatasetSpec: which subsets of a file are trained and tested on."""

from __future__ import annotations

import pytest

from tadpipe.datasets.thumos14 import THUMOS14
from tadpipe.errors import AnnotationError


def test_subset_names_of_both_releases_are_known_without_case() -> None:
    assert THUMOS14.split(["Test", "Validation"]) == ("Validation", "Test")
    assert THUMOS14.split(["training", "validation"]) == ("training", "validation")


def test_unknown_subsets_are_listed() -> None:
    with pytest.raises(AnnotationError, match="subsets: mine, yours"):
        THUMOS14.split(["mine", "yours"], "a.json")


def test_blocked_videos_depend_on_the_protocol() -> None:
    assert set(THUMOS14.blocked_videos("opentad")) == {"video_test_0000270", "video_test_0001292"}
    assert THUMOS14.blocked_videos("actionformer") == {}
