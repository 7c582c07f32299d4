"""Which subsets are trained, validated and tested on."""

from __future__ import annotations

import pytest

from tadpipe.annotations import Action, Annotations, Video
from tadpipe.datasets.thumos14 import THUMOS14
from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.pipeline.subsets import choose_subsets


def annotations(*subsets: str, empty: tuple[str, ...] = ()) -> Annotations:
    videos = {
        name: Video(name, name, 9.0, actions=() if name in empty else (Action(1, 2, "a"),))
        for name in subsets
    }
    return Annotations(videos, ("a",), "a.json")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("training", "validation"), ("training", "validation", None)),
        (("Train", "Val"), ("Train", "Val", None)),
        (("training", "validation", "test"), ("training", "test", "validation")),
        (("Validation", "Test"), ("Validation", "Test", None)),
        (("mine",), ("mine", None, None)),
        (("train", "other"), ("train", None, None)),
    ],
)
def test_usual_names_are_recognised(
    names: tuple[str, ...], expected: tuple[str | None, ...]
) -> None:
    assert choose_subsets(annotations(*names)) == expected


def test_a_test_subset_without_any_action_is_not_scored() -> None:
    hidden = annotations("training", "validation", "testing", empty=("testing",))
    assert choose_subsets(hidden) == ("training", "validation", None)


def test_the_data_set_decides_when_it_is_named() -> None:
    assert choose_subsets(annotations("Test", "Validation"), THUMOS14)[:2] == ("Validation", "Test")
    with pytest.raises(AnnotationError, match="subsets: a, b"):
        choose_subsets(annotations("a", "b"), THUMOS14)


def test_unclear_names_are_asked_for_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="subsets one, two") as caught:
        choose_subsets(annotations("one", "two"))
    assert "--subset" in str(caught.value)
    assert choose_subsets(annotations("one", "two"), train="ONE", test="two") == (
        "one",
        "two",
        None,
    )


def test_a_subset_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(AnnotationError, match="subsets: training"):
        choose_subsets(annotations("training"), test="nope")


def test_nothing_is_trained_or_chosen_on_the_test_subset() -> None:
    both = annotations("training", "validation")
    with pytest.raises(ConfigError, match="training subset"):
        choose_subsets(both, test="training")
    with pytest.raises(ConfigError, match="validation subset is the test subset"):
        choose_subsets(both, validation="validation")
