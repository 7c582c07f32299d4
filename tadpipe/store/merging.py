"""Merging: what other stores hold, in this one too, without writing rows again where that can be.

A part of which this store lacks something comes as it is, its files by hard links where both are on
one file system; else the missing rows are packed into new parts. Content that is here already is
not taken again. Every name keeps the time at which it was given, so that the newest meaning of a
name counts, whatever is merged first and however often; deletions stay with the store they are of.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tadpipe.store.backend import Backend
from tadpipe.store.catalogue import Catalogue
from tadpipe.store.commits import Commit
from tadpipe.store.compaction import load_video, own_folder
from tadpipe.store.durable import writing
from tadpipe.store.folding import Word, history_of, last_words
from tadpipe.store.metadata import FeatureSpec, VideoRow
from tadpipe.store.opened import OpenStore
from tadpipe.store.writer import PART_ROWS, part_facts
from tadpipe.store.writer_names import commit_id, later_than, unique_writer_id

WORTH_WHOLE = 0.5  # a part is taken whole if it lacks no more than this share of missing rows


class NameConflict(NamedTuple):
    """One name, two contents: the newer meaning counts."""

    fid: str
    name: str
    kept: str  # content hash
    other: str


@dataclass(frozen=True)
class MergeReport:
    """What `merge` took from one store, or would take."""

    source: str
    videos: int  # names that are new, or mean something else now
    contents: int  # that were not here
    parts_linked: int  # taken whole
    rows_packed: int  # written again
    already: int  # names that meant the same here
    conflicts: list[NameConflict]
    deleted: list[str]  # names that were deleted here after they had been given there: they stay so
    dry_run: bool


def merge(store: OpenStore, source: OpenStore, dry_run: bool) -> MergeReport:
    """Take over the videos of another store; see the head of this file.

    Raises:
        StoreError: rows of the source that have to be packed again are damaged.
    """
    total = MergeReport(str(source.path), 0, 0, 0, 0, 0, [], [], dry_run)
    for fid, spec in source.specs().items():
        store.note_committed(fid)
        found = _merge_spec(store, source.backend, spec, fid, source.videos(fid), dry_run)
        total = replace(
            total,
            videos=total.videos + found.videos,
            contents=total.contents + found.contents,
            parts_linked=total.parts_linked + found.parts_linked,
            rows_packed=total.rows_packed + found.rows_packed,
            already=total.already + found.already,
            conflicts=total.conflicts + found.conflicts,
            deleted=total.deleted + found.deleted,
        )
    return total


class _Plan(NamedTuple):
    """What of a source is to be taken, and how."""

    words: dict[str, Word]  # names to be given
    whole: list[Commit]  # parts to be taken as they are
    packed: list[VideoRow]  # rows to be written again
    report: MergeReport


def _merge_spec(
    store: OpenStore,
    source: Backend,
    spec: FeatureSpec,
    fid: str,
    theirs: Catalogue,
    dry_run: bool,
) -> MergeReport:
    plan = _plan(store, source, fid, theirs, dry_run)
    if dry_run or not (plan.words or plan.whole or plan.packed):
        return plan.report
    backend = store.backend
    with writing(store.path), backend.exclusive(), own_folder(backend, spec) as folder:
        for commit in plan.whole:
            building = folder / "building"
            if building.exists():
                shutil.rmtree(building)
            source.fetch_part(fid, commit.id, building)
            words = _words_for(plan.words, commit.contents)
            here = replace(commit, aliases=(), deleted=(), replaces=(), history=history_of(words))
            backend.publish_files(spec, here, building)
        writer_id = folder.name
        for rows in _full_parts(plan.packed, backend, fid):
            loaded = [load_video(source, fid, row) for row in rows]
            words = _words_for(plan.words, [row.content_sha256 for row in rows])
            made = Commit(
                id=commit_id(writer_id),
                created_ns=later_than(store.videos(fid)),
                history=history_of(words),
                **part_facts(loaded),
            )
            backend.publish(spec, made, loaded, folder)
        if plan.words:
            _name(store, spec, plan.words)
    store.note_committed(fid)
    backend.remember_catalogue(fid, store.videos(fid).commits)
    return plan.report


def _plan(store: OpenStore, source: Backend, fid: str, theirs: Catalogue, dry_run: bool) -> _Plan:
    ours = store.videos(fid)
    words, conflicts, deleted, already = _new_words(fid, ours, theirs)
    wanted = {word.content for word in words.values()}
    missing = [
        row
        for row in theirs.used_rows()
        if row.content_sha256 in wanted and not ours.has_content(row.content_sha256)
    ]
    by_part: dict[str, list[VideoRow]] = {}
    for row in missing:
        by_part.setdefault(row.part, []).append(row)
    known = {commit.id for commit in ours.commits}
    links = store.backend.parts_are_files and source.parts_are_files
    whole, packed = [], []
    for commit in theirs.effective:
        rows = by_part.get(commit.id, [])
        lacking = sum(row.rows for row in rows)
        if links and commit.id not in known and rows and lacking >= WORTH_WHOLE * commit.rows:
            dropped = [p for c in theirs.effective for p in c.dropped if p[0] == commit.id]
            whole.append(replace(commit, dropped=dropped))
        else:
            packed += rows
    report = MergeReport(
        "",
        len(words),
        len(missing),
        len(whole),
        sum(row.rows for row in packed),
        already,
        conflicts,
        deleted,
        dry_run,
    )
    return _Plan(words, whole, packed, report)


def _new_words(
    fid: str, ours: Catalogue, theirs: Catalogue
) -> tuple[dict[str, Word], list[NameConflict], list[str], int]:
    """(names to be given, conflicts, names that stay deleted, names that mean the same)."""
    here, there = last_words(ours.effective), last_words(theirs.effective)
    words: dict[str, Word] = {}
    conflicts, deleted, already = [], [], 0
    for name in theirs:
        content, word = theirs.content_of(name), there[name]
        own = here.get(name)
        if own is not None and own.content == content and name in ours:
            already += 1
            continue
        is_newer = own is None or (word.created_ns, word.commit) > (own.created_ns, own.commit)
        if own is not None and own.content not in (None, content):
            mine = str(own.content)
            kept, other = (content, mine) if is_newer else (mine, content)
            conflicts.append(NameConflict(fid, name, kept, other))
        elif own is not None and own.content is None and not is_newer:
            deleted.append(name)
        if is_newer or (own is not None and own.content == content):
            words[name] = word
    return words, conflicts, deleted, already


def _words_for(words: Mapping[str, Word], contents: Sequence[str]) -> dict[str, Word]:
    """The words that give a name to one of these contents."""
    wanted = set(contents)
    return {name: word for name, word in words.items() if word.content in wanted}


def _full_parts(rows: Sequence[VideoRow], backend: Backend, fid: str) -> list[list[VideoRow]]:
    """Rows in groups of about a full part; all in one where each part costs a copy of the store."""
    limit = backend.rows_worth_packing(fid, PART_ROWS) if backend.parts_are_files else float("inf")
    groups: list[list[VideoRow]] = []
    space = 0.0
    for row in rows:
        if not groups or row.rows > space:
            groups.append([])
            space = limit
        space -= row.rows
        groups[-1].append(row)
    return groups


def _name(store: OpenStore, spec: FeatureSpec, words: Mapping[str, Word]) -> None:
    """Give the names that the parts taken over did not bring: of content that was here."""
    fid = spec.fid
    store.note_committed(fid)
    now = store.videos(fid)
    left = {
        name: word
        for name, word in words.items()
        if not (name in now and now.content_of(name) == word.content)
    }
    if left:
        commit = Commit(
            id=commit_id(unique_writer_id()),
            created_ns=later_than(now),
            history=history_of(left),
        )
        store.backend.publish(spec, commit, [], store.backend.work)
