"""Instruments of the memory benchmarks: bytes of live and of saved tensors, also of "meta" ones.

On the meta device operators have shapes and no values, so that a training step of any size can be
followed on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves


class Tally:
    """Live bytes of a set of storages, each counted once, and their peak."""

    def __init__(self, known: list[Tensor]) -> None:
        self.known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}
        self.users: dict[int, int] = {}
        self.live = self.peak = 0

    def add(self, storage: torch.UntypedStorage) -> bool:
        """Count one more user of a storage; False if it was there before the step."""
        key = id(storage)
        if key in self.known:
            return False
        if not self.users.get(key):
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
        self.users[key] = self.users.get(key, 0) + 1
        return True

    def drop(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.live -= size


class Box:
    """A tensor that autograd keeps; the tally hears of its end."""

    def __init__(self, tensor: Tensor, tally: Tally) -> None:
        self.tensor, self.tally = tensor, tally
        self.storage = tensor.untyped_storage()
        self.counted = tally.add(self.storage)

    def __del__(self) -> None:
        if self.counted:
            self.tally.drop(id(self.storage), self.storage.nbytes())


class LiveTensors(TorchDispatchMode):
    """Follows every storage that an operator makes until it is freed.

    What an operator makes of meta tensors depends on their layouts alone, so the same call is
    worked out once (blocks and micro-batches repeat it some thousand times).
    """

    made: ClassVar[dict[Any, Any]] = {}  # call -> layouts; None: not all of it is new meta tensors

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self._call(func, args, kwargs or {})
        for leaf in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in self.tally.users and self.tally.add(storage):
                    weakref.finalize(storage, self.tally.drop, id(storage), storage.nbytes())
        return made

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        kind = kind_of(func)
        if kind == "in place" and args[0].is_meta:
            return args[0]
        if kind != "new":
            return func(*args, **kwargs)
        key = (func, layout(args), *((name, layout(value)) for name, value in kwargs.items()))
        if key not in self.made:
            made = func(*args, **kwargs)
            leaves = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
            storages = {id(leaf.untyped_storage()) for leaf in leaves}
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            own = storages.isdisjoint(id(leaf.untyped_storage()) for leaf in given)
            meta = all(leaf.is_meta for leaf in (*given, *leaves))
            self.made[key] = layout(made) if own and meta and len(storages) == len(leaves) else None
            return made
        repeated = self.made[key]
        return func(*args, **kwargs) if repeated is None else from_layout(repeated)


class Layout(NamedTuple):
    """All that a meta tensor is."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def layout(value: Any) -> Any:
    """Tensors by their layouts, also in (nested) lists; anything else is itself."""
    if isinstance(value, Tensor):
        return Layout(tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(map(layout, value)) if isinstance(value, (tuple, list)) else value


def from_layout(value: Any) -> Any:
    if isinstance(value, Layout):
        return torch.empty_strided(
            value.shape, value.strides, dtype=value.dtype, device=value.device
        )
    return tuple(map(from_layout, value)) if isinstance(value, tuple) else value


def elsewhere(saved: Tally) -> AbstractContextManager[None]:
    """Saved tensors leave the device and come back as new ones (the bytes, not the values)."""

    def pack(tensor: Tensor) -> Tensor | Box:
        if id(tensor.untyped_storage()) in saved.known:
            return tensor
        with _disable_current_modes():  # so that the copy is no live tensor of the device
            return Box(torch.empty_like(tensor), saved)

    def unpack(kept: Tensor | Box) -> Tensor:
        return torch.empty_like(kept.tensor) if isinstance(kept, Box) else kept

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


@cache
def kind_of(func: Any) -> str:
    """Whether an operator makes "new" tensors, overwrites "in place", or does anything "else"."""
    schema = func._schema
    if schema.name in {f"aten::{name}_" for name in ("add", "copy", "div", "fill", "mul", "zero")}:
        return "in place"
    views = any(value.alias_info is not None for value in schema.returns)
    return "else" if views or schema.is_mutable else "new"


@contextmanager
def flash_attention_for_cpu() -> Iterator[None]:
    """The operator that attention takes on the CPU, also for meta tensors, which have no choice."""
    original = nnf.scaled_dot_product_attention

    def fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mixed: Tensor = operator(queries, keys, values)[0]
        return mixed

    nnf.scaled_dot_product_attention = fused  # type: ignore[assignment]  # for the run of the step
    try:
        yield
    finally:
        nnf.scaled_dot_product_attention = original
