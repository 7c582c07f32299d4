"""Every command of the tutorials, run as written; they print what the pages show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tadpipe.cli.main import run
from tests.fenced import ROOT, blocks, expanded, not_printed

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*-*.md"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorial_runs_as_written_and_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for block in blocks(page):
        printed = ""
        for command in block.commands:
            code = run(expanded(command.words))
            answer = capfd.readouterr()
            printed += answer.err + answer.out
            assert code == 0, command.text + "\n" + answer.err
        assert not_printed(block.output, printed) == [], printed
