"""Compaction: small parts, and parts with rows that nobody uses, are written into full ones.

Each new part replaces its old ones by one commit, so that a kill leaves the old or the new, never
half of either, and readers and writers need not stop. What was replaced is there until `gc`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tadpipe.errors import NoAnswerError, StoreError
from tadpipe.store.backend import Backend
from tadpipe.store.catalogue import Catalogue
from tadpipe.store.commits import COLUMNS, Commit
from tadpipe.store.durable import writing
from tadpipe.store.folding import fold
from tadpipe.store.metadata import FeatureSpec, VideoRow
from tadpipe.store.opened import OpenStore
from tadpipe.store.spool import Spool
from tadpipe.store.writer import PART_ROWS, checksum, part_facts
from tadpipe.store.writer_names import unique_writer_id

SMALL = 0.5  # parts below this share of a full one are written together
USED = 0.75  # parts of which less is used are written without the rest
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CompactReport:
    """What `compact` rewrote, or would rewrite."""

    parts_before: int  # of those rewritten
    parts_after: int
    rows: int  # written again
    rows_dropped: int  # used by no video any more
    commits_folded: int  # that only named or deleted, now part of others
    damaged: list[str]  # videos whose parts were left as they are
    dry_run: bool


class LoadedVideo(NamedTuple):
    """A stored video in memory, on its way into another part."""

    line: Mapping[str, Any]
    stored: Array  # [n, C]
    stamps: Array  # [n] float64, seconds

    @property
    def dtype(self) -> str:
        return self.stored.dtype.str

    @property
    def channels(self) -> int:
        return int(self.stored.shape[1])

    @property
    def rows(self) -> int:
        return len(self.stored)

    def features(self) -> Array:
        return self.stored

    def times(self) -> Array:
        return self.stamps


def load_video(backend: Backend, fid: str, row: VideoRow) -> LoadedVideo:
    """Read a video's rows.

    Raises:
        StoreError: they are not those that were written.
    """
    part = backend.open_part(fid, row.part)
    stop = row.first_row + row.rows
    rows, times = part.read(row.first_row, stop, 1), part.times(row.first_row, stop)
    if checksum(rows) != row.checksum or checksum(times) != row.times_checksum:
        raise StoreError(
            f"The stored rows of {row.name!r} are damaged.",
            f"{backend.path}: part {row.part}",
            "Run tadpipe store verify --deep --drop-damaged, then extract again.",
        )
    line = {key: getattr(row, key) for key in COLUMNS if key != "first_row"}
    for key in ("dt", "fps"):
        line[key] = None if line[key] is None else str(line[key])
    return LoadedVideo(line, rows, times)


class _Group(NamedTuple):
    """Commits that one new commit replaces."""

    folded: list[str]
    videos: list[VideoRow]


def compact(store: OpenStore, dry_run: bool, part_rows: int = PART_ROWS) -> CompactReport:
    """See the head of this file."""
    store.refresh()
    before = after = rows = dropped = folded = 0
    damaged: list[str] = []
    for fid in sorted(store.specs()):
        videos = store.videos(fid)
        parts = {commit.id: commit for commit in videos.effective if commit.rows}
        for group in _groups(videos, part_rows):
            bad = [] if dry_run else _rewrite(store, fid, group)
            damaged += bad
            if bad:
                continue
            old = [parts[commit_id] for commit_id in group.folded if commit_id in parts]
            used = sum(row.rows for row in group.videos)
            before, after = before + len(old), after + bool(group.videos)
            rows, dropped = rows + used, dropped + sum(c.rows for c in old) - used
            folded += len(group.folded) - len(old)
        if not dry_run:
            store.backend.remember_catalogue(fid, store.videos(fid).commits)
    return CompactReport(before, after, rows, dropped, folded, damaged, dry_run)


def _groups(videos: Catalogue, part_rows: int) -> list[_Group]:
    """What is worth being rewritten, in groups of about a full part."""
    used: dict[str, list[VideoRow]] = {}
    for row in videos.used_rows():
        used.setdefault(row.part, []).append(row)
    parts = [commit for commit in videos.effective if commit.rows]
    wasteful = [c for c in parts if _used_rows(used, c) < USED * c.rows]
    small = [c for c in parts if c.rows < SMALL * part_rows and c not in wasteful]
    chosen = sorted([*wasteful, *small], key=lambda commit: commit.order)
    groups: list[_Group] = []
    space = 0
    for commit in chosen:
        size = _used_rows(used, commit)
        if not groups or size > space:
            groups.append(_Group([], []))
            space = part_rows
        space -= size
        groups[-1].folded.append(commit.id)
        groups[-1].videos.extend(used.get(commit.id, []))
    gone = {commit_id for group in groups for commit_id in group.folded}
    alone = [c.id for c in videos.effective if not c.rows and c.id not in gone]
    if len(alone) > 1 or (alone and groups):
        if not groups:
            groups.append(_Group([], []))
        groups[0].folded.extend(alone)
    return [group for group in groups if not _is_full_already(group, parts)]


def _used_rows(used: Mapping[str, Sequence[VideoRow]], commit: Commit) -> int:
    return sum(row.rows for row in used.get(commit.id, ()))


def _is_full_already(group: _Group, parts: Sequence[Commit]) -> bool:
    """One part of which all is used: nothing would be better afterwards."""
    old = [commit for commit in parts if commit.id in group.folded]
    used = sum(row.rows for row in group.videos)
    return len(group.folded) == len(old) == 1 and used == old[0].rows


def _rewrite(store: OpenStore, fid: str, group: _Group) -> list[str]:
    """Publish the commit that replaces a group; names of damaged videos, of which nothing is."""
    spec, backend = store.spec(fid), store.backend
    loaded, damaged = [], []
    for row in sorted(group.videos, key=lambda row: (row.part, row.first_row)):
        try:
            loaded.append(load_video(backend, fid, row))
        except NoAnswerError:
            raise
        except StoreError:
            damaged.append(row.name)
    if damaged:
        return damaged
    with writing(store.path), backend.exclusive(), own_folder(backend, spec) as folder:
        part = part_facts(loaded) if loaded else None
        commit = fold(store.videos(fid), group.folded, writer_id=folder.name, part=part)
        backend.publish(spec, commit, loaded, folder)
    store.note_committed(fid)
    return []


@contextmanager
def own_folder(backend: Backend, spec: FeatureSpec) -> Iterator[Path]:
    """A writer's folder, held while parts are made in it; its name is the writer's."""
    note = {"spec": spec.to_mapping(), "host": socket.gethostname(), "pid": os.getpid()}
    spool = Spool(backend.spool_root(spec.fid), unique_writer_id(), note)
    try:
        yield spool.folder
    finally:
        spool.close()
