"""What `tadpipe store` shows: each report as a JSON-ready mapping and as text."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tadpipe.errors import StoreError
from tadpipe.location import location
from tadpipe.pipeline.extract_recipes import recipes_of
from tadpipe.pipeline.video_files import printable
from tadpipe.registry import nearest
from tadpipe.store import verify as store_verify
from tadpipe.store.cleanup import GRACE_SEC
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.run_progress import RunProgress, clock_text

Report = dict[str, Any]
SILENT_SEC = 30.0  # after which a writer that did not say goodbye counts as gone


def info(path: Path) -> Report:
    """The kinds of features of a store, and how much of each."""
    store = FeatureStore.open(path)
    found, specs = store.info(), store.specs()
    kinds = [
        {
            "fid": kind.fid,
            "settings": kind.settings,
            "recipes": recipes_of(specs[kind.fid]),
            "videos": kind.videos,
            "contents": kind.contents,
            "parts": kind.parts,
            "rows": kind.rows,
            "duration_sec": kind.duration_sec,
        }
        for kind in found.specs
    ]
    return {
        "path": found.path,
        "bytes_on_disk": found.bytes_on_disk,
        "annotations_sha256": found.annotations_sha256,
        "features": kinds,
    }


def info_text(report: Report) -> str:
    lines = [f"{report['path']}: {report['bytes_on_disk'] / 1e6:.1f} MB"]
    for kind in report["features"]:
        hours = kind["duration_sec"] / 3600
        lines.append(
            f"  {kind['fid']}: {kind['videos']} videos, {hours:.2f} h, {kind['rows']} rows"
        )
        lines += [f"    {key}: {value}" for key, value in kind["settings"].items()]
        if kind["recipes"]:
            lines.append(f"    made as by recipe: {', '.join(kind['recipes'])}")
    kept = report["annotations_sha256"]
    lines.append(f"  annotations: {'none' if kept is None else 'sha256 ' + kept[:12]}")
    return "\n".join(lines)


def ls(path: Path, *, backbone: str | None, stride: int | None) -> list[Report]:
    """One mapping per video of every kind of features that fits."""
    store = FeatureStore.open(path)
    rows = []
    for fid, spec in store.specs().items():
        if backbone not in (None, spec.backbone) or stride not in (None, spec.stride):
            continue
        for name, row in store.videos(fid).items():
            rows.append(
                {
                    "name": name,
                    "fid": fid,
                    "backbone": spec.backbone,
                    "stride": spec.stride,
                    "rows": row.rows,
                    "duration_sec": row.duration_sec,
                    "fps": None if row.fps is None else float(row.fps),
                    "content_sha256": row.content_sha256,
                    "truncated": row.truncated,
                }
            )
    return rows


def ls_text(rows: list[Report]) -> str:
    width = max((len(printable(row["name"])) for row in rows), default=0)
    lines = []
    for row in rows:
        rate = "variable rate" if row["fps"] is None else f"{row['fps']:.3f} fps"
        lines.append(
            f"{printable(row['name']):<{width}}  {row['rows']:>7} rows  "
            f"{row['duration_sec']:>9.2f} s  {rate}  {row['backbone']} stride {row['stride']}  "
            f"{row['content_sha256'][:12]}" + ("  truncated" if row["truncated"] else "")
        )
    return "\n".join([*lines, f"{len(rows)} videos"])


def verify(path: Path, *, deep: bool, drop_damaged: bool) -> Report:
    """What is wrong with a store; with `drop_damaged` the damaged videos are forgotten."""
    store = FeatureStore.open(path, "a" if drop_damaged else "r")
    findings = store_verify.verify(store, deep)
    dropped = store.drop_damaged(findings) if drop_damaged else []
    return {
        "path": str(location(path)),
        "deep": deep,
        "damaged": sum(finding.damaged for finding in findings),
        "dropped": dropped,
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "lines": [str(finding) for finding in findings],
    }


def verify_text(report: Report) -> str:
    notes = len(report["findings"]) - report["damaged"]
    how = "deep" if report["deep"] else "fast"
    lines = [printable(line) for line in report["lines"]]
    lines.append(f"{report['path']}: {how} check: {report['damaged']} damaged, {notes} notes")
    if report["dropped"]:
        lines.append(f"{len(report['dropped'])} videos forgotten; run the extraction again.")
    elif report["damaged"]:
        lines.append("Run again with --drop-damaged, then extract: it makes exactly these again.")
    return "\n".join(lines)


def status(path: Path) -> Report:
    """How far extraction into a store is: all that was ever done, and what each writer does now."""
    store = FeatureStore.open(path)
    writers = store.backend.told()
    now_unix_sec = time.time()
    return {
        "path": str(location(path)),
        **dataclasses.asdict(store.status()),
        "writers": [_writer(progress, now_unix_sec) for progress in writers],
        "running": _together([p for p in writers if _runs(p, now_unix_sec)]),
    }


def _runs(progress: RunProgress, now_unix_sec: float) -> bool:
    return not progress.ended and now_unix_sec - progress.updated_unix_sec < SILENT_SEC


def _writer(progress: RunProgress, now_unix_sec: float) -> Report:
    silent_sec = max(now_unix_sec - progress.updated_unix_sec, 0.0)
    state = "ended" if progress.ended else "runs" if silent_sec < SILENT_SEC else "silent"
    return {
        **dataclasses.asdict(progress),
        **progress.rates(),
        "state": state,
        "silent_sec": silent_sec,
    }


def _together(running: list[RunProgress]) -> Report:
    """The sums of the writers at work; the last of them to end says when all is done."""
    left = [progress.left_sec for progress in running]
    return {
        "writers": len(running),
        "videos_per_hour": sum(progress.videos_per_hour for progress in running),
        "frames_per_sec": sum(progress.frames_per_sec for progress in running),
        "clips_per_sec": sum(progress.clips_per_sec for progress in running),
        "device_waited": sum(p.device_waited for p in running) / max(len(running), 1),
        "left_sec": max((sec for sec in left if sec is not None), default=None),
    }


def status_text(report: Report) -> str:
    lines = [
        f"failed  {printable(row['name'])}: {row['reason']}: {printable(row['message'])}"
        for row in report["failed"]
    ]
    for writer in report["writers"]:
        if writer["state"] == "silent":
            lines.append(
                f"silent  {printable(writer['writer'])}: nothing heard of process {writer['pid']} "
                f"on {printable(writer['host'])} for {clock_text(writer['silent_sec'])}"
            )
    rate = report["frames_decoded"] / report["seconds"] if report["seconds"] else 0.0
    lines.append(
        f"{report['path']}: {report['done']} done, {report['reused']} reused, "
        f"{len(report['failed'])} failed; {report['frames_decoded']} frames in "
        f"{report['seconds']:.1f} s ({rate:.0f} frames/s), {report['bytes'] / 1e6:.1f} MB, "
        f"{report['waiting_in_spool']} finished videos not packed yet"
    )
    now = report["running"]
    if now["writers"]:
        left = "" if now["left_sec"] is None else f", {clock_text(now['left_sec'])} left"
        lines.append(
            f"{now['writers']} at work: {now['videos_per_hour']:.1f} videos/h, "
            f"{now['frames_per_sec']:.0f} frames/s, {now['clips_per_sec']:.1f} clips/s, "
            f"backbone waits {now['device_waited']:.0%}{left}"
        )
    return "\n".join(lines)


def gc(path: Path, *, dry_run: bool, grace_min: float = GRACE_SEC / 60) -> Report:
    """Remove what nothing has referred to for so many minutes."""
    store = FeatureStore.open(path, "r" if dry_run else "a")
    found = store.gc(dry_run, grace_min * 60)
    return {"path": str(store.path), "grace_min": grace_min, **dataclasses.asdict(found)}


def gc_text(report: Report) -> str:
    would = "would remove" if report["dry_run"] else "removed"
    return (
        f"{report['path']}: {would} {len(report['parts'])} unused and "
        f"{len(report['half_parts'])} unfinished parts, {report['bytes_freed'] / 1e6:.1f} MB; "
        f"{report['packed_videos']} finished videos of killed writers packed"
        + _waiting(len(report["waiting"]), report["grace_min"])
    )


def _waiting(parts: int, grace_min: float) -> str:
    if not parts:
        return ""
    return (
        f"\n{parts} parts are unused for less than {grace_min:g} minutes and stay till then; "
        "--grace 0 removes them now, if nobody reads or writes the store."
    )


def delete(
    names: Sequence[str], *, path: Path, backbone: str | None, stride: int | None, dry_run: bool
) -> Report:
    """Forget videos, in every kind of features that fits and has them.

    Raises:
        StoreError: a name that none of them has; nothing is deleted then.
    """
    store = FeatureStore.open(path, "r" if dry_run else "a")
    kinds = {
        fid: store.videos(fid)
        for fid, spec in store.specs().items()
        if backbone in (None, spec.backbone, fid) and stride in (None, spec.stride)
    }
    known = {name for videos in kinds.values() for name in videos}
    for name in names:
        if name not in known:
            near = ", ".join(map(repr, nearest(name, sorted(known))))
            raise StoreError(
                f"No video {name!r} to delete.",
                f"{store.path}: {len(known)} videos",
                f"Nearest names: {near}." if near else "See tadpipe store ls.",
            )
    deleted = []
    for fid, videos in kinds.items():
        here = [name for name in dict.fromkeys(names) if name in videos]
        deleted += [{"fid": fid, "name": name, "rows": videos[name].rows} for name in here]
        if here and not dry_run:
            store.delete(fid, *here)
    return {"path": str(store.path), "dry_run": dry_run, "deleted": deleted}


def delete_text(report: Report) -> str:
    would = "would delete" if report["dry_run"] else "deleted"
    lines = [f"{would} {printable(each['name'])} ({each['fid']})" for each in report["deleted"]]
    lines.append(f"{report['path']}: {would} {len(lines)} videos")
    if not report["dry_run"]:
        lines.append("Their space is free after tadpipe store compact and gc.")
    return "\n".join(lines)


def compact(path: Path, *, dry_run: bool) -> Report:
    """Write small and half-used parts into full ones."""
    store = FeatureStore.open(path, "r" if dry_run else "a")
    return {"path": str(store.path), **dataclasses.asdict(store.compact(dry_run))}


def compact_text(report: Report) -> str:
    would = "would become" if report["dry_run"] else "became"
    lines = [
        f"{printable(name)} is damaged; its part is left as it is. Run tadpipe store verify --deep."
        for name in report["damaged"]
    ]
    lines.append(
        f"{report['path']}: {report['parts_before']} parts {would} {report['parts_after']}, "
        f"{report['rows']} rows written again, {report['rows_dropped']} unused rows left out, "
        f"{report['commits_folded']} commits without a part folded"
    )
    if report["parts_before"] and not report["dry_run"]:
        lines.append("The old parts are there for who reads them; tadpipe store gc removes them.")
    return "\n".join(lines)


def merge(sources: Sequence[Path], *, into: Path, dry_run: bool) -> Report:
    """Unite stores; a destination that is not there is made."""
    opened = [FeatureStore.open(source) for source in sources]
    if dry_run and not FeatureStore.exists(into):
        with tempfile.TemporaryDirectory() as folder:  # plan against an empty store
            empty = FeatureStore.create(Path(folder, "empty").with_suffix(into.suffix))
            reports = [empty.merge(source, dry_run) for source in opened]
    else:
        store = FeatureStore.open(into) if dry_run else FeatureStore.create(into)
        reports = [store.merge(source, dry_run) for source in opened]
    return {
        "path": str(location(into)),
        "dry_run": dry_run,
        "sources": [
            {**dataclasses.asdict(r), "conflicts": [c._asdict() for c in r.conflicts]}
            for r in reports
        ],
    }


def merge_text(report: Report) -> str:
    would = "would take" if report["dry_run"] else "took"
    lines = []
    for each in report["sources"]:
        lines += [
            f"{printable(c['name'])}: two contents; the newer name counts: {c['kept'][:12]}, "
            f"not {c['other'][:12]}"
            for c in each["conflicts"]
        ]
        lines += [
            f"{printable(name)}: deleted in {report['path']} since; it stays so"
            for name in each["deleted"]
        ]
        lines.append(
            f"{each['source']}: {would} {each['videos']} names, {each['contents']} contents "
            f"({each['parts_linked']} parts as they are, {each['rows_packed']} rows packed again); "
            f"{each['already']} names were there"
        )
    return "\n".join([*lines, f"-> {report['path']}"])
