"""Annotation and detection files with defects: all of them are found, each is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tadpipe.annotations import Action, load_annotations, load_detections
from tadpipe.errors import AnnotationError, Defect

GOOD = {"segment": [1.0, 2.0], "label": "run", "label_id": 0}


def video(*annotations: Any, **more: Any) -> dict[str, Any]:
    return {"subset": "training", "duration": 10.0, "annotations": list(annotations), **more}


def action(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


# defect -> (video entry, end of its JSON path, part of the message, is it only a warning)
DEFECTS: dict[str, tuple[Any, str, str, bool]] = {
    "video is no object": ([1], "", "a list, not an object", False),
    "subset missing": ({"duration": 10.0}, "", "no subset", False),
    "subset no text": ({"subset": 3}, "", "subset 3 is not a name", False),
    "duration negative": (video(duration=-4.0), ".duration", "-4.0 is not a positive", False),
    "duration text": (video(duration="10"), ".duration", '"10" is not a positive', False),
    "duration not finite": (video(duration=float("inf")), ".duration", "Infinity", False),
    "fps zero": (video(fps=0), ".fps", "0 is not a positive", False),
    "annotations no list": (
        {"subset": "a", "annotations": {}}, ".annotations", "an object, not a list", False,
    ),
    "action no object": (video("run"), ".annotations[0]", "text, not an object", False),
    "segment missing": (video({"label": "run"}), ".annotations[0]", "no segment", False),
    "segment of three": (
        video(action(segment=[1, 2, 3])), ".annotations[0].segment", "[1, 2, 3] is not", False,
    ),
    "segment of text": (
        video(action(segment=["1", 2])), ".annotations[0].segment", "finite numbers", False,
    ),
    "segment NaN": (
        video(action(segment=[float("nan"), 2.0])), ".annotations[0].segment", "finite", False,
    ),
    "segment infinite": (
        video(action(segment=[0.0, float("inf")])), ".annotations[0].segment", "finite", False,
    ),
    "segment inverted": (
        video(action(segment=[5.0, 3.0])), ".annotations[0].segment", "5 is not before", False,
    ),
    "segment empty": (
        video(action(segment=[3.0, 3.0])), ".annotations[0].segment", "not before", False,
    ),
    "start negative": (
        video(action(segment=[-1.0, 3.0])), ".annotations[0].segment", "before the video", False,
    ),
    "beyond the duration": (
        video(action(segment=[9.0, 10.2])), ".annotations[0].segment", "duration of 10 s", True,
    ),
    "label missing": (video({"segment": [1, 2]}), ".annotations[0]", "no label", False),
    "label no text": (
        video(action(label=7)), ".annotations[0].label", "7 is not a name", False,
    ),
    "label empty": (video(action(label=" ")), ".annotations[0].label", "not a name", False),
    "label_id no number": (
        video(action(label_id="x")), ".annotations[0].label_id", "not a whole number", False,
    ),
    "one label, two ids": (
        video(GOOD, action(label_id=5, segment=[3, 4])),
        ".annotations[1].label_id", "which had 0 before", False,
    ),
    "one id, two labels": (
        video(GOOD, action(label="walk", segment=[3, 4])),
        ".annotations[1].label_id", "the id of \"run\"", False,
    ),
    "exact duplicate": (video(GOOD, GOOD), ".annotations[1]", "as annotations[0]", True),
}  # fmt: skip


def write(folder: Path, document: Any) -> Path:
    path = folder / "annotations.json"
    text = document if isinstance(document, str) else json.dumps(document)
    path.write_text(text, encoding="utf-8")
    return path


def found_in(path: Path, **options: Any) -> tuple[Defect, ...]:
    return load_annotations(path, strict=False, **options).defects


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_named_with_place_and_value(tmp_path: Path, name: str) -> None:
    entry, place, message, is_warning = DEFECTS[name]
    (defect,) = found_in(write(tmp_path, {"database": {"v": entry}}))
    assert defect.place == f'$.database["v"]{place}'
    assert message in defect.message
    assert defect.is_warning == is_warning
    assert defect.file.endswith("annotations.json")


@pytest.mark.parametrize("name", DEFECTS)
def test_error_stops_a_strict_reader_and_a_warning_does_not(tmp_path: Path, name: str) -> None:
    entry, _, _, is_warning = DEFECTS[name]
    path = write(tmp_path, {"database": {"v": entry}})
    if is_warning:
        assert len(load_annotations(path).videos["v"].actions) == len(entry["annotations"])
    else:
        with pytest.raises(AnnotationError):
            load_annotations(path)


def test_all_defects_are_found_in_one_run(tmp_path: Path) -> None:
    # Own labels and ids per video, so that no defect leads to another.
    database = {}
    for i, (entry, _, _, _) in enumerate(DEFECTS.values()):
        text = (
            json.dumps(entry).replace('"run"', f'"run {i}"').replace('_id": 0', f'_id": {i + 99}')
        )
        text = text.replace('_id": 5', f'_id": {i + 999}').replace('"walk"', f'"walk {i}"')
        database[f"v{i}"] = json.loads(text)
    # A label whose only id is no number has none.
    database["vlast"] = video({"segment": [1, 2], "label": "one without an id"})
    with pytest.raises(AnnotationError) as caught:
        load_annotations(write(tmp_path, {"database": database}))
    places = {defect.place.partition("]")[0] for defect in caught.value.defects}
    assert len(places) == len(DEFECTS) + 1  # and the missing label ids, at $.database
    assert str(caught.value).count("\n") == len(caught.value.defects) + 1


def test_lenient_reading_keeps_exactly_the_sound_rest(tmp_path: Path) -> None:
    database = {
        "sound": video(GOOD),
        "no subset": {"duration": 3.0},
        "half": video(action(segment=[4, 3]), GOOD, action(label=None), duration=-1),
    }
    read = load_annotations(write(tmp_path, {"database": database}), strict=False)
    assert list(read.videos) == ["sound", "half"]
    assert read.videos["half"].duration_sec is None
    assert read.videos["half"].actions == (Action(1.0, 2.0, "run"),)
    assert len(read.defects) == 4


def test_repeated_video_in_the_text_is_found(tmp_path: Path) -> None:
    entry = json.dumps(video(GOOD))
    text = f'{{"database": {{"v": {entry}, "w": {entry}, "v": {entry}}}}}'
    (defect,) = found_in(write(tmp_path, text))
    assert (defect.place, "occurs twice" in defect.message) == ('$.database["v"]', True)


def test_repeated_key_of_a_video_is_found(tmp_path: Path) -> None:
    text = '{"database": {"v": {"subset": "a", "subset": "b"}}}'
    (defect,) = found_in(write(tmp_path, text))
    assert '"subset" occurs twice' in defect.message


def test_label_outside_a_given_class_list_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, {"database": {"v": video(GOOD)}})
    (defect,) = found_in(path, labels=["walk"])
    assert '"run" is not in the class list' in defect.message
    assert defect.place == '$.database["v"].annotations[0].label'


def test_a_tenth_of_a_second_beyond_the_duration_is_tolerated(tmp_path: Path) -> None:
    path = write(tmp_path, {"database": {"v": video(action(segment=[9.0, 10.1]))}})
    assert found_in(path) == ()


def test_evaluation_keeps_odd_segments_as_warnings(tmp_path: Path) -> None:
    odd = video(action(segment=[3, 3]), action(segment=[5, 4]), action(segment=[-1, 2]))
    read = load_annotations(write(tmp_path, {"database": {"v": odd}}), for_evaluation=True)
    assert len(read.videos["v"].actions) == 3
    assert [defect.is_warning for defect in read.defects] == [True] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"database": {\n "v": {,}}}', "line 2, column 8"),
        ("", "line 1, column 1"),
        ("[" * 100_000, "nested too deeply"),
        ('{"database": ' + "1" * 5000 + "}", "digits"),
        ("[]", "a list, not an object"),
        ('{"results": {}}', "no key 'database' (keys: results)"),
        ('{"database": []}', "a list, not an object"),
    ],
)
def test_a_text_that_is_no_annotation_file_says_where(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(AnnotationError) as caught:
        load_annotations(write(tmp_path, text))
    assert message in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(b'{"database": "\xff"}')
    with pytest.raises(AnnotationError, match="byte 14 is not UTF-8"):
        load_annotations(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_path_that_is_no_file_is_an_annotation_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(AnnotationError, match="cannot be read"):
        load_annotations(tmp_path / name)


def test_all_defects_of_detections_are_found_in_one_run(tmp_path: Path) -> None:
    sound = {"segment": [1.0, 2.0], "label": "run", "score": 0.5}
    rows: list[Any] = [
        sound,
        7,
        {**sound, "segment": [1.0]},
        {**sound, "segment": [1.0, float("nan")]},
        {**sound, "label": 3},
        {**sound, "label": ""},
        {**sound, "score": None},
        {**sound, "score": True},
        {**sound, "score": float("inf")},
        {"segment": [1.0, 2.0], "label": "run"},
        {"label": "run", "score": 0.5},
        {"segment": [1.0, 2.0], "score": 0.5},
    ]
    path = write(tmp_path, {"results": {"v": rows, "w": None}})
    with pytest.raises(AnnotationError) as caught:
        load_detections(path)
    places = [defect.place for defect in caught.value.defects]
    assert len(places) == len(rows)  # one each, but for the sound one; and the video that is null
    assert len(set(places)) == len(places)
    assert '$.results["w"]' in places


def test_detections_without_results_say_which_keys_there_are(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="keys: database"):
        load_detections(write(tmp_path, {"database": {}}))
