"""A process that writes videos into a store and, if told to, kills itself at its n-th step.

    python -m tests.faults.store_writer STORE ORDER_SEED [KILL_AT]

A step is anything that changes the disk: a sync, a rename, a removal, a new folder, a write through
h5py, a put or removal of objects. SIGKILL comes right before the step, as it may from outside, but
at the same place each run. Prints the number of steps at the end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

from tadpipe.store.feature_store import FeatureStore
from tests.unit.store.small_videos import SPEC, add, content

VIDEOS = 12


class Steps:
    """Counts steps and dies right before the `kill_at`-th."""

    def __init__(self, kill_at: int) -> None:
        self.kill_at = kill_at
        self.done = 0

    def counted(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same act, after counting it as a step."""

        def step(*arguments: Any, **named: Any) -> Any:
            self.done += 1
            if self.done == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **named)

        return step


def main(path: str, order_seed: int, kill_at: int = 0) -> None:
    steps = Steps(kill_at)
    for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, steps.counted(getattr(os, name)))
    if path.endswith(".h5"):
        import h5py

        h5py.Dataset.__setitem__ = steps.counted(h5py.Dataset.__setitem__)
        h5py.Group.create_dataset = steps.counted(h5py.Group.create_dataset)
    if "://" in path:
        from tadpipe.store.objects import Objects

        for name in ("create", "put", "remove"):
            setattr(Objects, name, steps.counted(getattr(Objects, name)))
    order = list(range(VIDEOS))
    random.Random(order_seed).shuffle(order)
    store = FeatureStore.create(path)
    with store.writer(SPEC, part_rows=150) as writer:
        for seed in order:
            if not store.has_content(SPEC.fid, content(seed)):
                add(writer, f"v{seed}", seed)
    print(steps.done)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
