"""Batches of training windows, read ahead by a thread.

Every random choice is a function of (seed, pass, position), so the place of a run is two whole
numbers, reading ahead changes nothing, and a resumed run sees the very same batches.
Shapes: B batch, C channels, T window length, G ground-truth actions.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from tadpipe.datasets.windows import TrainingWindows, stack_padded
from tadpipe.errors import ConfigError

Made = TypeVar("Made")
WHOLE = slice(None)


class Batch(NamedTuple):
    """A training batch, padded to the window length."""

    names: list[str]
    feats: Tensor  # [B, C, T]
    mask: Tensor  # [B, T] bool
    segments: list[Tensor]  # B x [G, 2]
    labels: list[Tensor]  # B x [G]


class WindowLoader:
    """Shuffled batches without end; the last incomplete batch of a pass is dropped.

    Args:
        part: which windows of each batch are made, where several processes share it.
    """

    def __init__(
        self,
        windows: TrainingWindows,
        batch_size: int,
        *,
        seed: int,
        read_ahead: int = 4,
        part: slice = WHOLE,
    ) -> None:
        if len(windows) < batch_size:
            raise ConfigError(
                "Fewer training videos than a batch holds.",
                f"{len(windows)} videos, training.batch_size = {batch_size}",
                f"Use --set training.batch_size={max(len(windows), 1)}.",
            )
        self.windows = windows
        self.batch_size = batch_size
        self.seed = seed
        self.read_ahead = read_ahead
        self.part = part

    @property
    def steps_per_pass(self) -> int:
        """Batches in one pass over the videos."""
        return len(self.windows) // self.batch_size

    def batch(self, step: int) -> Batch:
        """The batch of optimiser step `step`, counted from 0 over all passes."""
        turn, position = divmod(step, self.steps_per_pass)
        order = shuffled(self.seed, turn, len(self.windows))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        items = [
            self.windows.item(i, UniformDraw(generator_of(self.seed, turn, i)))
            for i in chosen[self.part]
        ]
        feats, mask = stack_padded([item.feats for item in items], self.windows.window_len)
        return Batch(
            [item.name for item in items],
            feats,
            mask,
            [item.segments for item in items],
            [item.labels for item in items],
        )

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of steps `first` to `last - 1`."""
        return read_ahead(self.batch, first, last, self.read_ahead)


def read_ahead(make: Callable[[int], Made], first: int, last: int, ahead: int) -> Iterator[Made]:
    """make(first) to make(last - 1) in order, up to `ahead` of them made before they are taken.

    After one that fails no other is begun: where storage does not answer, each would wait for it.
    """
    has_failed = threading.Event()

    def made(step: int) -> Made:
        if has_failed.is_set():
            raise CancelledError
        try:
            return make(step)
        except BaseException:
            has_failed.set()
            raise

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for step in range(first, last):
                waiting.append(pool.submit(made, step))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def shuffled(seed: int, turn: int, count: int) -> list[int]:
    """The order of `count` items in pass `turn`."""
    order: list[int] = torch.randperm(count, generator=generator_of(seed, turn, -1)).tolist()
    return order


class UniformDraw:
    """Uniform whole numbers from one generator, both ends included."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self._generator))


def generator_of(seed: int, turn: int, item: int) -> torch.Generator:
    """A generator of its own for every (seed, pass, item)."""
    text = f"{seed}/{turn}/{item}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
    return torch.Generator().manual_seed(number)
