"""Taking things out of a store: names, damaged rows, and what nothing refers to any more.

Nothing is ever changed in place. A tombstone commit hides; `gc` removes parts of which no video is
used, parts without a commit and the spools of dead writers, after packing what these had finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tadpipe.errors import StoreError
from tadpipe.store.catalogue import Catalogue
from tadpipe.store.commits import Commit
from tadpipe.store.durable import writing
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.opened import OpenStore
from tadpipe.store.spool import LEASE, dead_folders, is_alive, read_spool
from tadpipe.store.verify import Finding
from tadpipe.store.writer import StoreWriter, commit_id, later_than, unique_writer_id, writer_of


@dataclass(frozen=True)
class GcReport:
    """What `gc` removed, or would remove."""

    parts: list[str]  # no video of theirs is used
    half_parts: list[str]  # of killed writers, never committed
    packed_videos: int  # finished by killed writers, now (or with the next writer) in a part
    bytes_freed: int
    dry_run: bool


def forget_name(store: OpenStore, fid: str, name: str) -> None:
    """Write the tombstone of a name, and of its rows if no other name means them."""
    store.note_committed(fid)
    videos = store.videos(fid)
    if name not in videos:
        raise StoreError(f"No video {name!r} to delete.", str(store.path), "See tadpipe store ls.")
    content = videos.content_of(name)
    is_last = videos.names_of[content] == [name]
    dropped = videos.copies(content) if is_last else []
    _commit(store, fid, deleted=[name], dropped=dropped)


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


def gc(store: OpenStore, dry_run: bool) -> GcReport:
    """See the head of this file."""
    store.refresh()
    parts: list[str] = []
    half_parts: list[str] = []
    packed = freed = 0
    for fid in sorted({*store.specs(), *store.backend.spooled_fids()}):
        packed += _pack_left_over(store, fid, dry_run)
        videos = store.videos(fid)
        live = videos.live_parts()
        unused = [commit for commit in videos.commits if commit.rows and commit.id not in live]
        root = store.backend.spool_root(fid)
        orphans = [
            part
            for part in store.backend.unreferenced_parts(fid)
            if not is_alive(root, writer_of(part))
        ]
        parts += [commit.id for commit in unused]
        half_parts += orphans
        if dry_run:
            continue
        with writing(store.path), store.backend.exclusive():
            names = _names_to_keep(videos, unused)
            if names:
                _commit(store, fid, deleted=[], dropped=[], aliases=names)
            ids = [commit.id for commit in unused]
            freed += store.backend.remove(fid, [*ids, *orphans], ids)
            store.note_committed(fid)
            store.backend.remember_catalogue(fid, store.videos(fid).commits, removed=bool(unused))
    return GcReport(parts, half_parts, packed, freed, dry_run)


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


def _names_to_keep(videos: Catalogue, unused: Sequence[Commit]) -> list[tuple[str, str]]:
    """(name, content) said only by commits that are about to go."""
    said = {pair for commit in unused for pair in zip(commit.names, commit.contents, strict=True)}
    said |= {(name, content) for commit in unused for name, content in commit.aliases}
    kept = [(name, videos.content_of(name)) for name in videos]
    return [pair for pair in kept if pair in said]


def _commit(
    store: OpenStore,
    fid: str,
    *,
    deleted: Sequence[str],
    dropped: Sequence[Sequence[str]],
    aliases: Sequence[Sequence[str]] = (),
) -> None:
    """Publish a commit without a part."""
    with writing(store.path), store.backend.exclusive():
        commit = Commit(
            id=commit_id(unique_writer_id()),
            created_ns=later_than(store.videos(fid)),
            deleted=deleted,
            dropped=dropped,
            aliases=aliases,
        )
        store.backend.publish(store.spec(fid), commit, [], store.backend.work)
    store.note_committed(fid)
