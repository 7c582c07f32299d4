"""Recomputing a backbone's blocks in the backward pass, a few clips at a time.

Plain checkpointing stores the input of each block and recomputes the block for the whole window at
once, so that one block's inner activations of all clips come on top. But only an adapter couples
the clips of a window; the rest of a block (its body) sees one clip. So a segment here reaches from
one adapter to the next: it stores what enters an adapter, recomputes that adapter for the whole
window (it is small), and then the following body in groups of clips, each forward and backward
before the next. The work is that of plain checkpointing; the gradient is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Step = Callable[[Tensor], Tensor]


def recomputed(
    mix: Step | None, body: Step, x: Tensor, trained: Sequence[nn.Parameter], rows: int
) -> Tensor:
    """body(mix(x)), storing x alone for the backward pass.

    Args:
        mix: sees all rows together; None leaves x as it is.
        body: sees each row on its own, so that it can go in groups of `rows`.
        trained: parameters of both that get a gradient.
    """
    done: Tensor = _Segment.apply(mix, body, rows, x, *trained)
    return done


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mix: Step | None, body: Step, rows: int, x: Tensor, *trained: Tensor
    ) -> Tensor:
        ctx.steps = (mix, body, rows)
        ctx.autocast = _autocast(x.device.type)
        ctx.random = _random_state(x.device)
        ctx.trained = trained  # parameters: no activations, hence not for saved-tensor hooks
        ctx.save_for_backward(x)
        mixed = x if mix is None else mix(x)
        return torch.cat([body(part) for part in mixed.split(rows)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mix, body, rows = ctx.steps
        (x,), trained = ctx.saved_tensors, ctx.trained
        found: list[Tensor | None] = [None] * len(trained)

        def add(gradients: Sequence[Tensor | None]) -> None:
            for i, gradient in enumerate(gradients):
                kept = found[i]
                if gradient is not None:
                    found[i] = gradient if kept is None else kept.add_(gradient)

        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad(), ctx.autocast():
            _set_random_state(ctx.random, x.device)
            start = x.detach().requires_grad_()
            mixed = start if mix is None else mix(start)
            below = torch.empty_like(mixed)  # gradient of what enters the body
            for part, pull, place in zip(
                mixed.detach().split(rows), grad.split(rows), below.split(rows), strict=True
            ):
                part.requires_grad_()
                gradients = torch.autograd.grad(
                    body(part), [part, *trained], pull, allow_unused=True
                )
                assert gradients[0] is not None
                place.copy_(gradients[0])
                add(gradients[1:])
        if mix is None:
            return None, None, None, below, *found
        gradients = torch.autograd.grad(mixed, [start, *trained], below, allow_unused=True)
        add(gradients[1:])
        return None, None, None, gradients[0], *found


def _autocast(kind: str) -> Callable[[], AbstractContextManager[None]]:
    """A context with the automatic precision that is on now."""
    if not torch.amp.is_autocast_available(kind):  # "meta"
        return lambda: torch.autocast("cpu", enabled=False)
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """State of the generators that drop path draws from."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_gpu


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
