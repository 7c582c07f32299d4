"""One pass of extraction over a list of videos: skip what is there, write and record the rest.

Three things go on at once: the backbone with its lanes (`pipeline/clip_batches.py`) in the caller's
thread, hashing of the next files in one of its own, writing of finished videos in another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tadpipe.errors import VideoError, VideoReason
from tadpipe.pipeline.clip_batches import ClipBatches
from tadpipe.pipeline.extract_report import ExtractReport
from tadpipe.pipeline.frame_rows import FrameWindows
from tadpipe.pipeline.frame_source import VideoRows
from tadpipe.pipeline.progress import Progress
from tadpipe.pipeline.run_meter import RunMeter
from tadpipe.pipeline.video_files import VideoFile, printable
from tadpipe.pipeline.video_outcomes import VideoOutcome
from tadpipe.store.content import ContentIndex
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.ledger import LedgerRow
from tadpipe.store.run_progress import rates_text
from tadpipe.store.writer import StoreWriter

logger = logging.getLogger(__name__)

Runner = ClipBatches | FrameWindows  # of videos through a backbone
HASHED_AHEAD = 2  # files
WRITES_WAITING = 2  # finished videos
Item = TypeVar("Item")
Promise = TypeVar("Promise")


class ExtractRun:
    """One pass over the videos: skip what is there, extract the rest, write and record all."""

    def __init__(
        self,
        report: ExtractReport,
        store: FeatureStore,
        writer: StoreWriter,
        batches: Runner,
        progress: Progress,
        *,
        knows_all: bool = True,
    ) -> None:
        self.report = report
        self.store = store
        self.writer = writer
        self.batches = batches
        self.progress = progress
        self.content = ContentIndex(report.store)
        self.copies: dict[str, list[str]] = {}  # content in flight -> other names of it
        self.commits: set[str] = set()  # that the store's catalogue was made of
        self.lock = threading.RLock()  # of the store and what is known of it here
        self.meter = RunMeter(
            batches,
            store.backend.tell,
            writer.writer_id,
            report.fid,
            knows_all=knows_all,
        )

    def over(self, files: Sequence[VideoFile]) -> None:
        """Every file once; the first thing that goes wrong with the store ends it."""
        self.progress.begin("extract", len(files), "video")
        try:
            with (
                self.meter.running(len(files)),
                ThreadPoolExecutor(1) as hasher,
                _Behind(self._finish) as behind,
                closing(self.batches.run(self._new(files, hasher))) as finished,
            ):
                for video in finished:
                    behind.add(video)
        finally:
            self.report.progress = self.meter.progress()
            self.progress.end()

    def _new(self, files: Sequence[VideoFile], hasher: Executor) -> Iterator[VideoRows]:
        """The videos that have to be decoded; the others are recorded on the way."""
        for file, content in _ahead(files, lambda file: hasher.submit(self._content, file)):
            known = content.result()
            with self.lock:
                sha256 = known if isinstance(known, str) and self._is_new(file, known) else ""
                if isinstance(known, VideoError):
                    self._failed(file.name, "", known, 0, 0.0)
            if sha256:
                yield VideoRows(file, sha256, is_wanted=partial(self._is_still_new, sha256))

    def _content(self, file: VideoFile) -> str | VideoError:
        try:
            return content_of(self.content, file.path)
        except VideoError as error:
            return error

    def _is_new(self, file: VideoFile, sha256: str) -> bool:
        self._say_if_renamed(file.name, sha256)
        if self.store.has_content(self.report.fid, sha256):
            self._reused(file.name, sha256)
        elif sha256 in self.copies:
            self.copies[sha256].append(file.name)
        else:
            self.copies[sha256] = []
            return True
        return False

    def _is_still_new(self, sha256: str) -> bool:
        with self.lock:
            self.look_again()
            return not self.store.has_content(self.report.fid, sha256)

    def _finish(self, video: VideoRows) -> None:
        with self.lock:
            self._write(video)

    def _write(self, video: VideoRows) -> None:
        copies = self.copies.pop(video.content_sha256)
        name, sha256 = video.file.name, video.content_sha256
        if video.error is not None:
            seconds = time.monotonic() - video.started
            for each in (name, *copies):
                decoded = video.frames_decoded if each == name else 0
                self._failed(each, sha256, video.error, decoded, seconds)
            return
        self.look_again()
        was_wanted = video.probe is not None
        if not was_wanted or self.store.has_content(self.report.fid, sha256):  # others were quicker
            self._reused(name, sha256, video if was_wanted else None)
            for each in copies:
                self._reused(each, sha256)
            return
        assert video.probe is not None
        features = video.features()
        grid, rate = self.batches.plan.grid(video.probe), video.probe.fps
        self.writer.add(
            name,
            sha256,
            features,
            self.batches.plan.row_times(video.probe),
            t0=grid.t0_sec,
            dt=None if rate is None else self.batches.plan.stride / rate,
            fps=rate,
            frames=video.probe.frames,
            duration_sec=video.probe.duration_sec,
            truncated=video.truncated,
        )
        outcome = VideoOutcome(
            name,
            "done",
            rows=len(features),
            frames_decoded=video.frames_decoded,
            seconds=time.monotonic() - video.started,
            bytes=features.size * (2 if self.writer.spec.stored_dtype == "float16" else 4),
        )
        self._record(outcome, sha256)
        for copy in copies:
            self._reused(copy, sha256)

    def look_again(self) -> None:
        """See what other writers committed meanwhile."""
        commits = set(self.store.backend.commit_ids(self.report.fid))
        if commits != self.commits:
            self.store.note_committed(self.report.fid)
            self.commits = commits

    def _say_if_renamed(self, name: str, sha256: str) -> None:
        """A name that meant another file means this one from now on."""
        names = self.store.videos(self.report.fid)
        if name in names and names.content_of(name) != sha256:
            logger.warning("%s is another file than before; its name now means it", printable(name))

    def _reused(self, name: str, sha256: str, decoded: VideoRows | None = None) -> None:
        """Already in the store, under this name or another; `decoded` in vain, then."""
        names = self.store.videos(self.report.fid)
        is_copy = not (name in names and names.content_of(name) == sha256)
        self.writer.alias(name, sha256)
        reason = VideoReason.DUPLICATE_CONTENT.value if is_copy else ""
        message = "the same content is stored under another name" if is_copy else ""
        outcome = VideoOutcome(name, "reused", reason, message)
        if decoded is not None:
            outcome = outcome._replace(
                frames_decoded=decoded.frames_decoded, seconds=time.monotonic() - decoded.started
            )
        self._record(outcome, sha256)

    def _failed(
        self, name: str, sha256: str, error: VideoError, frames_decoded: int, seconds: float
    ) -> None:
        message = f"{error.what} {error.where}".strip()
        self._record(
            VideoOutcome(name, "failed", error.reason.value, message, 0, frames_decoded, seconds),
            sha256,
        )

    def _record(self, outcome: VideoOutcome, sha256: str) -> None:
        self.writer.record(
            LedgerRow(
                name=outcome.name,
                status=outcome.status,
                reason=outcome.reason,
                message=outcome.message,
                content_sha256=sha256,
                seconds=outcome.seconds,
                frames_decoded=outcome.frames_decoded,
                bytes=outcome.bytes,
            )
        )
        self.report.videos.append(outcome)
        self.meter.note(outcome)
        self.progress.advance(note=rates_text(self.meter.progress()))


def content_of(index: ContentIndex, path: Path) -> str:
    """SHA-256 of a video's bytes, or why it cannot be read."""
    try:
        return index.sha256(path)
    except OSError as error:
        reason = VideoReason.NOT_FOUND
        if isinstance(error, PermissionError):
            reason = VideoReason.PERMISSION
        raise VideoError(
            reason, "The file cannot be read.", f"{printable(path)}: {error.strerror}"
        ) from None


def _ahead(
    items: Iterable[Item], begin: Callable[[Item], Promise]
) -> Iterator[tuple[Item, Promise]]:
    """The items with what was begun for them, a few items before their turn."""
    begun: deque[tuple[Item, Promise]] = deque()
    for item in items:
        begun.append((item, begin(item)))
        if len(begun) > HASHED_AHEAD:
            yield begun.popleft()
    yield from begun


class _Behind:
    """Does something with one video after another in a thread; a context, at whose end all is done.

    What goes wrong is raised by the next `add` or at the end, and nothing more is done.
    """

    def __init__(self, work: Callable[[VideoRows], None]) -> None:
        self._work = work
        self._failed = False
        self._executor = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown()
        while kind is None and self._waiting:
            self._waiting.popleft().result()

    def add(self, video: VideoRows) -> None:
        """Waits while too many wait already."""
        self._waiting.append(self._executor.submit(self._do, video))
        while len(self._waiting) > WRITES_WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def _do(self, video: VideoRows) -> None:
        if self._failed:
            return
        try:
            self._work(video)
        except BaseException:
            self._failed = True
            raise
