"""Checkpoints that are damaged or want to run something: refused by the command line, in words."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tadpipe.cli.main import run
from tests.unit.pipeline.small_checkpoint import training_state


class Command:
    """Would write a file when loaded the ordinary way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.target}'",))


COMMANDS = (["checkpoint", "inspect"], ["checkpoint", "import", "--from", "tridet"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[1])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_malicious_checkpoint_is_refused_by_name_and_runs_nothing(
    tmp_path: Path, command: list[str], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, trace = tmp_path / "evil.pth.tar", tmp_path / "trace"
    content = {**training_state(), "callback": Command(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"callback": Command(trace)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    assert run([*command, str(path)]) == 1
    shown = capsys.readouterr().err
    assert "wants to import posix.system" in shown
    assert "Traceback" not in shown
    assert not trace.exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[1])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_cut_off_checkpoint_is_said_to_be_damaged(
    tmp_path: Path, command: list[str], share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.pth.tar"
    torch.save(training_state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert run([*command, str(path)]) == 1
    shown = capsys.readouterr().err
    assert "cannot be read" in shown
    assert "cut.pth.tar" in shown
    assert "weights_only" not in shown


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
        ({}, "holds no weights"),
        ({"state_dict": {"a": torch.zeros(1), "b": "text"}}, "no tensors: b"),
    ],
)
def test_file_without_a_state_dict_is_refused(
    tmp_path: Path, content: object, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "odd.pth")
    assert run(["checkpoint", "inspect", str(tmp_path / "odd.pth")]) == 1
    assert text in capsys.readouterr().err
