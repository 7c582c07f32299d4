"""A client of the Dask cluster that somebody started, and how Dask is kept from talking.

Whether a scheduler answers can be asked before there is any work for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, Security
from distributed.comm import connect
from distributed.utils import LoopRunner

from tadpipe.errors import ConfigError
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.local_workers import gpus_for

logger = logging.getLogger(__name__)

CONNECT_SEC = 10.0
UNREACHABLE = (OSError, TimeoutError, CancelledError, asyncio.CancelledError)
DASK_LOGGERS = ("distributed", "distributed.client", "tornado.application")


def check_cluster(scheduler: str | None, device: str) -> None:
    """Refuse, before a backbone is loaded, what the workers could not begin.

    Args:
        scheduler: address or scheduler file; None: new processes of this machine.
    Raises:
        ConfigError: no scheduler there, or a device that this machine's workers cannot have.
    """
    if scheduler is None:
        gpus_for(resolve_device(device))
        return
    with dask_quiet(), cluster_of(scheduler) as client:
        if any(threads > 1 for threads in client.nthreads().values()):
            logger.warning("a worker does one video at a time: start them with --nthreads 1")


@contextmanager
def cluster_of(scheduler: str) -> Iterator[Client]:
    """A client of the cluster that is there.

    Raises:
        ConfigError: nothing answers.
    """
    try:
        address = _address_of(scheduler)
        _knock_at(address)
        client = Client(address, timeout=CONNECT_SEC, set_as_default=False)
    except (*UNREACHABLE, ValueError, TypeError, ImportError) as error:
        raise ConfigError(
            "No Dask scheduler answers.",
            f"--scheduler {scheduler}: {error}",
            "Start one with dask scheduler, and workers with dask worker ADDRESS --nthreads 1.",
        ) from None
    with client:
        yield client


def _address_of(scheduler: str) -> str:
    """The address that a scheduler file names, or what was given.

    Raises:
        ValueError: a file that names none.
    """
    if not os.path.isfile(scheduler):
        return scheduler
    contents = json.loads(Path(scheduler).read_text(encoding="utf-8"))
    address = contents.get("address") if isinstance(contents, dict) else None
    if not isinstance(address, str):
        raise ValueError("the file names no address")
    return address


def _knock_at(address: str) -> None:
    """See whether a scheduler answers; a Client that fails to connect hangs when Python ends.

    Raises:
        OSError: nothing answers. ValueError: no address. TypeError: TLS is not configured.
    """
    runner = LoopRunner(asynchronous=False)
    runner.start()
    try:
        runner.run_sync(_answer_of, address)
    finally:
        runner.stop()


async def _answer_of(address: str) -> None:
    arguments = Security().get_connection_args("client")
    (await connect(address, timeout=CONNECT_SEC, **arguments)).abort()


@contextmanager
def dask_quiet() -> Iterator[None]:
    """Dask tells of every lost connection with a traceback; the command says what it means."""
    loggers = [logging.getLogger(name) for name in DASK_LOGGERS]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
