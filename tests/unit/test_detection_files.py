"""Detections for other programs: CSV and subtitles."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tadpipe.annotations import Detection, load_detections
from tadpipe.detection_files import check_suffix, write_detections
from tadpipe.errors import ConfigError

ONE = {"v": [Detection(61.5, 3661.25, "high jump", 0.875), Detection(0.0, 1.0, "a<b & c", 0.5)]}


def test_csv_holds_full_precision_and_survives_commas_and_quotes(tmp_path: Path) -> None:
    rows = {'a,"b"': [Detection(0.1 + 0.2, 1 / 3, "x\ny", 2 / 3)], "w": []}
    write_detections(tmp_path / "d.csv", rows)
    with (tmp_path / "d.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["video"] == 'a,"b"'
    assert row["label"] == "x\ny"
    assert (float(row["start_sec"]), float(row["score"])) == (0.1 + 0.2, 2 / 3)


def test_srt_numbers_the_cues_by_start(tmp_path: Path) -> None:
    write_detections(tmp_path / "d.srt", ONE)
    assert (tmp_path / "d.srt").read_text(encoding="utf-8") == (
        "1\n00:00:00,000 --> 00:00:01,000\na<b & c (0.50)\n\n"
        "2\n00:01:01,500 --> 01:01:01,250\nhigh jump (0.88)\n"
    )


def test_vtt_escapes_markup(tmp_path: Path) -> None:
    write_detections(tmp_path / "d.vtt", ONE)
    assert (tmp_path / "d.vtt").read_text(encoding="utf-8") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na&lt;b &amp; c (0.50)\n\n"
        "00:01:01.500 --> 01:01:01.250\nhigh jump (0.88)\n"
    )


def test_a_cue_never_ends_before_it_starts_nor_before_zero(tmp_path: Path) -> None:
    write_detections(tmp_path / "d.srt", {"v": [Detection(-2.0, -3.0, "a\n\nb", 1.0)]})
    text = (tmp_path / "d.srt").read_text(encoding="utf-8")
    assert text == "1\n00:00:00,000 --> 00:00:00,001\na b (1.00)\n"


def test_the_suffix_chooses_the_format_without_case(tmp_path: Path) -> None:
    write_detections(tmp_path / "d.JSON", ONE)
    assert load_detections(tmp_path / "d.JSON") == ONE


def test_no_detection_gives_valid_empty_files(tmp_path: Path) -> None:
    for suffix, text in ((".srt", ""), (".vtt", "WEBVTT\n")):
        write_detections(tmp_path / f"d{suffix}", {"v": []})
        assert (tmp_path / f"d{suffix}").read_text(encoding="utf-8") == text


def test_subtitles_of_several_videos_are_refused() -> None:
    with pytest.raises(ConfigError, match="one video"):
        check_suffix("d.srt", 2)


def test_an_unknown_suffix_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"\.json, \.csv, \.srt, \.vtt"):
        check_suffix("d.txt", 1)
