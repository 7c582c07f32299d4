"""A checkpoint as it is on disk: the weights in it, averaged and plain, and what is beside them.

Files of `torch.save` (any ending) and safetensors. The releases save a training state; where its
weights are is told by the names below, and the prefix of data-parallel training is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from tadpipe.backbones.checkpoints import file_sha256, read_checkpoint
from tadpipe.backbones.weights_only import read_pickled
from tadpipe.errors import CheckpointError

Kind = Literal["ema", "plain"]

AVERAGED = ("state_dict_ema", "ema")
PLAIN = ("state_dict", "model", "module")
SHOWN = 6


class SavedWeights(NamedTuple):
    """A checkpoint."""

    path: Path
    sha256: str  # of the file
    states: Mapping[Kind, dict[str, Tensor]]  # without the prefix `module.`; at least one
    places: Mapping[Kind, str]  # key the weights are under; "" = the file is a state dict
    others: Mapping[str, Any]  # the other entries of the file: plain values, None for the rest
    metadata: Mapping[str, str]  # of a safetensors file

    @property
    def best(self) -> dict[str, Tensor]:
        """The averaged weights, which the releases evaluate; the plain ones where none are."""
        return self.states["ema" if "ema" in self.states else "plain"]

    @property
    def epoch(self) -> int | None:
        """Epochs counted from 0 in the releases."""
        epoch = self.others.get("epoch")
        return epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None


def read_weights(path: Path) -> SavedWeights:
    """Read a checkpoint without running anything in it.

    Raises:
        CheckpointError: missing, unreadable, asking for more than tensors, or without weights.
    """
    if path.suffix == ".safetensors":
        file = read_checkpoint(path)
        states: dict[Kind, dict[str, Tensor]] = {"plain": file.state}
        return SavedWeights(path, file.sha256, states, {"plain": ""}, {}, file.metadata)
    content = read_pickled(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            "The file holds no weights.",
            f"{path}: a {type(content).__name__}",
            "A checkpoint is a dictionary of names and tensors, or one with such a dictionary in.",
        )
    places = _places(content)
    if not places:
        if not content or not _is_state(content):
            raise _without_weights(path, content)
        return SavedWeights(
            path, file_sha256(path), {"plain": _bare(content, path, "")}, {"plain": ""}, {}, {}
        )
    states = {kind: _bare(content[place], path, place) for kind, place in places.items()}
    others = {
        str(key): value if isinstance(value, (int, float, str)) else None
        for key, value in content.items()
        if key not in places.values()
    }
    return SavedWeights(path, file_sha256(path), states, places, others, {})


def _places(content: Mapping[Any, Any]) -> dict[Kind, str]:
    """Where the weights are: the first of the known names that holds a state dict."""
    places: dict[Kind, str] = {}
    kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (("ema", AVERAGED), ("plain", PLAIN))
    for kind, names in kinds:
        found = [name for name in names if _is_state(content.get(name))]
        if found:
            places[kind] = found[0]
    return places


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())


def _bare(state: Mapping[Any, Any], path: Path, place: str) -> dict[str, Tensor]:
    strangers = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            "The file holds no plain state dict.",
            f"{path}{f': {place}' if place else ''}: entries that are no tensors: "
            + ", ".join(strangers[:SHOWN]),
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _without_weights(path: Path, content: Mapping[Any, Any]) -> CheckpointError:
    keys = ", ".join(map(str, list(content)[:SHOWN])) or "nothing"
    return CheckpointError(
        "The file holds no weights.",
        f"{path}: it has {keys}",
        f"Weights are looked for under {', '.join((*AVERAGED, *PLAIN))}, or at the file's top.",
    )
