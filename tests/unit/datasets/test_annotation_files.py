"""The one loader of annotations: strictness, class order, copies for a store."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tadpipe.datasets.annotation_files import CLASS_MAP, annotation_copy, read_annotations
from tadpipe.datasets.ego4d_mq import EGO4D_MQ
from tadpipe.datasets.epic_kitchens import EPIC_KITCHENS_VERB
from tadpipe.datasets.thumos14 import THUMOS14
from tadpipe.errors import AnnotationError


def write(folder: Path, *labels: str, ids: dict[str, int] | None = None, end: float = 2) -> Path:
    entries: list[dict[str, Any]] = [{"segment": [1, end], "label": label} for label in labels]
    for entry in entries:
        if ids:
            entry["label_id"] = ids[entry["label"]]
    path = folder / "annotations.json"
    video = {"subset": "test", "duration": 9, "annotations": entries}
    path.write_text(json.dumps({"database": {"v": video}}), encoding="utf-8")
    return path


def test_errors_stop_unless_a_public_data_set_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a", end=0)
    with pytest.raises(AnnotationError):
        read_annotations(path)
    assert read_annotations(path, THUMOS14).videos["v"].actions == ()


def test_labels_that_the_data_set_drops_are_dropped(tmp_path: Path) -> None:
    assert read_annotations(write(tmp_path, "a", "Ambiguous"), THUMOS14).labels == ("a",)


def test_a_class_map_beside_the_file_orders_the_classes(tmp_path: Path) -> None:
    (tmp_path / CLASS_MAP).write_text("c\nb\n\na\n", encoding="utf-8")
    read = read_annotations(write(tmp_path, "a", "b"))
    assert read.labels == ("c", "b", "a")
    assert read.label_ids == {"c": 0, "b": 1, "a": 2}


def test_label_ids_of_the_file_come_before_a_class_map(tmp_path: Path) -> None:
    (tmp_path / CLASS_MAP).write_text("a\nb\n", encoding="utf-8")
    assert read_annotations(write(tmp_path, "a", "b", ids={"a": 1, "b": 0})).labels == ("b", "a")


@pytest.mark.parametrize(("text", "what"), [("a\n", "no line"), ("a\nb\na\n", "twice")])
def test_a_class_map_that_does_not_fit_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / CLASS_MAP).write_text(text, encoding="utf-8")
    with pytest.raises(AnnotationError, match=what):
        read_annotations(write(tmp_path, "a", "b"))


def test_numbered_labels_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path, "id_010", "id_002"), EPIC_KITCHENS_VERB)
    assert len(read.labels) == 97
    assert read.label_ids["id_010"] == 10


def test_more_labels_than_the_data_set_has_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_annotations(write(tmp_path, *(f"class {i}" for i in range(21))), THUMOS14)
    assert "21 labels, THUMOS14 has 20 classes" in caplog.text


def test_a_copy_keeps_the_file_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    assert annotation_copy(path, THUMOS14) == path.read_bytes()


def test_a_copy_keeps_the_order_of_a_class_map(tmp_path: Path) -> None:
    (tmp_path / CLASS_MAP).write_text("b\na\n", encoding="utf-8")
    raw = annotation_copy(write(tmp_path, "a", "b"))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "copy.json").write_bytes(raw)
    assert read_annotations(folder / "copy.json").labels == ("b", "a")


@pytest.mark.parametrize("spec", [None, THUMOS14, EGO4D_MQ, EPIC_KITCHENS_VERB])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, spec: Any) -> None:
    with pytest.raises(AnnotationError, match="no annotations of this data set"):
        read_annotations(tmp_path, spec)
