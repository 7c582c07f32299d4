"""The writer: videos are spooled one by one and packed into immutable parts.

`add` returns when the video would survive a kill. A part is packed and committed when enough rows
are spooled, on `flush` and on leaving the context, also when that is by Ctrl-C. A new writer of
the same spec first adopts what dead ones had finished; it never touches what the living hold.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from tadpipe.errors import ConfigError, StoreError
from tadpipe.store.commits import Commit, columns
from tadpipe.store.durable import writing
from tadpipe.store.ledger import LedgerRow
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.opened import OpenStore
from tadpipe.store.row_buffer import RowBuffer
from tadpipe.store.spool import FinishedVideo, Spool, SpooledVideo
from tadpipe.store.writer_names import commit_id, later_than, unique_writer_id

logger = logging.getLogger(__name__)

PART_ROWS = 32_768  # rows after which a part is packed
CHECKED_ROWS = 4096  # rows looked at together
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WRITER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
Array = np.ndarray[Any, Any]


class StoreWriter:
    """Adds videos of one spec to a store; use as a context.

    Args:
        writer_id: letters, digits, - and _; made up when None.
        part_rows: rows after which a part is packed.
    """

    def __init__(
        self,
        store: OpenStore,
        spec: FeatureSpec,
        *,
        writer_id: str | None = None,
        part_rows: int = PART_ROWS,
    ) -> None:
        self.writer_id = unique_writer_id() if writer_id is None else writer_id
        if not _WRITER_ID.fullmatch(self.writer_id):
            raise ConfigError(
                "A writer's name is made of letters, digits, - and _.", repr(writer_id)
            )
        if part_rows < 1:
            raise ConfigError("A part holds at least one row.", f"part_rows = {part_rows}")
        self.spec = spec
        self._store = store
        self._part_rows = part_rows
        self._spooled_rows = 0
        self._aliases: dict[str, str] = {}  # name -> content, to be committed after the spool
        self._named: dict[str, str] = {}  # what names will mean once all is committed
        self._held = ExitStack()
        self._spool: Spool | None = None

    def __enter__(self) -> StoreWriter:
        backend, spec = self._store.backend, self.spec
        with ExitStack() as held:
            held.enter_context(writing(self._store.path))
            held.enter_context(backend.exclusive())
            note = {"spec": spec.to_mapping(), "host": socket.gethostname(), "pid": os.getpid()}
            spool = Spool(backend.spool_root(spec.fid), self.writer_id, note)
            held.callback(spool.close)
            spool.adopt()
            self._store.note_committed(spec.fid)  # see what others committed since it was opened
            self._spool = spool
            self._welcome(spool)
            self._held = held.pop_all()
        return self

    def _welcome(self, spool: Spool) -> None:
        """Count adopted videos as ours, but for those whose part was committed before the kill."""
        for video in spool.videos():
            content = video.line["content_sha256"]
            if self._store.has_content(self.spec.fid, content):
                self.alias(video.line["name"], content)
                spool.remove([video])
            else:
                self._note_spooled(video.line["name"], content, video.rows)

    def _note_spooled(self, name: str, content: str, rows: int) -> None:
        self._store.note_spooled(self.spec.fid, content)
        self._spooled_rows += rows
        self._aliases.pop(name, None)  # the newer meaning wins
        self._named[name] = content

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        backend = self._store.backend
        with self._held:
            try:
                self.flush()
                with writing(self._store.path):
                    backend.close_ledger(self.writer_id)
                commits = self._store.videos(self.spec.fid).commits
                if commits:
                    with writing(self._store.path):
                        backend.remember_catalogue(self.spec.fid, commits)
            except StoreError as failure:
                if error is None:
                    raise
                # What ended the block matters more; finished videos wait in the spool. A disk
                # that refused the block refuses this too, and is not to be reported twice.
                level = logging.INFO if isinstance(error, StoreError) else logging.ERROR
                logger.log(level, "%s", failure)
            finally:
                self._spool = None

    def add(
        self,
        name: str,
        content_sha256: str,
        rows: Array,
        times: Array,
        *,
        t0: float,
        dt: Fraction | None,
        fps: Fraction | None,
        frames: int,
        duration_sec: float,
        offset_frames: float | None = None,
        truncated: bool = False,
    ) -> None:
        """Add a finished video; content that is stored already only gets the name.

        Args:
            rows: [n, C], n >= 1.
            times: [n] centre times in seconds, rising.
            t0, dt: time of row 0 and seconds between rows; dt None where the rate varies.
            offset_frames: frame of the centre of row 0, where it is not what the spec says.
        Raises:
            StoreError: rows that do not fit the spec or the stored type, or a disk that refuses.
        """
        if self._store.has_content(self.spec.fid, content_sha256):
            self.alias(name, content_sha256)
            return
        features, stamps = self._checked(name, content_sha256, rows, times)
        line = {
            "name": name,
            "content_sha256": content_sha256,
            "rows": len(features),
            "t0": float(t0),
            "dt": None if dt is None else str(Fraction(dt)),
            "clip_len": self.spec.clip_len,
            "fps": None if fps is None else str(Fraction(fps)),
            "frames": int(frames),
            "duration_sec": float(duration_sec),
            "offset_frames": float(
                self.spec.offset_frames if offset_frames is None else offset_frames
            ),
            "truncated": truncated,
            "checksum": checksum(features),
            "times_checksum": checksum(stamps),
            "nan_count": sum(
                int(np.isnan(features[start : start + CHECKED_ROWS]).sum())
                for start in range(0, len(features), CHECKED_ROWS)
            ),
        }
        with writing(self._store.path):
            self._open_spool().add(line, features, stamps)
        self._note_spooled(name, content_sha256, len(features))
        if self._spooled_rows >= self._store.backend.rows_worth_packing(
            self.spec.fid, self._part_rows
        ):
            self.flush()

    def alias(self, name: str, content_sha256: str) -> None:
        """Let `name` mean content that is stored, or was added before.

        Raises:
            StoreError: no such content.
        """
        if not self._store.has_content(self.spec.fid, content_sha256):
            raise StoreError(
                "A name can only be given to content that is stored.",
                f"{name!r} for content {content_sha256}",
                "Add the features first.",
            )
        videos = self._store.videos(self.spec.fid)
        known = videos.content_of(name) if name in videos else ""
        if self._named.get(name, known) != content_sha256:
            self._aliases[name] = self._named[name] = content_sha256

    def record(self, row: LedgerRow) -> None:
        """Write a line of the ledger."""
        with writing(self._store.path):
            self._store.backend.record(self.writer_id, self.spec.fid, row)

    def flush(self) -> None:
        """Pack and commit all that is spooled; it is visible to readers afterwards."""
        spool = self._open_spool()
        with writing(self._store.path):
            videos = self._still_new(spool)
            if not videos and not self._aliases:
                return
            commit = self._commit(videos)
            self._store.backend.publish(self.spec, commit, videos, spool.folder)
            self._aliases.clear()
            self._named.clear()
            spool.remove(videos)
        self._spooled_rows = 0
        self._store.note_committed(self.spec.fid, [v.line["content_sha256"] for v in videos])

    def _still_new(self, spool: Spool) -> list[SpooledVideo]:
        """The spooled videos, without those that another writer has committed since.

        Of these only the names are left to be committed, where they mean nothing newer.
        """
        videos = spool.videos()
        if not videos:
            return []
        self._store.note_committed(self.spec.fid)
        stored = self._store.videos(self.spec.fid)
        late = [video for video in videos if stored.has_content(video.line["content_sha256"])]
        for video in late:
            name, content = video.line["name"], video.line["content_sha256"]
            if self._named.get(name) == content:
                del self._named[name]
                self.alias(name, content)
        if late:
            spool.remove(late)
            self._store.note_committed(self.spec.fid, [v.line["content_sha256"] for v in late])
        return [video for video in videos if video not in late]

    def _commit(self, videos: list[SpooledVideo]) -> Commit:
        return Commit(
            id=commit_id(self.writer_id),
            created_ns=later_than(self._store.videos(self.spec.fid)),
            aliases=list(self._aliases.items()),
            **(part_facts(videos) if videos else {}),
        )

    def _open_spool(self) -> Spool:
        if self._spool is None:
            raise StoreError("The writer is closed.", todo="Use it as a context: with store.writer")
        return self._spool

    def _checked(
        self, name: str, content_sha256: str, rows: Array, times: Array
    ) -> tuple[Array, Array]:
        """Rows and times as they are stored."""
        where = f"{name!r}: rows {rows.shape}, times {times.shape}"
        if not _SHA256.fullmatch(content_sha256):
            raise StoreError("Content is named by 64 hexadecimal digits.", repr(content_sha256))
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != self.spec.channels:
            raise StoreError(f"Expected rows [n, {self.spec.channels}], n >= 1.", where)
        stamps = np.ascontiguousarray(times, dtype="<f8")
        if stamps.shape != (len(rows),) or not np.isfinite(stamps).all():
            raise StoreError("Expected one finite time per row.", where)
        if (np.diff(stamps) < 0).any():
            raise StoreError("Row times must not fall.", where)
        stored = RowBuffer()
        for start in range(0, len(rows), CHECKED_ROWS):
            part = rows[start : start + CHECKED_ROWS]
            with np.errstate(over="ignore"):
                kept = np.ascontiguousarray(part, dtype=np.dtype(self.spec.stored_dtype))
            if np.isinf(kept).sum() > np.isinf(part).sum():
                raise StoreError(
                    f"Features of {name!r} do not fit into {self.spec.stored_dtype}.",
                    f"largest value {np.nanmax(np.abs(part[np.isfinite(part)])):g}",
                    "Extract with --feature-dtype float32.",
                )
            stored.append(kept)
        return stored.array(), stamps


def part_facts(videos: Sequence[FinishedVideo]) -> dict[str, Any]:
    """What a commit says of the part that holds these videos."""
    lines, first_row = [], 0
    for video in videos:
        lines.append({**video.line, "first_row": first_row})
        first_row += video.rows
    return {"dtype": np.dtype(videos[0].dtype).name, "rows": first_row, "videos": columns(lines)}


def checksum(array: Array) -> str:
    """xxh3-64 of the raw bytes, hexadecimal."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data.cast("B"))
