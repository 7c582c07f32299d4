"""Exponential moving average of a model's state, as the official trainers keep it.

It starts as a copy and takes every state-dict entry with the same decay from the first step on,
without bias correction. Whole-number entries (counters) are copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tadpipe.errors import CheckpointError, ConfigError


class ModelEma:
    """The averaged state of a model.

    Args:
        frozen: entries of the state dict that never change; they are neither averaged nor kept.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.999, *, frozen: Collection[str] = ()
    ) -> None:
        if not 0 <= decay < 1:
            raise ConfigError("The EMA decay lies in [0, 1).", f"ema_decay = {decay}")
        self.decay = decay
        self.frozen = frozenset(frozen)
        self.state: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in self._changing(model).items()
        }

    def _changing(self, model: nn.Module) -> dict[str, Tensor]:
        state = model.state_dict()
        return {name: value for name, value in state.items() if name not in self.frozen}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model's state."""
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for name, value in self._changing(model).items():
            if value.is_floating_point():
                averaged.append(self.state[name])
                current.append(value.detach())
            else:
                self.state[name].copy_(value)
        torch._foreach_mul_(averaged, self.decay)
        torch._foreach_add_(averaged, current, alpha=1 - self.decay)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back a saved `state`.

        Raises:
            CheckpointError: it has other keys.
        """
        if state.keys() != self.state.keys():
            odd = sorted(state.keys() ^ self.state.keys())
            raise CheckpointError(
                "The saved average belongs to another model.", f"keys that differ: {odd[:5]}"
            )
        for name, value in state.items():
            self.state[name].copy_(value)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give `model` the averaged weights for the length of the block."""
        own = {name: value.detach().clone() for name, value in self._changing(model).items()}
        strict = not self.frozen
        model.load_state_dict(self.state, strict=strict)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=strict)
