"""Extraction by many worker processes: the side of the command that hands out the videos.

Groups of videos go to Dask workers (`pipeline/extract_worker.py`), small outcomes come back, and
features go straight from a worker into the store. Nothing is taken for done before it is
committed. A group whose worker died is given out again, each video alone; a video that kills
worker after worker is recorded as `worker-died` and the run goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, as_completed

from tadpipe.backbones.loading import RANDOM
from tadpipe.errors import StoreError, TadpipeError, VideoReason
from tadpipe.location import location
from tadpipe.pipeline.extract_report import ExtractReport
from tadpipe.pipeline.extract_units import Unit, units_of
from tadpipe.pipeline.extract_worker import Job, Sent, close_sessions, extract_group
from tadpipe.pipeline.local_workers import local_workers
from tadpipe.pipeline.progress import Progress
from tadpipe.pipeline.scheduler_client import UNREACHABLE, cluster_of, dask_quiet
from tadpipe.pipeline.video_files import VideoFile, printable
from tadpipe.pipeline.video_outcomes import VideoOutcome
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.ledger import LedgerRow

logger = logging.getLogger(__name__)

MOST_DEATHS = 3  # of workers with the same video, before it is left out
GROUP_VIDEOS = 8
GROUP_BYTES = 256e6
AHEAD = 2  # groups handed out per worker
LOOK_SEC = 30.0  # without an outcome, until we look whether there are workers at all
SETTLE_SEC = 2.0
Answer = TypeVar("Answer")


def extract_on_cluster(
    files: Sequence[VideoFile],
    job: Job,
    *,
    workers: int | None,
    scheduler: str | None,
    annotations: bytes | None,
    progress: Progress,
) -> ExtractReport:
    """Extract on `workers` new processes of this machine, or on the cluster of a scheduler.

    Args:
        scheduler: its address, or the file that `dask scheduler --scheduler-file` wrote.
    Raises:
        ConfigError: no scheduler there.
        TadpipeError: the scheduler is lost, or a worker cannot do its work.
    """
    started = time.monotonic()
    report = ExtractReport(location(job.store), job.spec.fid)
    job = _with_absolute_paths(job)
    connected = local_workers(workers, job.device) if workers else cluster_of(str(scheduler))
    run: _ClusterRun | None = None
    try:
        with dask_quiet(), connected as client:
            store = FeatureStore.create(job.store)
            if annotations is not None:
                store.set_annotations(annotations)
            run = _ClusterRun(client, job, store, progress)
            run.over(files)
            report.shared_sec = run.seconds
    except BaseException:  # Ctrl-C too: what local workers had finished is committed here
        if run is not None:
            with _told(StoreError):
                run.write(())
        raise
    report.take(run.outcomes.values(), files)
    report.seconds = time.monotonic() - started
    return report


class _ClusterRun:
    """One pass over the videos with whatever workers there are."""

    def __init__(self, client: Client, job: Job, store: FeatureStore, progress: Progress) -> None:
        self.client = client
        self.job = job
        self.store = store
        self.progress = progress
        self.outcomes: dict[Path, VideoOutcome] = {}
        self._waiting: deque[Unit] = deque()
        self._handed_out: dict[Future, list[Unit]] = {}
        self._units: dict[Path, Unit] = {}
        self._done = self._completed()
        self._plugin = f"tadpipe-{uuid.uuid4().hex}"
        self._address = str(client.scheduler_info()["address"])
        self._started = time.monotonic()
        self._rows = 0
        self._is_lost = False  # a scheduler that is back knows nothing of this run

    @property
    def seconds(self) -> float:
        """Since there are workers."""
        return time.monotonic() - self._started

    def over(self, files: Sequence[VideoFile]) -> None:
        self._ask(lambda: self.client.register_plugin(_CommitAtExit(), name=self._plugin))
        self.progress.begin("extract", len(files), "video")
        try:
            self._waiting.extend(units_of(files, self.store, self.job.spec.fid))
            while self._waiting:
                self._work_off()
                self._commit()
        except BaseException:
            self._leave()
            raise
        finally:
            self.progress.end()
        self._ask(lambda: self.client.unregister_worker_plugin(self._plugin))

    def _work_off(self) -> None:
        """Keep every worker busy, and no more than a little ahead, until nothing waits."""
        while self._waiting or self._handed_out:
            workers = max(self._workers(), 1)  # a cluster may start workers as there is work
            while (
                self._waiting and len(self._handed_out) < AHEAD * workers and self._may_hand_out()
            ):
                self._hand_out(self._next_group(workers))
            future, outcome = self._next_outcome()
            self._take(self._handed_out.pop(future), outcome)

    def _may_hand_out(self) -> bool:
        """Suspects have the cluster for themselves: a death takes whatever waits on that worker."""
        suspects = any(unit.deaths for group in self._handed_out.values() for unit in group)
        return not suspects and not (self._waiting[0].deaths and self._handed_out)

    def _next_group(self, workers: int) -> list[Unit]:
        """Large groups first, small ones towards the end; whatever failed before goes alone."""
        room = min(GROUP_VIDEOS, max(1, len(self._waiting) // (2 * AHEAD * workers)))
        group = [self._waiting.popleft()]
        while (
            self._waiting
            and not group[0].deaths
            and not self._waiting[0].deaths
            and sum(unit.cost for unit in (*group, self._waiting[0])) <= room
            and sum(unit.bytes for unit in (*group, self._waiting[0])) <= GROUP_BYTES
        ):
            group.append(self._waiting.popleft())
        return group

    def _hand_out(self, group: list[Unit]) -> None:
        sent = [video for unit in group for video in unit.videos]
        key = f"tadpipe-extract-{uuid.uuid4().hex}"
        future = self.client.submit(extract_group, self.job, sent, key=key, pure=False)
        self._handed_out[future] = group
        self._units.update({video.file.path: unit for unit in group for video in unit.videos})
        self._done.add(future)

    def _next_outcome(self) -> tuple[Future, Any]:
        while True:
            try:
                found: tuple[Future, Any] = next(self._done)
                return found
            except TimeoutError:
                if not self._workers():
                    logger.warning("no workers at the moment; waiting for some to join")
            self._done = self._completed()

    def _completed(self) -> as_completed:
        """Those handed out as they end; gives up after a while, so that one can look around."""
        return as_completed(
            list(self._handed_out),
            loop=self.client.loop,
            with_results=True,
            raise_errors=False,
            timeout=LOOK_SEC,
        )

    def _take(self, group: list[Unit], outcome: Any) -> None:
        """What came of a group, as Dask has it: the answer, an error in three parts, or neither.

        The future's own status is of this moment: it changes when the worker dies that answered.
        """
        if isinstance(outcome, list):
            self._record(group, outcome)
            return
        if not isinstance(outcome, tuple):  # cancelled, or its scheduler is gone
            raise self._lost()
        _, error, trace = outcome
        if isinstance(error, KilledWorker):
            # A suspect was alone, so that every death was its own; before, it may be another's.
            deaths = 1 + error.allowed_failures if group[0].deaths else 1
            logger.warning("a worker died; what it was doing is given to another")
            self._failed(group, deaths, VideoReason.WORKER_DIED, "its worker process died")
        elif isinstance(error, TadpipeError):
            raise error
        else:
            what = f"{type(error).__name__}: {error}"
            logger.warning("a worker failed: %s", what, exc_info=(type(error), error, trace))
            memory = "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError)
            reason = VideoReason.OUT_OF_MEMORY if memory else VideoReason.WORKER_DIED
            self._failed(group, 1, reason, what)

    def _record(self, group: list[Unit], outcomes: Sequence[VideoOutcome]) -> None:
        """Note what came of the videos; whatever a leaving worker left over goes back."""
        found: dict[str, deque[VideoOutcome]] = {}
        for outcome in outcomes:
            found.setdefault(outcome.name, deque()).append(outcome)
        for unit in reversed(group):
            left = []
            for sent in unit.videos:
                if found.get(sent.file.name):
                    self._note(sent, found[sent.file.name].popleft())
                else:
                    left.append(sent)
            if left:
                self._waiting.appendleft(Unit(tuple(left), unit.is_stored, unit.deaths))

    def _note(self, sent: Sent, outcome: VideoOutcome) -> None:
        is_new = sent.file.path not in self.outcomes
        self.outcomes[sent.file.path] = outcome
        if outcome.status == "done":
            self._rows += outcome.rows
        if is_new:
            rate = self._rows / max(self.seconds, 1e-9)
            self.progress.advance(note=f"{rate:.0f} snippets/s")

    def _failed(self, group: list[Unit], deaths: int, reason: VideoReason, message: str) -> None:
        """Give the group out again, each unit alone, but for those that had their chances."""
        lost: list[VideoOutcome] = []
        for unit in reversed(group):
            unit.deaths += deaths
            if unit.deaths < MOST_DEATHS:
                self._waiting.appendleft(unit)
                continue
            for sent in unit.videos:
                text = f"{message}, time after time: {printable(sent.file.path)}"
                outcome = VideoOutcome(sent.file.name, "failed", reason.value, text)
                lost.append(outcome)
                self._note(sent, outcome)
        self.write(lost)

    def _commit(self) -> None:
        """Make everything visible; whatever is not there in the end has to be done again."""
        self._ask(lambda: self.client.run(_close_sessions, on_error="ignore"))
        self.write(())
        stored = self.store.videos(self.job.spec.fid)
        missing = [
            self._units[path]
            for path, outcome in self.outcomes.items()
            if outcome.status != "failed" and outcome.name not in stored
        ]
        for unit in {id(unit): unit for unit in missing}.values():
            self._failed([unit], 1, VideoReason.WORKER_DIED, "its features never arrived")

    def write(self, failed: Sequence[VideoOutcome]) -> None:
        """Commit what dead workers had finished, and record what no worker could do."""
        with self.store.writer(self.job.spec) as writer:
            for outcome in failed:
                row = LedgerRow(outcome.name, outcome.status, outcome.reason, outcome.message)
                writer.record(row)

    def _leave(self) -> None:
        """Before an early end: workers that live on stop after the video they are at."""
        settled = time.monotonic() + SETTLE_SEC
        while self.client.status == "connecting" and time.monotonic() < settled:
            time.sleep(0.05)  # a client that is closed while it reconnects leaves a socket open
        if self.client.status == "running" and not self._is_lost:
            with suppress(*UNREACHABLE):
                self.client.cancel(list(self._handed_out))
                self.client.unregister_worker_plugin(self._plugin)

    def _workers(self) -> int:
        return len(self._ask(self.client.nthreads))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """What the scheduler says."""
        try:
            return question()
        except UNREACHABLE:
            raise self._lost() from None

    def _lost(self) -> TadpipeError:
        self._is_lost = True
        videos = sum(len(unit.videos) for group in self._handed_out.values() for unit in group)
        return TadpipeError(
            "The connection to the Dask scheduler was lost.",
            f"{self._address}: {videos} videos were handed out, {len(self.outcomes)} were finished",
            "Run the same command again once the scheduler is back: what was finished is kept.",
        )


class _CommitAtExit(WorkerPlugin):
    """Lets a worker that is asked to stop commit what it has finished."""

    async def teardown(self, worker: Worker) -> None:
        del worker
        await _close_sessions()


async def _close_sessions() -> None:
    await asyncio.to_thread(close_sessions)


def _with_absolute_paths(job: Job) -> Job:
    """The job as any machine with the same file systems understands it."""
    weights, store = job.weights, location(job.store)
    if weights is not None and weights.weights != RANDOM:
        weights = weights._replace(weights=Path(os.path.abspath(weights.weights)))
    return replace(
        job,
        store=os.path.abspath(store) if isinstance(store, Path) else str(store),
        weights=weights,
        flow=None if job.flow is None else Path(os.path.abspath(job.flow)),
    )


@contextmanager
def _told(*kinds: type[Exception]) -> Iterator[None]:
    """Log errors of these kinds: what ended the run before matters more."""
    try:
        yield
    except kinds as error:
        logger.error("%s", error)
