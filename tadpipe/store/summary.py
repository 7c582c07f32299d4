"""What a store holds and how far its extraction is, for people and for JSON."""

from __future__ import annotations

from dataclasses import dataclass

from tadpipe.store.ledger import LedgerRow
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.opened import OpenStore
from tadpipe.store.spool import read_spool


@dataclass(frozen=True)
class SpecInfo:
    """The features of one spec."""

    fid: str
    spec: FeatureSpec
    settings: dict[str, str]  # the spec in words
    videos: int
    contents: int  # different videos; fewer than names where there are aliases
    parts: int
    rows: int
    duration_sec: float


@dataclass(frozen=True)
class StoreInfo:
    """A store at a glance."""

    path: str
    specs: list[SpecInfo]
    annotations_sha256: str | None
    bytes_on_disk: int


@dataclass(frozen=True)
class StoreStatus:
    """What became of every video of every spec at last, and what all attempts cost."""

    done: int
    reused: int
    failed: list[LedgerRow]
    reasons: dict[str, int]  # of the failed
    seconds: float  # over all attempts, like the next two
    frames_decoded: int
    bytes: int
    waiting_in_spool: int  # finished videos not yet in a part


def store_info(store: OpenStore) -> StoreInfo:
    specs = []
    for fid, spec in store.specs().items():
        videos = store.videos(fid)
        rows = list(videos.used_rows())
        specs.append(
            SpecInfo(
                fid,
                spec,
                spec.settings(),
                videos=len(videos),
                contents=len(rows),
                parts=len(videos.live_parts()),
                rows=sum(row.rows for row in rows),
                duration_sec=sum(row.duration_sec for row in rows),
            )
        )
    return StoreInfo(
        str(store.path), specs, store.annotations_sha256(), store.backend.bytes_on_disk()
    )


def store_status(store: OpenStore) -> StoreStatus:
    attempts = list(store.backend.attempts())
    newest: dict[tuple[str, str], LedgerRow] = {}
    for fid, row in attempts:
        before = newest.get((fid, row.name))
        if not (row.status == "reused" and before is not None and before.status == "done"):
            newest[fid, row.name] = row  # a run that found its work done changes nothing
    failed = [row for row in newest.values() if row.status == "failed"]
    reasons: dict[str, int] = {}
    for row in failed:
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
    waiting = 0
    for fid in store.backend.spooled_fids():
        root = store.backend.spool_root(fid)
        folders = root.iterdir() if root.is_dir() else []
        waiting += sum(len(read_spool(folder)) for folder in folders)
    return StoreStatus(
        done=sum(row.status == "done" for row in newest.values()),
        reused=sum(row.status == "reused" for row in newest.values()),
        failed=failed,
        reasons=reasons,
        seconds=sum(row.seconds for _, row in attempts),
        frames_decoded=sum(row.frames_decoded for _, row in attempts),
        bytes=sum(row.bytes for _, row in attempts),
        waiting_in_spool=waiting,
    )
