"""The runs of a comparison, finished one after another or several at once.

Each run is a process of its own (`compare_run.py`); a run that another process works on is left
to it and looked at again later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from tadpipe.pipeline.compare_run import RunRequest, lease_path, read_cost, run_in_child
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.store.durable import Lease

logger = logging.getLogger(__name__)

POLL_SEC = 1.0  # between looks at a run that another process works on


def finish_runs(requests: Sequence[RunRequest], workers: int, progress: Progress) -> None:
    """Make every run finished.

    Args:
        workers: runs at the same time; one shows its steps, several count finished runs.
    Raises:
        TadpipeError: a run failed; the others have saved their state.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    pending = [request for request in requests if read_cost(Path(request.out)) is None]
    while pending:
        if workers == 1:
            busy = [request for request in pending if not _finish(request, progress, None)]
        else:
            busy = _finish_at_once(pending, workers, progress)
        if busy == pending:
            logger.info("waiting for %d runs that another process works on", len(busy))
            time.sleep(POLL_SEC)
        pending = busy


def _finish_at_once(
    requests: Sequence[RunRequest], workers: int, progress: Progress
) -> list[RunRequest]:
    """Finish runs in `workers` threads; those that another process works on come back."""
    stop = threading.Event()
    progress.begin(f"runs, {workers} at once", len(requests), "run")

    def finish(request: RunRequest) -> bool:
        finished = not stop.is_set() and _finish(request, SILENT, stop)
        if finished:
            progress.advance(note=_label(request))
        return finished

    with ThreadPoolExecutor(workers, thread_name_prefix="compare") as pool:
        futures: list[Future[bool]] = [pool.submit(finish, request) for request in requests]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # after an error or Ctrl-C the other runs save their state and end
    progress.end()
    errors = [error for future in futures if (error := future.exception()) is not None]
    # A run that was told to stop ends as if by Ctrl-C; the error is the other one.
    for error in sorted(errors, key=lambda error: isinstance(error, KeyboardInterrupt)):
        raise error
    return [request for request, done in zip(requests, futures, strict=True) if not done.result()]


def _finish(request: RunRequest, progress: Progress, stop: threading.Event | None) -> bool:
    """Train, detect and measure one run; False when another process works on it."""
    run = Path(request.out)
    if read_cost(run) is not None:
        return True
    return _is_free(run) and run_in_child(request, progress, _label(request), stop)


def _label(request: RunRequest) -> str:
    return f"{request.detector} seed {request.seed}"


def _is_free(run: Path) -> bool:
    """Whether nobody works on the run; asked first, because a process takes seconds to start."""
    run.parent.mkdir(parents=True, exist_ok=True)
    lease = Lease.take(lease_path(run))
    if lease is None:
        return False
    lease.release()
    return True
