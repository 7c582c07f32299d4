"""Taking things out of a store: names, damaged rows, and what nothing refers to any more.

Nothing is ever changed in place. A tombstone commit hides; `gc` removes parts of which no video is
used, parts that others replaced, parts without a commit and the spools of dead writers, after
packing what these had finished. A reader may still be at what was replaced: it stays for a while,
measured by the clock of where the store is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tadpipe.errors import StoreError
from tadpipe.registry import nearest
from tadpipe.store.catalogue import Catalogue
from tadpipe.store.commits import Commit
from tadpipe.store.durable import writing
from tadpipe.store.folding import fold
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.opened import OpenStore
from tadpipe.store.spool import LEASE, dead_folders, is_alive, read_spool
from tadpipe.store.verify import Finding
from tadpipe.store.writer import StoreWriter
from tadpipe.store.writer_names import commit_id, later_than, unique_writer_id, writer_of

GRACE_SEC = 3600.0  # how long what nothing refers to is left for those who still read it


@dataclass(frozen=True)
class GcReport:
    """What `gc` removed, or would remove."""

    parts: list[str]  # no video of theirs is used, or compact wrote them into others
    half_parts: list[str]  # of killed writers, never committed
    waiting: list[str]  # parts of both kinds that are too young to be removed
    packed_videos: int  # finished by killed writers, now (or with the next writer) in a part
    bytes_freed: int
    dry_run: bool


def forget_names(store: OpenStore, fid: str, names: Sequence[str]) -> None:
    """Write the tombstones of names, and of the rows that no other name means."""
    store.note_committed(fid)
    videos = store.videos(fid)
    for name in names:
        if name not in videos:
            near = ", ".join(map(repr, nearest(name, videos)))
            raise StoreError(
                f"No video {name!r} to delete.",
                str(store.path),
                f"Nearest names: {near}." if near else "See tadpipe store ls.",
            )
    gone = set(names)
    contents = {videos.content_of(name) for name in names}
    unnamed = sorted(c for c in contents if gone.issuperset(videos.names_of[c]))
    dropped = [copy for content in unnamed for copy in videos.copies(content)]
    _commit(store, fid, deleted=list(dict.fromkeys(names)), dropped=dropped)


def drop_rows(store: OpenStore, findings: Sequence[Finding]) -> list[str]:
    """Tombstone the damaged rows, remove damaged commits; returns the names lost by it."""
    lost: list[str] = []
    store.refresh()
    for fid in sorted({finding.fid for finding in findings}):
        before = list(store.videos(fid))
        damaged = [f for f in findings if f.damaged and f.fid == fid]
        commits = sorted({f.part for f in damaged if f.kind == "commit"})
        rows = sorted({(f.part, f.content_sha256) for f in damaged if f.kind != "commit"})
        with writing(store.path), store.backend.exclusive():
            if commits:
                store.backend.remove(fid, [], commits)
            if rows:
                _commit(store, fid, deleted=[], dropped=rows)
        store.note_committed(fid)
        lost += [name for name in before if name not in store.videos(fid)]
    return lost


def gc(store: OpenStore, dry_run: bool, grace_sec: float = GRACE_SEC) -> GcReport:
    """See the head of this file.

    Args:
        grace_sec: what has been unused for less stays; 0 for a store that nobody reads or writes.
    """
    store.refresh()
    total = GcReport([], [], [], 0, 0, dry_run)
    for fid in sorted({*store.specs(), *store.backend.spooled_fids()}):
        packed = _pack_left_over(store, fid, dry_run)
        if not dry_run:
            _replace_unused(store, fid)
        found = _sweep(store, fid, dry_run, grace_sec)
        total = GcReport(
            total.parts + found.parts,
            total.half_parts + found.half_parts,
            total.waiting + found.waiting,
            total.packed_videos + packed,
            total.bytes_freed + found.bytes_freed,
            dry_run,
        )
    return total


def _unused(videos: Catalogue) -> list[str]:
    """Commits whose part no name leads to."""
    live = videos.live_parts()
    return [commit.id for commit in videos.effective if commit.rows and commit.id not in live]


def _replace_unused(store: OpenStore, fid: str) -> None:
    """Let what unused parts' commits said of names stand without them; the grace begins now."""
    unused = _unused(store.videos(fid))
    if unused:
        with writing(store.path), store.backend.exclusive():
            commit = fold(store.videos(fid), unused)
            store.backend.publish(store.spec(fid), commit, [], store.backend.work)
        store.note_committed(fid)


def _sweep(store: OpenStore, fid: str, dry_run: bool, grace_sec: float) -> GcReport:
    """Remove what has been replaced, or was never committed, for long enough."""
    backend, videos = store.backend, store.videos(fid)
    there = {commit.id: commit for commit in videos.commits}
    replacing = [commit for commit in videos.commits if there.keys() & set(commit.replaces)]
    root = backend.spool_root(fid)
    orphans = [p for p in backend.unreferenced_parts(fid) if not is_alive(root, writer_of(p))]
    ages = {}
    if grace_sec > 0 and (replacing or orphans):
        ages = backend.ages_sec(fid, [commit.id for commit in replacing], orphans)
    is_due = {name: grace_sec <= 0 or ages.get(name, 0.0) >= grace_sec for name in orphans}
    gone: list[str] = []
    waiting = [part for part in orphans if not is_due[part]]
    for commit in replacing:
        due = grace_sec <= 0 or ages.get(commit.id, 0.0) >= grace_sec
        (gone if due else waiting).extend(name for name in commit.replaces if name in there)
    if dry_run and grace_sec <= 0:
        gone += _unused(videos)
    elif dry_run:
        waiting += _unused(videos)
    parts = sorted({name for name in gone if there[name].rows})
    half_parts = [part for part in orphans if is_due[part]]
    freed = 0
    if not dry_run:
        with writing(store.path), backend.exclusive():
            freed = backend.remove(fid, [*parts, *half_parts], sorted(set(gone)))
            store.note_committed(fid)
            backend.remember_catalogue(fid, store.videos(fid).commits, removed=bool(gone))
    left = sorted({name for name in waiting if name not in there or there[name].rows} - set(gone))
    return GcReport(parts, half_parts, left, 0, freed, dry_run)


def _pack_left_over(store: OpenStore, fid: str, dry_run: bool) -> int:
    """Commit what dead writers had finished; returns the number of videos."""
    waiting, note = 0, Path()
    for folder in dead_folders(store.backend.spool_root(fid)):
        videos = read_spool(folder)
        if videos:
            waiting, note = waiting + len(videos), folder / LEASE
    if waiting and not dry_run:
        spec = FeatureSpec.from_mapping(json.loads(note.read_bytes())["spec"], str(note))
        with StoreWriter(store, spec):
            pass  # opening adopts, closing packs
    return waiting


def _commit(
    store: OpenStore,
    fid: str,
    *,
    deleted: Sequence[str],
    dropped: Sequence[Sequence[str]],
) -> None:
    """Publish a commit without a part."""
    with writing(store.path), store.backend.exclusive():
        commit = Commit(
            id=commit_id(unique_writer_id()),
            created_ns=later_than(store.videos(fid)),
            deleted=deleted,
            dropped=dropped,
        )
        store.backend.publish(store.spec(fid), commit, [], store.backend.work)
    store.note_committed(fid)
