"""Worker processes on this machine: a Dask cluster that nobody else can reach.

Everything listens on 127.0.0.1 and there is no dashboard, for Dask's messages carry pickles. A
worker that dies is started again; threads, memory and GPUs are divided among the workers.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.system import MEMORY_LIMIT

from tadpipe.errors import ConfigError

HOST = "127.0.0.1"
NO_PAGES = {"dashboard": False, "dashboard_address": f"{HOST}:0"}
SPAWN = "distributed.nanny.pre-spawn-environ"
# What a worker does first. Ctrl-C reaches every process of the terminal, but the command alone
# answers it; what is slow to import is there before the worker counts as one; the command has said
# already that weights are random.
PRELOAD = """
import logging
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
import tadpipe.pipeline.extract_cluster

logging.getLogger("tadpipe.backbones").setLevel(logging.ERROR)
"""
# Dask lets malloc give memory back at once, which makes every frame's memory new to the system:
# two workers spent a third of their time on it. Large blocks are reused instead, as without Dask.
REUSED_BYTES = 32 << 20
SETTINGS = {
    f"{SPAWN}.MALLOC_TRIM_THRESHOLD_": 2 * REUSED_BYTES,
    f"{SPAWN}.MALLOC_MMAP_THRESHOLD_": REUSED_BYTES,
    # Threads come and go with every group of videos, and each would take memory of its own anew.
    f"{SPAWN}.MALLOC_ARENA_MAX": 2,
    # A worker has the group it works on and no other: a death speaks of that group alone.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.deploy.lost-worker-timeout": "10 minutes",  # a busy machine starts one slowly
    "distributed.worker.memory.target": False,  # there is nothing to spill
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.profile.enabled": False,
    # What every process does all the time; at Dask's own pace it takes 3 % of two cores.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.memory.monitor-interval": "500ms",
}


@contextmanager
def local_workers(count: int, device: str) -> Iterator[Client]:
    """A client of `count` new worker processes, which end with the block.

    Raises:
        ConfigError: `device` names one GPU for all of them.
    """
    gpus = gpus_for(device)
    memory = MEMORY_LIMIT // count
    threads = os.environ.get("OMP_NUM_THREADS") or str(
        max(1, len(os.sched_getaffinity(0)) // count)
    )
    workers: dict[int, dict[str, Any]] = {}
    for number in range(count):
        env = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        workers[number] = {
            "cls": Nanny,
            "options": {
                "host": HOST,
                "nthreads": 1,
                "memory_limit": memory,
                **NO_PAGES,
                "env": env,
                "preload": [PRELOAD],
                "silence_logs": logging.CRITICAL,
            },
        }
    scheduler = {"cls": Scheduler, "options": {"host": HOST, "port": 0, **NO_PAGES}}
    share = {f"{SPAWN}.{name}": threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with (
        _environment_kept(),
        dask.config.set({**SETTINGS, **share}),
        _started(workers, scheduler) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _started(workers: dict[int, dict[str, Any]], scheduler: dict[str, Any]) -> SpecCluster:
    """The cluster, once it is whole: one that is left while it starts ends in tracebacks.

    It starts in a thread with SIGINT blocked, which the processes inherit. An interrupted command
    waits for the few seconds and then closes it.
    """
    resource_tracker.ensure_running()  # in that thread it would let Ctrl-C through again
    with ThreadPoolExecutor(
        1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT})
    ) as starter:
        starting = starter.submit(SpecCluster, workers, scheduler, silence_logs=logging.CRITICAL)
        try:
            return starting.result()
        except BaseException:
            with suppress(Exception):
                starting.result().close()
            raise


def gpus_for(device: str) -> list[str]:
    """The GPUs that workers take turns at, as CUDA_VISIBLE_DEVICES names them; none on the CPU.

    Raises:
        ConfigError: one GPU by its number.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return []
    if ":" in device:
        raise ConfigError(
            "One GPU was named for several workers.",
            f"device {device}",
            "Use --device cuda: each worker takes one GPU. CUDA_VISIBLE_DEVICES says which.",
        )
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Dask sets variables for its workers in this process too, and leaves them there."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
