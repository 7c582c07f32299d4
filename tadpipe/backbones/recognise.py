"""Which backbone a file of weights is of, told by its names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.protocol import RemappedState
from tadpipe.errors import CheckpointError
from tadpipe.registry import resolve


class Recognised(NamedTuple):
    """A backbone that a state dict fits."""

    name: str  # as in `tadpipe list backbones`
    layout: str  # of the keys


def family_of(name: str) -> str:
    """The family of a backbone: the module that builds it and knows its published layouts."""
    return BACKBONES[name].partition(":")[0].rpartition(".")[2]


def families() -> list[str]:
    """All families, in the order of the backbones."""
    return list(dict.fromkeys(map(family_of, BACKBONES)))


def backbones_like(state: Mapping[str, Tensor], family: str | None = None) -> list[Recognised]:
    """The backbones whose every tensor the state has, in any published layout.

    Args:
        family: look at this one only, and let its own reader say what is wrong.
    Raises:
        CheckpointError: `family` is given and these are not its weights.
    """
    found = []
    for each in [family] if family else families():
        names = [name for name in BACKBONES if family_of(name) == each]
        remap = import_module(BACKBONES[names[0]].partition(":")[0]).remap_official_keys
        try:
            remapped: RemappedState = remap(state)
        except CheckpointError:
            if family:
                raise
            continue
        # a deep network holds the tensors of a shallow one: the one with the most is meant
        tensors = {name: _tensors(name, remapped) for name in names}
        most = max(tensors.values())
        if most:
            found += [Recognised(name, remapped.layout) for name in names if tensors[name] == most]
    return found


def _tensors(name: str, remapped: RemappedState) -> int:
    """How many tensors a backbone has, if the state has them all; else 0."""
    left_out = ("num_classes", "adapters")  # neither moves a tensor of the trunk
    arguments = {key: value for key, value in remapped.arguments.items() if key not in left_out}
    with torch.device("meta"):
        wanted = resolve("backbone", BACKBONES, name)(**arguments).state_dict()
    shapes = {key: value.shape for key, value in remapped.state.items()}
    fits = all(shapes.get(key) == value.shape for key, value in wanted.items())
    return len(wanted) if fits else 0
