"""What a run keeps on disk: weights as safetensors, the state of a training run as `state.pt`.

Everything is written whole or not at all. `state.pt` holds tensors and plain values only and is
loaded with `weights_only=True`; no pickle is ever trusted.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tadpipe.config import write_atomically
from tadpipe.errors import CheckpointError

STATE_VERSION = 2


@dataclass
class TrainState:
    """Everything that the next training step depends on."""

    step: int  # optimiser steps done; the place in the data follows from it and the seed
    seed: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]  # empty without fp16
    loss_state: dict[str, float]
    rng: dict[str, Any]  # torch's default generators
    bank: dict[str, Tensor]  # end to end with a feature bank: what was written into it
    version: int = STATE_VERSION


def save_state(path: Path, state: TrainState) -> None:
    """Write `state.pt` atomically."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_state(path: Path) -> TrainState:
    """Read `state.pt`.

    Raises:
        CheckpointError: not written by `save_state`, or it holds more than tensors and values.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            "The training state cannot be read.",
            f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "Delete it and train again, or restore it from a copy.",
        ) from None
    names = {field.name for field in fields(TrainState)}
    if not isinstance(values, dict) or values.keys() != names:
        raise CheckpointError("Not a training state of tadpipe.", str(path))
    if values["version"] != STATE_VERSION:
        raise CheckpointError(
            "The training state has another format.",
            f"{path}: version {values['version']}, expected {STATE_VERSION}",
            "Resume with the tadpipe version that wrote it.",
        )
    return TrainState(**values)


def random_state() -> dict[str, Any]:
    """The state of torch's default generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Take back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, atomically."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    write_atomically(path, save(plain, metadata={"format": "pt"}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError("File of weights not found.", str(path)) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError("The weights cannot be read.", f"{path}: {error}") from None


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose keys and shapes must be exactly the model's.

    Raises:
        CheckpointError: names what is missing, unexpected and misshapen.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = [
        f"{name}: {tuple(state[name].shape)}, model {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    wrong = [f"{kind} ({len(names)}): {_some(names)}" for kind, names in kinds if names]
    if wrong:
        raise CheckpointError(
            "The weights do not fit the model.",
            "\n".join([source, *wrong]),
            "Use the configuration the weights were trained with.",
        )
    model.load_state_dict(dict(state))


def _some(names: list[str], most: int = 5) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
