"""How results are shown."""

from __future__ import annotations

import json

import pytest

from tadpipe.cli.options import emit


def test_json_holds_no_value_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    emit(True, {"a": [float("nan"), 1.0], "b": (float("inf"), "x")}, "")
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": [None, "x"]}


def test_text_shows_names_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    emit(False, {}, "a\udcff")
    assert capsys.readouterr().out == "a\\udcff\n"
