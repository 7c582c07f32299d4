"""What a store holds and how far its extraction is, for people and for JSON."""

from __future__ import annotations

from dataclasses import dataclass

from tadpipe.store.ledger import LedgerRow, Line, rows_of
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
    lines = store.backend.ledger_lines()
    newest: dict[tuple[str, str], Line] = {}
    for line in lines:
        key = (line["fid"], line["name"])
        if line["status"] == "reused" and key in newest and newest[key]["status"] == "done":
            continue  # a run that found its work done changes nothing
        newest[key] = line
    last = list(newest.values())
    failed = [row for _, row in rows_of(line for line in last if line["status"] == "failed")]
    reasons: dict[str, int] = {}
    for row in failed:
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
    waiting = 0
    for fid in store.backend.spooled_fids():
        root = store.backend.spool_root(fid)
        folders = root.iterdir() if root.is_dir() else []
        waiting += sum(len(read_spool(folder)) for folder in folders)
    return StoreStatus(
        done=sum(line["status"] == "done" for line in last),
        reused=sum(line["status"] == "reused" for line in last),
        failed=failed,
        reasons=reasons,
        seconds=sum(line["seconds"] for line in lines),
        frames_decoded=sum(line["frames_decoded"] for line in lines),
        bytes=sum(line["bytes"] for line in lines),
        waiting_in_spool=waiting,
    )
