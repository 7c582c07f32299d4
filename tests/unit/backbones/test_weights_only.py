"""Files of torch.save, read without trusting them."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tadpipe.backbones.weights_only import read_pickled
from tadpipe.errors import CheckpointError


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (functools.partial, (print, "this must not run"))


def training_state() -> dict[str, Any]:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5])
    return {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


@pytest.mark.parametrize("is_zip", [True, False])
def test_training_state_with_optimizer_scheduler_and_numpy_numbers_is_read(
    tmp_path: Path, is_zip: bool
) -> None:
    path = tmp_path / "epoch_003.pth.tar"
    scores = {"mAP": np.float64(0.25), "best": np.int32(7), "half": np.float16(0.5)}
    torch.save(training_state() | scores, path, _use_new_zipfile_serialization=is_zip)
    found = read_pickled(path)
    assert (found["mAP"], found["best"], found["half"], found["epoch"]) == (0.25, 7, 0.5, 3)
    assert found["optimizer"]["state"][0]["step"] == 1


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(value)])
def test_refused_file_names_what_it_wants_to_import(
    tmp_path: Path, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.pth"
    strange: Any = {"state_dict": {}, "x": Malicious()}
    write(strange if write is torch.save else pickle.dumps(strange, protocol=4), path)
    with pytest.raises(CheckpointError, match=r"refused") as caught:
        read_pickled(path)
    assert "functools.partial" in str(caught.value)
    assert str(path) in str(caught.value)
    assert capsys.readouterr().out == ""


def test_command_of_the_system_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match=r"wants to import posix\.system"):
        read_pickled(path)


def test_array_of_numpy_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save({"x": np.array([object()], dtype=object)}, path)
    with pytest.raises(CheckpointError, match="_reconstruct"):
        read_pickled(path)


def test_number_that_is_no_plain_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save({"x": np.datetime64("2020-01-01")}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_pickled(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_cut_off_file_cannot_be_read(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save(training_state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_pickled(path)
    assert "weights_only" not in str(caught.value)  # no advice to read it unsafely


@pytest.mark.parametrize("content", [b"hello, world", b"<html></html>", b"\x00" * 100])
def test_file_of_something_else_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read[\s\S]*torch\.save"):
        read_pickled(path)


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="folder"):
        read_pickled(tmp_path)
