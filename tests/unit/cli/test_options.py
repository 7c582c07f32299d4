"""How results are shown."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tadpipe.cli.options import emit, text_colour


def test_json_holds_no_value_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    emit(True, {"a": [float("nan"), 1.0], "b": (float("inf"), "x")}, "")
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": [None, "x"]}


def test_text_shows_names_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    emit(False, {}, "a\udcff")
    assert capsys.readouterr().out == "a\\udcff\n"


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"),
    [(True, "", True), (True, "1", False), (False, "", False)],
)
def test_colour_is_for_terminals_where_it_is_wanted(
    terminal: bool, no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert text_colour() is coloured
