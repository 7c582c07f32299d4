"""Files of class scores: every released form, and every defect a clear error."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tadpipe.datasets.thumos14 import THUMOS14
from tadpipe.errors import AnnotationError
from tadpipe.pipeline import class_score_files as module
from tadpipe.pipeline.class_score_files import THUMOS14_NUMBERS, read_class_scores

LABELS = ("run", "jump")
IDS = {"run": 1, "jump": 0}
THUMOS = list(THUMOS14_NUMBERS)


def write(folder: Path, document: Any, name: str = "scores.json") -> Path:
    path = folder / name
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(document))
    else:
        path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("key", ["class", "classes"])
@pytest.mark.parametrize("entry", [[0.25, 0.75], [[0.25, 0.75]]], ids=["CUHK", "TCANet"])
def test_json_names_its_classes(tmp_path: Path, key: str, entry: Any) -> None:
    path = write(tmp_path, {"results": {"Läufe": entry}, key: ["run", "jump"]})
    assert read_class_scores(path, LABELS, IDS) == {"Läufe": {"run": 0.25, "jump": 0.75}}


@pytest.mark.parametrize("classes", [{}, {"class": [0, 1]}], ids=["no classes", "numbers"])
def test_json_without_names_is_in_the_order_of_label_id(tmp_path: Path, classes: Any) -> None:
    path = write(tmp_path, {"results": {"v": [0.25, 0.75]}, **classes})
    assert read_class_scores(path, LABELS, IDS) == {"v": {"jump": 0.25, "run": 0.75}}


@pytest.mark.parametrize(
    "entry",
    [
        np.arange(20, dtype=np.float32) / 32,
        [i / 32 for i in range(20)],
        [np.float64(i / 32) for i in range(20)],
        np.arange(20)[None] / 32,
        [np.arange(20) / 32],
    ],
    ids=["array", "list", "numpy numbers", "row", "list of one array"],
)
@pytest.mark.parametrize("ids", [{}, {name: i for i, name in enumerate(THUMOS)}])
def test_a_pickle_is_in_the_order_of_thumos_labels(tmp_path: Path, entry: Any, ids: Any) -> None:
    path = write(tmp_path, {"video_test_0000004": entry}, "scores.pkl")
    scores = read_class_scores(path, THUMOS[:3], ids)
    assert scores == {"video_test_0000004": {name: i / 32 for i, name in enumerate(THUMOS)}}


def test_untrimmednet_rows_are_videos_and_columns_the_101_classes(tmp_path: Path) -> None:
    array = np.arange(1574, dtype=np.float64)[:, None] + np.arange(101) / 128
    np.save(tmp_path / "scores.npy", array)
    scores = read_class_scores(tmp_path / "scores.npy", THUMOS)
    assert len(scores) == 1574
    assert scores["video_test_0000270"]["CliffDiving"] == 269 + 21 / 128
    assert scores["video_test_0001574"]["VolleyballSpiking"] == 1573 + 96 / 128
    assert set(scores["video_test_0000001"]) == set(THUMOS)


def test_the_thumos_table_is_in_the_order_of_names() -> None:
    assert sorted(THUMOS) == THUMOS
    assert sorted(THUMOS14_NUMBERS.values()) == list(THUMOS14_NUMBERS.values())
    assert len(THUMOS) == 20
    assert not set(THUMOS14.dropped_labels) & set(THUMOS)


def test_classes_beyond_the_annotated_ones_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, {"results": {"v": [0.25, 0.5, 0.25]}, "class": ["run", "jump", "swim"]})
    assert set(read_class_scores(path, LABELS)["v"]) == {"run", "jump", "swim"}
    assert set(read_class_scores(path)["v"]) == {"run", "jump", "swim"}


GOOD = {"results": {"v": [0.5, 0.5]}, "class": list(LABELS)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"results": {"v": [0.5], "w": [0.1, 0.2], "x": []}}, ["2 errors", "1 scores, 2 labels"]),
        ({"results": {"v": [0.5, float("nan")]}}, ['$.results["v"]: jump: NaN is no finite']),
        ({"results": {"v": [0.5, "0.5"]}}, ['jump: "0.5" is no finite number']),
        ({"results": {"v": 0.5}}, ['$.results["v"]: a number, not a list']),
        ({"results": {"v": [[0.5, 0.5], [0.5, 0.5]], "w": [[[0.5, 0.5]]]}}, ["2 errors"]),
        ({"results": {}}, ["class scores of no video"]),
        ({"results": []}, ["$.results: a list, not an object"]),
        ({"class": ["Run", "Jump"]}, ['without scores: "run", "jump"', '"Jump", "Run"']),
        ({"class": ["run", "run"]}, ['$.class[1]: "run" occurs twice']),
        ({"class": ["run", 3]}, ["$.class[1]: 3 is not a name"]),
        ({"class": "run jump"}, ["$.class: text"]),
        ({"class": []}, ["list of classes"]),
        ({"class": [1, 2]}, ["do not name their classes", "no label_id"]),
        ({"class": None}, ["2 classes without names", "no label_id"]),
    ],
)
def test_defects_of_json_are_told(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    path = write(tmp_path, GOOD | change)
    with pytest.raises(AnnotationError) as caught:
        read_class_scores(path, LABELS)
    text = str(caught.value)
    assert caught.value.todo
    for word in [*words, str(path)]:
        assert word in text


def test_missing_classes_and_results_are_told(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"do not name their classes(.|\n)*no label_id"):
        read_class_scores(write(tmp_path, {"results": GOOD["results"]}), LABELS)
    ids = {"a": 0, "b": 1, "c": 2}
    with pytest.raises(AnnotationError, match="label_id for 3 labels"):
        read_class_scores(write(tmp_path, {"results": GOOD["results"]}), list(ids), ids)
    with pytest.raises(AnnotationError, match="no key 'results'"):
        read_class_scores(write(tmp_path, {"class": GOOD["class"]}), LABELS)


def test_a_video_that_occurs_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text('{"results": {"v": [1, 0], "v": [0, 1]}, "class": ["run", "jump"]}')
    with pytest.raises(AnnotationError, match="occurs twice"):
        read_class_scores(path, LABELS)


def test_many_defects_are_counted_and_the_first_ones_shown(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD | {"results": {f"v{i}": [0.5] for i in range(99)}})
    with pytest.raises(AnnotationError, match="99 errors") as caught:
        read_class_scores(path, LABELS)
    assert "and 89 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 13


class Harmful:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, {"v": Harmful(tmp_path / "made")}, "scores.pkl")
    with pytest.raises(AnnotationError, match="holds more than numbers"):
        read_class_scores(path, THUMOS)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([0.5] * 20, "Expected scores by video"),
        ({4: [0.5] * 20}, "keys that are no names"),
        ({"v": np.full(20, np.nan)}, "BaseballPitch: NaN"),
        ({"v": np.zeros(20), "w": np.zeros(19)}, "19 scores, 20 labels"),
        ({"v": np.zeros(21)}, "21 classes without names"),
        ({"v": "text"}, "text, not a list"),
        ({}, "no video"),
    ],
)
def test_defects_of_pickles_are_told(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(AnnotationError, match=words):
        read_class_scores(write(tmp_path, document, "scores.pkl"), THUMOS)


@pytest.mark.parametrize("name", ["scores.json", "scores.npy", "scores.pkl"])
@pytest.mark.parametrize("raw", [b"", b"\x80\x04\x95", b"nonsense \xff", b"\x93NUMPY\x01\x00v\x00"])
def test_files_of_noise_are_errors(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(AnnotationError, match=r"scores\."):
        read_class_scores(tmp_path / name, THUMOS)


def test_arrays_of_another_shape_or_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.npy"
    for array in (np.zeros((1574, 20)), np.zeros((213, 101)), np.full((1574, 101), "a")):
        np.save(path, array)
        with pytest.raises(AnnotationError, match="Not the scores of UntrimmedNet"):
            read_class_scores(path, THUMOS)
    np.save(path, np.full((1574, 101), np.inf))
    with pytest.raises(AnnotationError, match="1574 errors"):
        read_class_scores(path, THUMOS)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_class_scores(path, THUMOS)


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnnotationError, match=r"suffix '\.csv'"):
        read_class_scores(tmp_path / "scores.csv", LABELS)
    with pytest.raises(AnnotationError, match="no such file"):
        read_class_scores(tmp_path / "scores.json", LABELS)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(AnnotationError, match="no such file"):
        read_class_scores(tmp_path / "folder.json", LABELS)
    monkeypatch.setattr(module, "MAX_BYTES", 3)
    with pytest.raises(AnnotationError, match="more than 3"):
        read_class_scores(write(tmp_path, GOOD), LABELS)
