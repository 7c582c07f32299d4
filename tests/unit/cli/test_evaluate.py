"""tadpipe evaluate: options, output and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tadpipe.annotations import Detection, save_detections
from tadpipe.cli.evaluate import PROTOCOLS as OFFERED
from tadpipe.cli.main import run
from tadpipe.evaluation.protocols import OFFICIAL, PROTOCOLS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with annotations and perfect detections, made the current one."""
    action = {"segment": [1, 2], "label": "wave"}
    database = {
        name: {"subset": subset, "duration": 9, "annotations": [action]}
        for name, subset in (("v", "test"), ("w", "train"))
    }
    (tmp_path / "a.json").write_text(json.dumps({"database": database}), encoding="utf-8")
    save_detections(tmp_path / "d.json", {"v": [Detection(1.0, 2.0, "wave", 0.5)]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_protocol_is_offered() -> None:
    assert set(OFFERED) == {*PROTOCOLS, OFFICIAL}


def test_json_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "d.json", "--annotations", "a.json", "--subset", "test", "--json"]
    assert run([*command, "--tiou", "0.5", "--tiou", "0.75", "--top-k", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["average_map"], document["tious"], document["top_k"]) == (
        1.0,
        [0.5, 0.75],
        [2],
    )
    assert (document["videos"], document["missing"], document["blocked"]) == (1, [], [])


def test_the_project_file_fills_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tadpipe.toml").write_text('annotations = "a.json"\n', encoding="utf-8")
    assert run(["evaluate", "d.json", "--subset", "test", "--per-class", "--out", "e.json"]) == 0
    assert "\nwave   100.00" in capsys.readouterr().out
    assert json.loads((folder / "e.json").read_text(encoding="utf-8"))["average_map"] == 1.0


def test_an_open_question_is_a_usage_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "d.json", "--annotations", "a.json"]) == 2
    assert "--subset" in capsys.readouterr().err


def test_a_protocol_a_block_list_and_an_limit_are_passed_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.txt").write_text("somebody\n", encoding="utf-8")
    command = ["evaluate", "d.json", "--annotations", "a.json", "--subset", "test", "--json"]
    more = ["--protocol", "activitynet", "--blocked", "b.txt", "--max-an", "5", "--skip-defects"]
    assert run([*command, *more]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["protocol"] == "activitynet"
    assert document["proposals"]["proposals_per_video"][-1] == 5.0


def test_an_unknown_data_set_is_a_usage_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "d.json", "--annotations", "a.json", "--dataset", "thumos"]
    assert run(command) == 2
    assert "thumos14" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_no_defect_of_tadpipe(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "d.json", "--annotations", "a.json", "--subset", "test"]
    assert run([*command, "--out", "a.json/e.json"]) == 1
    shown = capsys.readouterr().err
    assert "a.json" in shown
    assert "defect" not in shown


def test_errors_are_printed_and_are_part_of_the_one_document(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "d.json", "--annotations", "a.json", "--subset", "test", "--errors"]
    assert run(command) == 0
    assert "Kinds of detections" in capsys.readouterr().out
    assert run([*command, "--bins", "activitynet", "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert errors["sensitivity"]["length"]["bins"] == ["XS"]
    assert errors["false_positives"]["profile"][1] == [None] * 6


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--bins", "thumos14"], "--errors"),
        (["--errors", "--bins", "thumos"], "thumos14"),
        (["--errors", "--bins", "missing.json"], "missing.json"),
    ],
)
def test_mistaken_bins_are_usage_errors_with_a_hint(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], hint: str
) -> None:
    command = ["evaluate", "d.json", "--annotations", "a.json", "--subset", "test"]
    assert run([*command, *options]) == 2
    assert hint in capsys.readouterr().err
