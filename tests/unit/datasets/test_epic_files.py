"""EPIC-Kitchens-100 for training: both CSV files, one task, lengths of the videos, defects."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tadpipe.annotations import Action
from tadpipe.datasets.annotation_files import annotation_copy, read_annotations
from tadpipe.datasets.epic_files import epic_truth_file
from tadpipe.datasets.epic_kitchens import EPIC_KITCHENS, EPIC_KITCHENS_NOUN, EPIC_KITCHENS_VERB
from tadpipe.errors import AnnotationError, ConfigError
from tests.unit.datasets.epic_folder import HEAD, make_epic_folder, row

REAL = Path(__file__).parents[4] / "shared" / "data" / "annotations"
VALIDATION, TRAIN = REAL / "EPIC_100_validation.csv", REAL / "EPIC_100_train.csv"


def numbers(path: Path, task: str, subset: str) -> tuple[int, int, int]:
    """Videos, actions and classes that occur."""
    spec = EPIC_KITCHENS_VERB if task == "verb" else EPIC_KITCHENS_NOUN
    videos = read_annotations(path, spec).subset(subset).values()
    labels = [action.label for video in videos for action in video.actions]
    return len(videos), len(labels), len(set(labels))


@pytest.mark.skipif(not VALIDATION.exists(), reason="../shared is not here")
def test_the_real_validation_file_loads_for_both_tasks() -> None:
    assert numbers(VALIDATION, "verb", "validation") == (138, 9668, 78)
    assert numbers(VALIDATION, "noun", "validation") == (138, 9668, 211)


@pytest.mark.skipif(not TRAIN.exists(), reason="the training file is not in ../shared")
def test_the_real_training_file_loads_for_both_tasks() -> None:
    assert numbers(TRAIN, "verb", "training") == (495, 67217, 97)
    assert numbers(TRAIN, "noun", "training") == (495, 67217, 289)


@pytest.mark.skipif(not VALIDATION.exists(), reason="../shared is not here")
def test_real_videos_have_their_lengths_and_no_action_reaches_past_them() -> None:
    read = read_annotations(VALIDATION, EPIC_KITCHENS_VERB, strict=True)
    video = read.videos["P01_11"]
    assert video.duration_sec == pytest.approx(561.527633)
    assert video.actions[1] == Action(1.56, 2.45, "id_001")
    assert read.defects == ()


def test_a_folder_is_read_whole_and_classes_keep_their_numbers(tmp_path: Path) -> None:
    folder = make_epic_folder(tmp_path)
    verbs = read_annotations(folder, EPIC_KITCHENS_VERB)
    nouns = read_annotations(folder, EPIC_KITCHENS_NOUN)
    assert {name: video.subset for name, video in verbs.videos.items()} == {
        "a": "training",
        "b": "training",
        "c": "validation",
    }
    assert verbs.videos["a"].actions == (Action(1.0, 2.5, "id_003"),)
    assert nouns.videos["a"].actions == (Action(1.0, 2.5, "id_299"),)
    assert (len(verbs.labels), len(nouns.labels)) == (97, 300)
    assert nouns.label_ids["id_299"] == nouns.labels.index("id_299") == 299
    assert (verbs.videos["b"].duration_sec, verbs.videos["b"].fps) == (20.0, 60.0)


def test_lengths_may_be_missing(tmp_path: Path) -> None:
    folder = make_epic_folder(tmp_path, info=None)
    assert read_annotations(folder, EPIC_KITCHENS_VERB).videos["a"].duration_sec is None


def test_a_single_file_is_its_subset(tmp_path: Path) -> None:
    make_epic_folder(tmp_path)
    shutil.copy(tmp_path / "EPIC_100_train.csv", tmp_path / "mine.csv")
    train = read_annotations(tmp_path / "EPIC_100_train.csv", EPIC_KITCHENS_VERB)
    assert train.subset_names() == ["training"]
    assert read_annotations(tmp_path / "mine.csv", EPIC_KITCHENS_VERB).subset_names() == ["mine"]


def test_every_defect_of_all_files_is_named_at_once(tmp_path: Path) -> None:
    folder = make_epic_folder(
        tmp_path,
        train=row("a", "03.00", "02.00", 3, 2) + "a,x,00:00:01.0,1,1\n" + row("a", "1", "2", 97, 1),
        validation=row("a", "01.00", "02.00", 1, 1) + row("c", "01.00", "40.00", 1, 1),
        info="a,0,50\nc,30,25\n",
    )
    with pytest.raises(AnnotationError) as caught:
        read_annotations(folder, EPIC_KITCHENS_VERB, strict=True)
    places = [(Path(d.file).name, d.place, d.is_warning) for d in caught.value.defects]
    assert places == [
        ("EPIC_100_video_info.csv", "line 2", False),
        ("EPIC_100_train.csv", "line 3", False),
        ("EPIC_100_train.csv", "line 4", False),
        ("EPIC_100_train.csv", "line 2", False),
        ("EPIC_100_validation.csv", "line 2", False),
        ("EPIC_100_validation.csv", "line 3", True),
    ]


def test_what_is_wrong_is_left_out_and_the_rest_read(tmp_path: Path) -> None:
    train = row("a", "03.00", "02.00", 3, 2) + row("a", "01.00", "02.00", 4, 2)
    folder = make_epic_folder(tmp_path, train=train)
    read = read_annotations(folder, EPIC_KITCHENS_VERB)
    assert read.videos["a"].actions == (Action(1.0, 2.0, "id_004"),)
    kept = read_annotations(folder, EPIC_KITCHENS_VERB, for_evaluation=True)
    assert len(kept.videos["a"].actions) == 2


def test_the_task_has_to_be_named(tmp_path: Path) -> None:
    folder = make_epic_folder(tmp_path)
    with pytest.raises(ConfigError, match="epic_kitchens_verb or epic_kitchens_noun"):
        read_annotations(folder, EPIC_KITCHENS)
    with pytest.raises(ConfigError, match="epic_kitchens_verb or epic_kitchens_noun"):
        read_annotations(folder)


def test_one_copy_serves_both_tasks(tmp_path: Path) -> None:
    folder = make_epic_folder(tmp_path / "epic")
    copy = tmp_path / "copy.json"
    copy.write_bytes(annotation_copy(folder, EPIC_KITCHENS_VERB))
    for spec in (EPIC_KITCHENS_VERB, EPIC_KITCHENS_NOUN):
        original, read = read_annotations(folder, spec), read_annotations(copy, spec)
        assert (read.videos, read.labels) == (original.videos, original.labels)
        assert read.label_ids == original.label_ids


def test_the_challenge_is_scored_on_the_validation_file(tmp_path: Path) -> None:
    folder = make_epic_folder(tmp_path)
    assert epic_truth_file(folder).name == "EPIC_100_validation.csv"
    assert epic_truth_file(folder / "EPIC_100_train.csv").name == "EPIC_100_train.csv"
    (folder / "EPIC_100_validation.csv").unlink()
    with pytest.raises(AnnotationError, match="no EPIC_100_validation"):
        epic_truth_file(folder)


def test_a_file_without_rows_has_no_videos(tmp_path: Path) -> None:
    path = tmp_path / "EPIC_100_train.csv"
    path.write_text(HEAD, encoding="utf-8")
    assert read_annotations(path, EPIC_KITCHENS_VERB).videos == {}
