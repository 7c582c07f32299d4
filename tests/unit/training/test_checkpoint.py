"""Weights and training state: strict, atomic, and no pickle trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tadpipe.errors import CheckpointError
from tadpipe.training.checkpoint import (
    load_state,
    load_strictly,
    load_weights,
    save_state,
    save_weights,
)
from tadpipe.training.loop import DetectorLearner, Trainer, TrainingConfig
from tests.unit.training.toy import toy_loader, toy_model


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = toy_model()
    save_weights(tmp_path / "model.safetensors", model.state_dict())
    loaded = load_weights(tmp_path / "model.safetensors")
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_state_survives_the_file(tmp_path: Path) -> None:
    loader = toy_loader()
    trainer = Trainer(
        DetectorLearner(toy_model(), TrainingConfig(), "cpu"), TrainingConfig(), steps_per_epoch=3
    )
    trainer.train_step(loader.batch(0))
    save_state(tmp_path / "state.pt", trainer.state(0))
    state = load_state(tmp_path / "state.pt")
    assert state.step == 1
    assert torch.equal(state.rng["cpu"], torch.get_rng_state())
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state.pt"
    torch.save({"step": Malicious()}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no state at all"])
def test_a_damaged_state_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(tmp_path / "state.pt")


def test_a_foreign_file_of_tensors_is_no_state(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(1)}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="Not a training state"):
        load_state(tmp_path / "state.pt")


def test_strict_loading_names_missing_unexpected_and_misshapen_keys() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = model.state_dict()
    del state["1.bias"]
    state["0.weight"] = torch.zeros(3, 2)
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_strictly(model, state, "x.safetensors")
    text = str(caught.value)
    assert "missing (1): 1.bias" in text
    assert "unexpected (1): extra" in text
    assert "misshapen (1): 0.weight: (3, 2), model (2, 2)" in text


def test_missing_and_damaged_weights_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        load_weights(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(tmp_path / "bad.safetensors")
