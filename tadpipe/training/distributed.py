"""Several processes that train one model together, as torchrun starts them.

Every process holds the whole model and takes its share of each batch of the one global order.
Gradients are averaged after the backward pass (of EGS: after its three stages), losses are divided
by the positives of the whole batch, so a step is that of one process on the whole batch, to
rounding; random layers draw anew. The first process alone writes the run folder. Test videos are
shared out, each to one process.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tadpipe.datasets.loader import generator_of
from tadpipe.errors import ConfigError

Item = TypeVar("Item")
Value = TypeVar("Value")
STEP_DRAWS = -3  # the item number under which random layers draw in a step


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def part(self) -> slice:
        """This process's places in a list; those of all processes are all, each once."""
        return slice(self.rank, None, self.count)

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's items."""
        return list(items[self.part])

    def check_batch(self, batch_size: int) -> None:
        """Every process needs as many windows as the others.

        Raises:
            ConfigError: the batch cannot be shared out evenly.
        """
        if batch_size % self.count:
            raise ConfigError(
                "The batch cannot be shared out evenly.",
                f"training.batch_size = {batch_size}, {self.count} processes",
                f"Use --set training.batch_size={self.count * max(batch_size // self.count, 1)}.",
            )

    def draws(self, step: int) -> int:
        """A number of its own for every step and process, to draw by."""
        return step * self.count + self.rank

    def seed_step(self, seed: int, step: int) -> None:
        """Let random layers draw their own numbers in every process, the same after a resume."""
        if self.count > 1:
            torch.manual_seed(generator_of(seed, self.draws(step), STEP_DRAWS).initial_seed())

    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def average_gradients(self, model: nn.Module) -> None:
        """Give every process the mean gradient; a parameter no process reached keeps none."""
        if self.count == 1:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        reached = torch.tensor([float(p.grad is not None) for p in parameters])
        reached = reached.to(parameters[0].device)
        dist.all_reduce(reached)
        for parameter, times in zip(parameters, reached.tolist(), strict=True):
            if times:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.average(parameter.grad)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return bool(self.average(torch.tensor(float(flag), device=device)))

    def merged(self, part: Mapping[str, Value]) -> dict[str, Value]:
        """The entries of all processes in the order of `share`."""
        if self.count == 1:
            return dict(part)
        parts: list[Mapping[str, Value]] = [{}] * self.count
        dist.all_gather_object(parts, part)
        turns = zip_longest(*(one.items() for one in parts))
        return dict(entry for turn in turns for entry in turn if entry is not None)

    @contextmanager
    def folder(self, folder: Path) -> Iterator[Path]:
        """Where this process writes: the run folder, or one that is thrown away."""
        if self.is_first:
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="tadpipe-rank-") as scratch:
            yield Path(scratch)


ALONE = Ranks()


def is_joint() -> bool:
    """Whether torchrun started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def own_device(device: str) -> str:
    """The device of this process: of "cuda" the GPU of its own number."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and is_joint() else device


def join(device: str) -> Ranks:
    """Wait for the processes that torchrun started, and train with them; alone without it.

    Args:
        device: as of `own_device`.
    """
    if not is_joint():
        return ALONE
    if not dist.is_initialized():
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if on_gpu else "gloo")
        atexit.register(dist.destroy_process_group)
    dist.barrier()  # all have looked at the run folder before the first one writes to it
    return Ranks(dist.get_rank(), dist.get_world_size())
