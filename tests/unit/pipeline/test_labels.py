"""Labels of other programs: read as they write them, written as they read them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import srt
import webvtt
from pympi import Elan

from tadpipe.annotations import load_annotations
from tadpipe.cli.annotations import SOURCES
from tadpipe.cli.annotations import TARGETS as NAMED_TARGETS
from tadpipe.cli.main import run
from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.pipeline.labels import EPIC, READERS, TARGETS, export_labels, import_labels
from tests.corpus import make_video

Rows = list[tuple[float, float, str]]
MADE = Path(__file__).parents[2] / "data" / "labels"  # by the programs' libraries
TRUTH: dict[str, Rows] = {
    "läufe 1": [(0.5, 2.25, "long jump"), (1.5, 3.0, "run"), (4.0, 4.5, "run")],
    "b": [(0.0, 1.125, "run")],
}
ROUND_TRIPS = {"csv": "csv", "via": "json", "label-studio": "json", "fiftyone": "json"}


def rows_of(path: Path) -> dict[str, Rows]:
    videos = load_annotations(path).videos
    return {name: [tuple(action) for action in video.actions] for name, video in videos.items()}


def imported(folder: Path, *sources: Path, **options: Any) -> dict[str, Rows]:
    import_labels(sources, folder / "imported.json", **options)
    return rows_of(folder / "imported.json")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    database = {
        name: {
            "subset": "test",
            "duration": 10.0,
            "annotations": [{"segment": [a, b], "label": label} for a, b, label in rows],
        }
        for name, rows in TRUTH.items()
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"database": database}))
    return path


@pytest.fixture
def detections(tmp_path: Path) -> Path:
    results = {"b": [{"segment": [0.5, 1.0], "label": "run", "score": 0.75}]}
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"results": results}))
    return path


@pytest.mark.parametrize("target", sorted(ROUND_TRIPS))
def test_what_is_exported_is_imported_again(target: str, ours: Path, tmp_path: Path) -> None:
    out = tmp_path / f"theirs.{ROUND_TRIPS[target]}"
    export_labels(ours, out, target)
    assert imported(tmp_path, out) == TRUTH


@pytest.mark.parametrize(("target", "suffix"), [("elan", "eaf"), ("srt", "srt"), ("vtt", "vtt")])
def test_formats_of_one_video_come_as_a_folder_and_back(
    target: str, suffix: str, ours: Path, tmp_path: Path
) -> None:
    export_labels(ours, tmp_path / "theirs", target)
    files = sorted((tmp_path / "theirs").glob(f"*.{suffix}"))
    assert len(files) == len(TRUTH)
    assert imported(tmp_path, *files) == TRUTH


def test_csv_keeps_subset_and_duration(ours: Path, tmp_path: Path) -> None:
    export_labels(ours, tmp_path / "x.csv", "csv")
    imported(tmp_path, tmp_path / "x.csv")
    video = load_annotations(tmp_path / "imported.json").videos["b"]
    assert (video.subset, video.duration_sec) == ("test", 10.0)


def test_tables_of_other_headings_separators_and_clock_times_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Filename;Start;Stop;Class\nclips/a.mp4;00:01:02.5;63,25;run\n")
    assert imported(tmp_path, path) == {"a": [(62.5, 63.25, "run")]}


def test_every_bad_row_of_a_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("video,start,end,label\na,x,2,run\na,1,2,run\na,1,2,\n")
    with pytest.raises(AnnotationError) as caught:
        imported(tmp_path, path)
    assert [defect.place for defect in caught.value.defects] == ["line 2", "line 4"]


def test_table_without_the_columns_says_which_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("video,from,to,label\n")
    with pytest.raises(AnnotationError, match="none for start, end"):
        imported(tmp_path, path)


def elan_file(path: Path) -> Path:
    file = Elan.Eaf(author="somebody")
    file.add_linked_file("file:///C:/films/a film.mp4", mimetype="video/mp4")
    for tier in ("left hand", "right hand"):
        file.add_tier(tier)
    file.add_annotation("left hand", 500, 2250, "wave")
    file.add_annotation("right hand", 1000, 1500, "point")
    file.add_annotation("right hand", 3000, 3500, "")
    file.to_file(str(path))
    return path


def test_elan_files_are_named_by_their_linked_video(tmp_path: Path) -> None:
    path = elan_file(tmp_path / "x.eaf")
    assert imported(tmp_path, path) == {"a film": [(0.5, 2.25, "wave"), (1.0, 1.5, "point")]}


def test_one_tier_of_elan_can_be_chosen(tmp_path: Path) -> None:
    path = elan_file(tmp_path / "x.eaf")
    assert imported(tmp_path, path, tier="right hand") == {"a film": [(1.0, 1.5, "point")]}
    with pytest.raises(AnnotationError, match=r"tiers: .*left hand"):
        imported(tmp_path, path, tier="hand")


def test_subtitles_of_webvtt_are_read(tmp_path: Path) -> None:
    captions = [webvtt.Caption("00:00:01.500", "01:00:02.000", "long\njump")]
    webvtt.WebVTT(captions=captions).save(str(tmp_path / "a.vtt"))
    assert imported(tmp_path, tmp_path / "a.vtt") == {"a": [(1.5, 3602.0, "long jump")]}


def test_exported_subtitles_are_read_by_webvtt_and_show_scores(
    detections: Path, tmp_path: Path
) -> None:
    export_labels(detections, tmp_path / "b.srt", "srt")
    (caption,) = webvtt.from_srt(str(tmp_path / "b.srt"))
    assert (caption.start, caption.end, caption.text) == (
        "00:00:00.500",
        "00:00:01.000",
        "run (0.75)",
    )
    assert imported(tmp_path, tmp_path / "b.srt") == {"b": [(0.5, 1.0, "run")]}


def test_elan_reads_the_exported_file_with_overlaps_on_tiers_of_their_own(
    ours: Path, tmp_path: Path
) -> None:
    export_labels(ours, tmp_path / "eaf", "elan")
    file = Elan.Eaf(str(tmp_path / "eaf" / "läufe 1.eaf"))
    assert sorted(file.get_tier_names()) == ["actions", "actions 2"]
    assert file.get_annotation_data_for_tier("actions 2") == [(1500, 3000, "run")]


CVAT = """<annotations><version>1.1</version><meta><job><source>a.mp4</source></job></meta>
<track id="0" label="run"><box frame="3" outside="0"/><box frame="5" outside="0"/>
<box frame="9" outside="1"/></track></annotations>"""


def test_tracks_of_cvat_last_until_they_are_outside(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(CVAT)
    assert imported(tmp_path, tmp_path / "x.xml", fps=10) == {"a": [(0.3, 0.9, "run")]}


def test_frames_become_seconds_by_the_time_stamps_of_the_video(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(CVAT)
    video = make_video(tmp_path / "a.mp4", frames=12, fps=4)
    (tmp_path / "only").mkdir()
    assert imported(tmp_path, tmp_path / "x.xml", videos=[video]) == {"a": [(0.75, 2.25, "run")]}
    assert load_annotations(tmp_path / "imported.json").videos["a"].duration_sec == 3.0


def test_tracks_written_for_cvat_are_read_again(ours: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for name, frames in zip(TRUTH, (40, 41), strict=True):
        make_video(films / f"{name}.mp4", frames=frames, fps=8)
    export_labels(ours, tmp_path / "xml", "cvat", videos=[films])
    files = sorted((tmp_path / "xml").iterdir())
    assert imported(tmp_path, *files, videos=[films]) == TRUTH  # their times are whole frames


def test_segment_up_to_the_last_frame_is_a_track_that_is_never_outside(tmp_path: Path) -> None:
    film = make_video(tmp_path / "a.mp4", frames=12, fps=4)
    entry = {"segment": [2.5, 3.0], "label": "run"}
    database = {"a": {"subset": "test", "annotations": [entry]}}
    (tmp_path / "labels.json").write_text(json.dumps({"database": database}))
    export_labels(tmp_path / "labels.json", tmp_path / "a.xml", "cvat", videos=[film])
    assert 'outside="1"' not in (tmp_path / "a.xml").read_text()
    assert imported(tmp_path, tmp_path / "a.xml", fps=4) == {"a": [(2.5, 3.0, "run")]}


def test_cvat_needs_the_video(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Give --videos FOLDER"):
        export_labels(ours, tmp_path / "xml", "cvat")


def test_frames_without_video_or_rate_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(CVAT)
    with pytest.raises(ConfigError, match="Give --videos FOLDER"):
        imported(tmp_path, tmp_path / "x.xml")


def test_timeline_labels_of_label_studio_count_frames_from_one(tmp_path: Path) -> None:
    value = {"ranges": [{"start": 1, "end": 30}], "timelinelabels": ["run"]}
    result = [{"type": "timelinelabels", "value": value}]
    task = {"data": {"video": "/data/upload/1/a.mp4"}, "annotations": [{"result": result}]}
    (tmp_path / "x.json").write_text(json.dumps([task]))
    assert imported(tmp_path, tmp_path / "x.json", fps=10) == {"a": [(0.0, 3.0, "run")]}


def test_frame_support_of_fiftyone_counts_frames_from_one(tmp_path: Path) -> None:
    labels = {"a": [{"label": 0, "support": [11, 20]}], "b": None}
    (tmp_path / "x.json").write_text(json.dumps({"classes": ["run"], "labels": labels}))
    assert imported(tmp_path, tmp_path / "x.json", fps=10) == {"a": [(1.0, 2.0, "run")], "b": []}


def test_tasks_made_by_label_studio_s_library_are_read(tmp_path: Path) -> None:
    expected = {"film_1": [(1.0, 2.0, "run"), (2.0, 6.0, "long jump")]}
    assert imported(tmp_path, MADE / "label_studio_audio.json") == expected
    assert imported(tmp_path, MADE / "label_studio_timeline.json", fps=10) == expected


def test_labels_made_by_fiftyone_are_read(tmp_path: Path) -> None:
    expected = {"film_1": [(1.0, 2.0, "run"), (2.0, 6.0, "long jump")], "empty": []}
    assert imported(tmp_path, MADE / "fiftyone_frames.json", fps=10) == expected
    # FiftyOne's own seconds are those of the first and the last frame, spread over the duration
    (first, second), none = imported(tmp_path, MADE / "fiftyone_seconds.json").values()
    assert first == (pytest.approx(100 / 99), pytest.approx(190 / 99), "run")
    assert second == (pytest.approx(200 / 99), pytest.approx(590 / 99), "long jump")
    assert none == []


def test_subtitles_made_by_the_srt_library_are_read(tmp_path: Path) -> None:
    cues = [
        srt.Subtitle(2, timedelta(seconds=2), timedelta(hours=1, milliseconds=5), "long\njump"),
        srt.Subtitle(1, timedelta(seconds=0.5), timedelta(seconds=1), "run"),
    ]
    (tmp_path / "a.srt").write_text(srt.compose(cues))
    assert imported(tmp_path, tmp_path / "a.srt") == {
        "a": [(0.5, 1.0, "run"), (2.0, 3600.005, "long jump")]
    }


def test_srt_library_reads_what_is_exported(detections: Path, tmp_path: Path) -> None:
    export_labels(detections, tmp_path / "b.srt", "srt")
    (cue,) = srt.parse((tmp_path / "b.srt").read_text())
    assert (cue.start, cue.end) == (timedelta(seconds=0.5), timedelta(seconds=1))
    assert cue.content == "run (0.75)"


def test_cvat_s_labels_of_pictures_are_no_segments(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"CVAT for video 1\.1"):
        imported(tmp_path, MADE / "cvat_images.xml", fps=10)


def test_cvat_s_file_names_its_task_s_labels_and_frames(ours: Path, tmp_path: Path) -> None:
    film = make_video(tmp_path / "b.mp4", frames=41, fps=8)
    database = json.loads(ours.read_text())["database"]
    ours.write_text(json.dumps({"database": {"b": database["b"]}}))
    export_labels(ours, tmp_path / "b.xml", "cvat", videos=[film])
    task = xml.parse(tmp_path / "b.xml").find("meta/task")  # without it datumaro reads no file
    assert task is not None
    assert [each.text for each in task.findall("labels/label/name")] == ["run"]
    assert (task.findtext("size"), task.findtext("mode")) == ("41", "interpolation")


def test_via_project_has_the_published_layout(ours: Path, tmp_path: Path) -> None:
    export_labels(ours, tmp_path / "via.json", "via")
    document = json.loads((tmp_path / "via.json").read_text())
    assert {"project", "config", "attribute", "file", "view", "metadata"} == set(document)
    attribute = document["attribute"]["1"]
    assert (attribute["anchor_id"], attribute["type"]) == ("FILE1_Z2_XY0", 4)  # segment, select
    for vid in document["project"]["vid_list"]:
        (fid,) = document["view"][vid]["fid_list"]
        file = document["file"][str(fid)]
        assert (file["type"], file["loc"]) == (4, 3)  # a video, a file on disk
        assert file["src"]
    for segment in document["metadata"].values():
        assert len(segment["z"]) == 2
        assert segment["xy"] == []
        assert segment["av"]["1"] in attribute["options"]


def test_via_s_published_example_with_numbers_for_files_is_read(tmp_path: Path) -> None:
    """The layout of VIA's own description, where identifiers of files are numbers."""
    select = {"aname": "Activity", "anchor_id": "FILE1_Z2_XY0", "type": 4}
    document = {
        "project": {"pid": "x", "vid_list": ["1", "2"]},
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}},
        "attribute": {"1": {**select, "options": {"1": "pour", "2": "cut"}}},
        "file": {
            "1": {"fid": 1, "fname": "a.ogv", "type": 4, "loc": 2, "src": "https://x/a.ogv"},
            "2": {"fid": 2, "fname": "b.mp4", "type": 4, "loc": 3, "src": "/films/b.mp4"},
        },
        "view": {"1": {"fid_list": [1]}, "2": {"fid_list": [2]}},
        "metadata": {
            "-glfwaaX": {"vid": "2", "flg": 0, "z": [2, 6.5], "xy": [], "av": {"1": "2"}},
        },
    }
    (tmp_path / "x.json").write_text(json.dumps(document))
    (video, other) = imported(tmp_path, tmp_path / "x.json").items()
    assert (video[1], other) == ([], ("b", [(2.0, 6.5, "cut")]))


