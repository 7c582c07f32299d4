"""What `tadpipe store` shows: each report as a JSON-ready mapping and as text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tadpipe.pipeline.extract_recipes import recipes_of
from tadpipe.pipeline.video_files import printable
from tadpipe.store import verify as store_verify
from tadpipe.store.feature_store import FeatureStore

Report = dict[str, Any]


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
        "path": str(path),
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
    """How far extraction into a store is."""
    found = FeatureStore.open(path).status()
    return {"path": str(path), **dataclasses.asdict(found)}


def status_text(report: Report) -> str:
    lines = [
        f"failed  {printable(row['name'])}: {row['reason']}: {printable(row['message'])}"
        for row in report["failed"]
    ]
    rate = report["frames_decoded"] / report["seconds"] if report["seconds"] else 0.0
    lines.append(
        f"{report['path']}: {report['done']} done, {report['reused']} reused, "
        f"{len(report['failed'])} failed; {report['frames_decoded']} frames in "
        f"{report['seconds']:.1f} s ({rate:.0f} frames/s), {report['bytes'] / 1e6:.1f} MB, "
        f"{report['waiting_in_spool']} finished videos not packed yet"
    )
    return "\n".join(lines)


def gc(path: Path, *, dry_run: bool) -> Report:
    """Remove what nothing refers to."""
    found = FeatureStore.open(path, "r" if dry_run else "a").gc(dry_run)
    return {"path": str(path), **dataclasses.asdict(found)}


def gc_text(report: Report) -> str:
    would = "would remove" if report["dry_run"] else "removed"
    return (
        f"{report['path']}: {would} {len(report['parts'])} unused and "
        f"{len(report['half_parts'])} unfinished parts, {report['bytes_freed'] / 1e6:.1f} MB; "
        f"{report['packed_videos']} finished videos of killed writers packed"
    )
