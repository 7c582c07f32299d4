"""Adapters behind the blocks of networks whose maps keep time, height and width (SlowFast, Swin).

AdaTAD (Liu et al., CVPR 2024) names these backbones (Table 12) and says little more; where the
adapters stand is documented in docs/backbones. Such a network sees a whole window at once, so that
its time axis is the adapter's.
Shapes: N windows, C channels, t x h x w cells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tadpipe.backbones.tia import AdapterConfig

ADAPTER = ".adapter."


def adapted_map(adapter: nn.Module | None, x: Tensor) -> Tensor:
    """The adapter on a map [N, C, t, h, w], each position a line in time; None changes nothing."""
    if adapter is None:
        return x
    lines = x.permute(0, 2, 3, 4, 1).flatten(2, 3)  # [N, t, h*w, C]
    cells: Tensor = adapter(lines).unflatten(2, x.shape[3:])
    return cells.permute(0, 4, 1, 2, 3).contiguous()


def run_block(block: nn.Module, x: Tensor, *rest: Tensor, recompute: bool) -> Tensor:
    """block(x, *rest); `recompute` stores x alone for the backward pass.

    A block whose input carries no gradient (in front of the first adapter) is not run again.
    """
    if recompute and torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = checkpoint(block, x, *rest, use_reentrant=False)
        return y
    y = block(x, *rest)
    return y


def set_adapter_dtype(blocks: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Run the adapters of these blocks in `dtype`."""
    for block in blocks:
        if isinstance(block.adapter, nn.Module):
            block.adapter.to(dtype)


def adapters_of_blocks(
    state: Mapping[str, Tensor], blocks: Sequence[str]
) -> dict[str, AdapterConfig]:
    """What adapters a state dict holds, as builder argument "adapters"; {} without any.

    Dilation and residual are in no file of this form; both are taken as published (1, kept).

    Args:
        state: with our names.
        blocks: names of the blocks in the order of the backbone's adapter sites.
    """
    owners = [name for name in blocks if f"{name}{ADAPTER}down_proj.weight" in state]
    if not owners:
        return {}
    # the widest one tells the ratio best: narrow ones round it
    downs = [state[f"{name}{ADAPTER}down_proj.weight"].shape for name in owners]
    hidden, channels = max(downs)
    taps = state.get(f"{owners[0]}{ADAPTER}dwconv.weight")
    return {
        "adapters": AdapterConfig(
            kind="plain" if taps is None else "tia",
            ratio=hidden / channels,
            kernel=3 if taps is None else taps.shape[2],
            blocks=tuple(blocks.index(name) for name in owners),
        )
    }


def block_count(state: Mapping[str, Tensor], stage: str) -> int:
    """How many numbered blocks a state dict has under `stage`."""
    pattern = re.compile(rf"{re.escape(stage)}\.(\d+)\.")
    return len({match[1] for key in state if (match := pattern.match(key))})