def test_regions_of_via_are_left_out_and_its_text_attributes_are_labels(tmp_path: Path) -> None:
    document = {
        "attribute": {"1": {"aname": "what", "type": 1, "options": {}}},
        "file": {"7": {"fid": "7", "fname": "a.mp4"}},
        "view": {"1": {"fid_list": ["7"]}},
        "metadata": {
            "1_a": {"vid": "1", "z": [1.5, 2.5], "xy": [], "av": {"1": "run"}},
            "1_b": {"vid": "1", "z": [1.5], "xy": [2, 0, 0, 9, 9], "av": {"1": "box"}},
        },
    }
    (tmp_path / "x.json").write_text(json.dumps(document))
    assert imported(tmp_path, tmp_path / "x.json") == {"a": [(1.5, 2.5, "run")]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", '{"labels": {"a": [{"label": 5, "timestamps": [1, 2]}]}}'),
        ("x.json", '{"labels": {"a": [3]}}'),
        (
            "x.json",
            '[{"annotations": [{"result": [{"value": {"start": "x", "end": 1, '
            '"labels": ["a"]}}]}]}]',
        ),
        ("x.xml", "<annotations><track label='a'><box frame='x'/></track></annotations>"),
        ("x.xml", "<annotations>"),
        ("x.eaf", "no xml"),
        ("x.srt", "1\n00:00 --> never\nrun"),
        ("x.txt", "run"),
    ],
)
def test_broken_files_are_errors_that_name_the_file(
    name: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((AnnotationError, ConfigError), match=name):
        imported(tmp_path, tmp_path / name)


def test_command_line_offers_what_there_is(
    ours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert set(SOURCES) == set(READERS)
    assert set(NAMED_TARGETS) == {*TARGETS, EPIC}
    out = tmp_path / "x.csv"
    arguments = ["annotations", "export", str(ours), "--to", "csv", "--out", str(out), "--json"]
    assert run([*arguments, "--dry-run"]) == 0
    assert not out.exists()
    assert run(arguments) == 0
    back = ["annotations", "import", str(out), "--out", str(tmp_path / "back.json")]
    assert run(back) == 0
    assert rows_of(tmp_path / "back.json") == TRUTH
    assert "4 segments" in capfd.readouterr().out
