"""Reading weight files without trusting them, and loading strictly."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tadpipe.backbones.checkpoints import load_strictly, read_checkpoint, state_sha256
from tadpipe.errors import CheckpointError
from tests.unit.backbones.layouts import official_state, small_model


def features_only() -> dict[str, torch.Tensor]:
    return {key: value for key, value in official_state().items() if not key.startswith("head.")}


@pytest.mark.parametrize("container", [None, "model", "module", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pickled_weights_are_read_plain_or_wrapped(
    tmp_path: Path, container: str | None, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    state = official_state()
    torch.save({container: state, "epoch": 3, "optimizer": {}} if container else state, path)
    checkpoint = read_checkpoint(path)
    assert set(checkpoint.state) == set(state)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_averaged_weights_are_preferred_to_raw_ones(tmp_path: Path) -> None:
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "state_dict_ema": {"w": torch.ones(1)}}, path)
    assert float(read_checkpoint(path).state["w"]) == 1.0


def test_safetensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(official_state(), path, metadata={"format": "pt"})
    checkpoint = read_checkpoint(path)
    assert set(checkpoint.state) == set(official_state())
    assert checkpoint.metadata == {"format": "pt"}


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize("stranger", [Malicious(), argparse.Namespace(lr=1.0)])
def test_pickle_that_needs_more_than_tensors_is_refused(
    tmp_path: Path, stranger: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": official_state(), "args": stranger}, path)
    with pytest.raises(CheckpointError, match="more than weights") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "safetensors" in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("damaged.pth", b"PK\x03\x04 not a zip", "cannot be read"),
        ("empty.pth", b"", "cannot be read"),
        ("damaged.safetensors", b"\xff" * 20, "Not a readable safetensors"),
        ("weights.npz", b"x", "Unknown kind"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=text) as caught:
        read_checkpoint(path)
    assert name in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1, 2]])
def test_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="state dict"):
        read_checkpoint(path)


def test_strict_load_fills_every_entry_as_float32() -> None:
    model = small_model()
    halves = {key: value.half() for key, value in features_only().items()}
    load_strictly(model, halves, "file", "")
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[key].float())


def test_misfit_lists_missing_unexpected_and_misshapen_keys() -> None:
    state = features_only()
    del state["fc_norm.bias"]
    state["blocks.0.adapter.gamma"] = torch.ones(1)
    state["patch_embed.proj.bias"] = torch.ones(7)
    with pytest.raises(CheckpointError) as caught:
        load_strictly(small_model(), state, "some/file.pth", "Use another file.")
    assert str(caught.value).splitlines() == [
        "The weights do not fit the model.",
        "  some/file.pth",
        "  missing (1): fc_norm.bias",
        "  unexpected (1): blocks.0.adapter.gamma",
        "  misshapen (1): patch_embed.proj.bias is [7] in the file, [12] in the model",
        "  Use another file.",
    ]


def test_misfit_changes_nothing_in_the_model() -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_strictly(model, {"fc_norm.bias": torch.ones(12)}, "file", "")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_stored_position_table_must_be_the_computed_one() -> None:
    model = small_model()
    table = model.pos_table.clone()
    load_strictly(model, {**features_only(), "pos_table": table.half()}, "file", "")
    assert torch.equal(model.pos_table, table)
    with pytest.raises(CheckpointError, match="another position table"):
        load_strictly(model, {**features_only(), "pos_table": table + 0.01}, "file", "")
    with pytest.raises(CheckpointError, match="misshapen"):
        load_strictly(model, {**features_only(), "pos_table": table[:, :4]}, "file", "")


def test_hash_of_a_state_sees_names_values_and_types() -> None:
    state = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert state_sha256(state) == state_sha256(dict(reversed(state.items())))
    others = [
        {"a": torch.ones(2), "b": torch.zeros(2)},
        {"a": torch.zeros(2), "c": torch.ones(2)},
        {"a": torch.zeros(2), "b": torch.ones(2, dtype=torch.float64)},
    ]
    assert len({state_sha256(other) for other in [state, *others]}) == 4
