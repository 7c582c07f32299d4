"""Weight files of other projects and our own: reading without trusting, strict loading.

Pickled files go through `weights_only.read_pickled` and nothing else; a file that needs more is
refused. Loading is strict: whatever is missing, unexpected or misshapen is listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tadpipe.backbones.weights_only import read_pickled
from tadpipe.errors import CheckpointError

PICKLED = (".pth", ".pt", ".bin", ".pyth")
SUFFIXES = (*PICKLED, ".safetensors")
# where the weights are inside a saved training state, the first that is there; EMA before raw
CONTAINERS = ("model", "module", "state_dict_ema", "state_dict", "model_state")
SHOWN_KEYS = 8


class Checkpoint(NamedTuple):
    """A weight file as it is on disk."""

    path: Path
    sha256: str  # of the file
    state: dict[str, Tensor]
    metadata: dict[str, str]  # of a safetensors file, else empty


def read_checkpoint(path: Path) -> Checkpoint:
    """Read `.pth`, `.pt`, `.bin`, `.pyth` or `.safetensors`, plain or wrapped, to the CPU.

    Raises:
        CheckpointError: missing, unreadable, without weights, or a pickle that holds more than
            tensors and plain containers.
    """
    if not path.is_file():
        raise CheckpointError("Weights file not found.", str(path), "Check --weights.")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            "Unknown kind of weights file.", str(path), f"Known endings: {', '.join(SUFFIXES)}."
        )
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = unwrap(read_pickled(path), str(path)), {}
    return Checkpoint(path, file_sha256(path), state, metadata)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, types, shapes and values, for weights that are in no file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def unwrap(loaded: Any, where: str) -> dict[str, Tensor]:
    """The state dict inside a saved object: under a known key, or the object itself.

    Raises:
        CheckpointError: no mapping of names to tensors is found.
    """
    for key in CONTAINERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            "The file holds no state dict.", f"{where}: a {type(loaded).__name__}"
        )
    strangers = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strangers or not loaded:
        raise CheckpointError(
            "The file holds no plain state dict.",
            f"{where}: entries that are no tensors: {_some(strangers)}"
            if strangers
            else f"{where}: empty",
            f"Weights are looked for under {', '.join(CONTAINERS)}, or at the top of the file.",
        )
    return {str(key): value for key, value in loaded.items()}


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str, todo: str) -> None:
    """Put `state` into `model`, every entry of both, as float32.

    Tables that the model computes itself (its non-persistent buffers) may be in `state`; they
    must hold the same numbers and are then left as they are.

    Args:
        where: the file, for the message.
        todo: what the user can try if the weights do not fit.
    Raises:
        CheckpointError: missing, unexpected or misshapen entries, or another table.
    """
    wanted = model.state_dict()
    tables = {key: value for key, value in model.named_buffers() if key not in wanted}
    shapes = {key: value.shape for key, value in (*wanted.items(), *tables.items())}
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(shapes))
    misshapen = [
        f"{key} is {list(state[key].shape)} in the file, {list(shape)} in the model"
        for key, shape in sorted(shapes.items())
        if key in state and state[key].shape != shape
    ]
    if missing or unexpected or misshapen:
        lines = [where]
        for kind, keys in (("missing", missing), ("unexpected", unexpected)):
            if keys:
                lines.append(f"{kind} ({len(keys)}): {_some(keys)}")
        if misshapen:
            lines.append(f"misshapen ({len(misshapen)}): {_some(misshapen, '; ')}")
        raise CheckpointError("The weights do not fit the model.", "\n".join(lines), todo)
    for key, table in tables.items():
        # half-precision files hold rounded tables, hence the tolerance
        if key in state and not torch.allclose(state[key].float(), table, rtol=0, atol=2e-3):
            raise CheckpointError(
                "The file holds another position table than the model computes.",
                f"{where}: {key}",
                "The model was trained with learned or differently made positions; "
                "they are not supported.",
            )
    floats = {key: state[key].float() for key in wanted}
    model.load_state_dict(floats, strict=True, assign=True)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            return state, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError("Not a readable safetensors file.", f"{path}: {error}") from None


def _some(names: Iterable[str], separator: str = ", ") -> str:
    listed = list(names)
    shown = separator.join(listed[:SHOWN_KEYS])
    rest = len(listed) - SHOWN_KEYS
    return f"{shown} and {rest} more" if rest > 0 else shown
