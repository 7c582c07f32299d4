"""The CSV files of EPIC-Kitchens-100: rows, times, video lengths, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tadpipe.epic_csv import EpicRow, VideoInfo, load_epic_csv, read_video_info, seconds_of
from tadpipe.errors import AnnotationError

REAL = Path(__file__).parents[3] / "shared" / "data" / "annotations"
VALIDATION = REAL / "EPIC_100_validation.csv"
HEAD = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"


@pytest.mark.skipif(not VALIDATION.exists(), reason="../shared is not here")
def test_the_real_validation_file_has_9668_actions_of_138_videos() -> None:
    rows = load_epic_csv(VALIDATION)
    assert len(rows) == 9668
    assert len({row.video for row in rows}) == 138
    assert len({row.verb for row in rows}) == 78
    assert len({row.noun for row in rows}) == 211
    assert rows[1] == EpicRow("P01_11", 1.56, 2.45, 1, 2)


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:00:01.89", 1.89), ("01:02:03.500", 3723.5), ("10:00:00", 36000.0)]
)
def test_timestamps_become_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1:2", "00:00:-1.0", "abc", "00:00:01,5"])
def test_other_texts_are_no_timestamps(text: str) -> None:
    with pytest.raises(ValueError, match="HH:MM:SS"):
        seconds_of(text)


def test_all_bad_rows_of_a_csv_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = "v,00:00:01.0,00:00:02.0,1,2\nv,x,00:00:02.0,1,2\nv,00:00:01.0,00:00:02.0,one,2\nv,00\n"
    path.write_text(HEAD + rows, encoding="utf-8")
    with pytest.raises(AnnotationError) as caught:
        load_epic_csv(path)
    assert [defect.place for defect in caught.value.defects] == ["line 3", "line 4", "line 5"]


def test_a_csv_without_the_columns_says_which(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("video_id,verb_class\n", encoding="utf-8")
    with pytest.raises(AnnotationError, match="missing: start_timestamp, stop_timestamp, noun"):
        load_epic_csv(path)


def test_a_csv_that_is_not_there_is_an_annotation_error(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot be read"):
        load_epic_csv(tmp_path / "missing.csv")


@pytest.mark.skipif(not VALIDATION.exists(), reason="../shared is not here")
def test_the_real_video_file_states_700_lengths() -> None:
    videos, defects = read_video_info(REAL / "EPIC_100_video_info.csv")
    assert (len(videos), defects) == (700, [])


def test_classes_out_of_range_and_rows_without_a_video_are_defects(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    times = "00:00:01.0,00:00:02.0"
    path.write_text(f"{HEAD}v,{times},97,0\nv,{times},0,300\n,{times},0,0\n", encoding="utf-8")
    with pytest.raises(AnnotationError) as caught:
        load_epic_csv(path)
    assert [defect.message for defect in caught.value.defects] == [
        "verb_class '97' is not a number 0..96",
        "noun_class '300' is not a number 0..299",
        "no video_id",
    ]


def test_lengths_that_are_none_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "info.csv"
    path.write_text("video_id,duration,fps\na,10.5,50\nb,0,50\nc,1,nan\n", encoding="utf-8")
    videos, defects = read_video_info(path)
    assert videos == {"a": VideoInfo(10.5, 50.0)}
    assert [defect.place for defect in defects] == ["line 3", "line 4"]
