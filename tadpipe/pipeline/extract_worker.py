"""The worker's side of extraction on a Dask cluster: one backbone and one writer per process.

Everything a worker needs travels as one small `Job`. What it loads for a job stays for the next
group of videos; features go from the worker into the store, only outcomes go back. This module
knows nothing of Dask: the tests call it as the workers do.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from tadpipe import __version__
from tadpipe.backbones.protocol import Backbone
from tadpipe.errors import CheckpointError, ConfigError, StoreError, TadpipeError
from tadpipe.location import location
from tadpipe.pipeline.clip_batches import batch_of, decoders_of
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.extract_checks import compiling
from tadpipe.pipeline.extract_report import ExtractReport
from tadpipe.pipeline.extract_run import ExtractRun, Runner
from tadpipe.pipeline.known_weights import KnownWeights
from tadpipe.pipeline.optical_flow import flow_source
from tadpipe.pipeline.spec_backbone import load_exactly
from tadpipe.pipeline.video_features import clip_runner
from tadpipe.pipeline.video_files import VideoFile, printable
from tadpipe.pipeline.video_outcomes import VideoOutcome
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec
from tadpipe.video.process import DecodeProcess


@dataclass(frozen=True)
class Job:
    """Which features, from which weights, into which store; equal jobs share what is loaded."""

    store: str
    spec: FeatureSpec
    weights: KnownWeights | None  # None = the named download
    flow: Path | None
    device: str  # may be "auto": each worker looks for itself
    batch: int | None
    compile: bool
    decoder: Literal["pyav", "decord"]
    decoders: int | None  # per worker; None as for a single process
    decode_timeout_sec: float
    version: str = __version__


class Sent(NamedTuple):
    """One video as the client sees it."""

    file: VideoFile
    size_bytes: int | None  # None where the client cannot read it either


def extract_group(job: Job, group: Sequence[Sent]) -> list[VideoOutcome]:
    """Extract a few videos and say what became of each; a worker does one group at a time.

    When this returns, what is done would survive a kill of the worker; `close_sessions` makes it
    visible.

    Raises:
        ConfigError: a worker of another version, or one that cannot see store or videos.
        CheckpointError: it cannot see the weights, or sees others.
    """
    if job.version != __version__:
        raise ConfigError(
            "A worker runs another version of tadpipe.",
            f"{place()}: {__version__}, this command: {job.version}",
            "Install the same version on every machine.",
        )
    with _sessions.busy:
        _sessions.leaving.clear()
        session = _sessions.of(job)
        try:
            return session.extract(group)
        except BaseException:
            session.close()  # half a batch may be queued in it
            raise


def close_sessions() -> None:
    """Commit what is finished and free the backbone; a group at work does so after its video."""
    _sessions.leaving.set()
    if _sessions.busy.acquire(blocking=False):
        try:
            _sessions.close()
        finally:
            _sessions.busy.release()


def place() -> str:
    """Where this process is, for messages."""
    return f"worker on {socket.gethostname()} (process {os.getpid()})"


class _AskedToLeave(Exception):
    """Ends a group between two videos."""


class _UntilAsked:
    """The progress of a group: draws nothing, ends it where the worker was asked to leave."""

    def begin(self, label: str, total: int | None, unit: str) -> None:
        del label, total, unit

    def advance(self, units: int = 1, note: str = "") -> None:
        del units, note
        if _sessions.leaving.is_set():
            raise _AskedToLeave

    def end(self, summary: str = "") -> None:
        del summary


class _Session:
    """What one job needs in one process: the backbone for good, the rest until it is closed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device, self.backbone = self._load()
        self._held = ExitStack()
        self._run: ExtractRun | None = None

    def extract(self, group: Sequence[Sent]) -> list[VideoOutcome]:
        _check_visible(group)
        run = self._opened()
        run.report.videos = []
        run.look_again()
        try:
            with compiling(self.job.spec):
                run.over([sent.file for sent in group])
        except _AskedToLeave:
            self.close()
        return run.report.videos

    def close(self) -> None:
        """Commit what is finished; the next group opens a new writer."""
        self._run = None
        self._held.close()

    def _opened(self) -> ExtractRun:
        if self._run is None:
            with ExitStack() as held:
                runner = self._runner(held)
                # Not made where it is missing: it would be another store, of this machine alone.
                store = self._store()
                writer = held.enter_context(store.writer(self.job.spec))
                writer.flush()  # videos of dead workers: whoever is to do them again sees them
                report = ExtractReport(location(self.job.store), self.job.spec.fid)
                self._run = ExtractRun(
                    report, store, writer, runner, _UntilAsked(), knows_all=False
                )
                self._held = held.pop_all()
        return self._run

    def _runner(self, held: ExitStack) -> Runner:
        job = self.job
        source = flow_source(self.backbone.pixels, job.flow)
        if source is not None:
            try:
                source.check()
            except ConfigError as error:
                raise ConfigError(
                    "A worker cannot come by optical flow.", f"{place()}:\n{error}"
                ) from None
        processes = [
            held.enter_context(DecodeProcess(job.decoder, job.decode_timeout_sec))
            for _ in range(job.decoders or decoders_of(self.device))
        ]
        return clip_runner(
            self.backbone,
            job.spec,
            processes,
            device=self.device,
            batch=job.batch or batch_of(self.device),
            pad=job.compile,
            flow=source,
        )

    def _load(self) -> tuple[str, Backbone]:
        """The device of this machine, and the backbone on it."""
        job = self.job
        try:
            device = resolve_device(job.device)
            return device, load_exactly(
                job.spec, job.weights, device=device, compile=job.compile, run="this command"
            )
        except TadpipeError as error:
            todo = "Every worker must see the same weights under the same path."
            if not isinstance(error, CheckpointError):  # it has said what to do
                todo = ""
            raise type(error)(
                "A worker cannot load the backbone.", f"{place()}:\n{error}", todo
            ) from None

    def _store(self) -> FeatureStore:
        try:
            return FeatureStore.open(self.job.store, "a")
        except StoreError as error:
            raise StoreError(
                "A worker cannot open the store.",
                f"{place()}:\n{error}",
                "Keep the store where every machine sees it under the same path.",
            ) from None


class _Sessions:
    """The one session of this process; whoever uses it holds `busy`."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.leaving = threading.Event()
        self._session: _Session | None = None

    def of(self, job: Job) -> _Session:
        if self._session is None or self._session.job != job:
            self.close()
            self._session = _Session(job)
        return self._session

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
            del session
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


_sessions = _Sessions()


def _check_visible(group: Sequence[Sent]) -> None:
    for file, size_bytes in group:
        if size_bytes is not None and not os.path.exists(file.path):
            raise ConfigError(
                "A worker does not see a video that this command sees.",
                f"{place()}: {printable(file.path)}",
                "Keep videos where every machine sees them under the same path.",
            )
