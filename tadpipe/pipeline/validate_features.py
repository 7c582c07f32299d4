"""Stored features, preset and class scores against the annotations and against each other.

Metadata of the store only: which videos, how many rows of how many seconds, how much NaN. With
`deep` every row is read and compared with its checksum (`tadpipe store verify --deep`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tadpipe.annotations import Annotations
from tadpipe.datasets.annotation_files import annotation_copy
from tadpipe.datasets.sources import FeatureSource, match_videos
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import ConfigError, StoreError, TadpipeError
from tadpipe.location import location
from tadpipe.pipeline.class_fusion import load_class_scores
from tadpipe.pipeline.feature_tables import StoreTable
from tadpipe.pipeline.presets import Preset
from tadpipe.pipeline.recipe import check_preset
from tadpipe.pipeline.subsets import Subsets
from tadpipe.pipeline.validate_annotations import from_defects
from tadpipe.pipeline.validate_findings import Finding, Severity, from_error
from tadpipe.pipeline.video_files import printable
from tadpipe.store import verify as store_verify
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec, VideoRow
from tadpipe.video.packets import VideoProbe

LOOKED_AT = 16  # rows per video that must differ
FEWEST_ROWS = 3  # of a video to say that nothing changes in it


def open_all(
    stores: Sequence[Path], backbone: str | None, stride: int | None
) -> tuple[list[StoreTable], list[Finding]]:
    """The features of each store; of several kinds that fit, the first."""
    tables, findings = [], []
    for path in stores:
        place = str(location(path))
        try:
            store = FeatureStore.open(path)
            try:
                features = store.table(backbone=backbone, stride=stride)
            except ConfigError as error:
                findings.append(from_error("several-kinds", place, "", error, "warning"))
                kinds = {fid: spec for fid, spec in store.specs().items() if store.videos(fid)}
                features = store.table(fid=next(iter(kinds)))
            spec = replace(features.spec, stride=features.stride)
            tables.append(StoreTable(place, spec, features))
        except StoreError as error:
            findings.append(from_error("store", place, "", error))
    return tables, findings


def check_store(table: StoreTable, *, deep: bool) -> list[Finding]:
    """What is wrong with a store whatever it is used for."""
    findings, damaged = [], set()
    for flaw in store_verify.verify(table.features.store, deep=deep):
        if flaw.kind == "nan":
            continue  # told from the metadata below, fast or deep
        damaged |= {flaw.name} if flaw.damaged else set()
        kind = "damaged-features" if flaw.damaged else "odd-features"
        place = printable(flaw.name) or f"part {flaw.part}"
        severity: Severity = "error" if flaw.damaged else "warning"
        findings.append(Finding(severity, kind, table.store, place, f"{flaw.kind}: {flaw.message}"))
    for name, row in _rows(table).items():
        if row.nan_count:
            values = row.rows * table.spec.channels
            text = f"{row.nan_count} of {values} values ({row.nan_count / values:.1%}) are NaN"
            findings.append(Finding("error", "nan-rows", table.store, printable(name), text))
        elif name not in damaged and _is_constant(table, name):
            text = f"{row.rows} rows"
            place = printable(name)
            findings.append(Finding("error", "constant-features", table.store, place, text))
    return findings


def check_kind(
    tables: Sequence[StoreTable], preset: Preset, preset_name: str, labels: int
) -> list[Finding]:
    """Features against what a preset expects, and the model they would make."""
    if not tables:
        return []
    specs, names = [table.spec for table in tables], [table.store for table in tables]
    try:
        check_preset(preset.features, preset_name, preset.detector, specs, names)
    except ConfigError as error:
        return [from_error("other-spec", names[0], "", error)]
    classes = 1 if preset.windows.class_agnostic else max(labels, 1)
    try:
        _model_config(tables, preset, preset_name, classes)
    except ConfigError as error:
        return [from_error("preset", f"preset {preset_name}", "[model]", error)]
    return []


def model_of(tables: Sequence[StoreTable], preset: Preset, preset_name: str) -> Any:
    """The detector's own config, None where it cannot be made."""
    try:
        return _model_config(tables, preset, preset_name, 1)
    except ConfigError:
        return None


def check_coverage(
    tables: Sequence[StoreTable],
    found: Annotations,
    spec: DatasetSpec | None,
    subsets: Subsets | None,
) -> list[Finding]:
    """Which videos have features, and which features have annotations."""
    source = FeatureSource(tables)
    where = ", ".join(table.store for table in tables)
    findings = [
        Finding("warning", "only-in-some-stores", where, printable(name), "")
        for name in source.only_in_some
    ]
    prefix = "" if spec is None else spec.feature_prefix
    everything = match_videos(found.videos, list(found.videos), source.names, prefix)
    for name in everything.without_annotations:
        findings.append(Finding("note", "unannotated-features", where, printable(name), ""))
    for subset in dict.fromkeys(name for name in subsets or () if name is not None):
        videos = found.subset(subset)
        there = match_videos(found.videos, list(videos), source.names, prefix)
        if not there.stored_as:
            text = (
                f"'{subset}': {_some(list(videos))} annotated; {_some(source.names)} in the store"
            )
            findings.append(Finding("error", "no-features", where, f"'{subset}'", text))
            continue
        for name in there.without_features:
            text = f"of '{subset}'"
            findings.append(Finding("warning", "missing-features", where, name, text))
    return findings


def check_rows(
    table: StoreTable,
    found: Annotations | None,
    spec: DatasetSpec | None,
    probes: Mapping[str, VideoProbe],
) -> Iterator[Finding]:
    """Lengths of stored videos against annotations and files."""
    videos = {} if found is None else found.videos
    rows = _rows(table)
    prefix = "" if spec is None else spec.feature_prefix
    for name, stored in match_videos(videos, list(videos), list(rows), prefix).stored_as.items():
        row, probe, stated_sec = rows[stored], probes.get(name), videos[name].duration_sec
        was_extracted = table.features.spec.pixels is not None
        if probe is not None and was_extracted and probe.frames != row.frames:
            text = f"features of {row.frames} frames, the file has {probe.frames}"
            yield Finding("warning", "features-of-another-file", table.store, name, text)
        reach_sec, slack_sec = _reach(row, table.features.spec)
        if stated_sec is not None and abs(reach_sec - stated_sec) > slack_sec + 0.01 * stated_sec:
            text = f"{row.rows} rows reach to {reach_sec:.2f} s, the video lasts {stated_sec:g} s"
            yield Finding("warning", "features-length", table.store, name, text)


def same_content(tables: Sequence[StoreTable], prefix: str) -> list[list[str]]:
    """Names of the same content or the same rows in a store, without the data set's prefix."""
    groups = []
    for table in tables:
        catalogue = table.features.store.videos(table.features.fid)
        groups += [list(names) for names in catalogue.names_of.values()]
        rows: dict[tuple[int, str], list[str]] = {}  # other files, such as remuxed ones
        for name, row in catalogue.items():
            rows.setdefault((row.frames, row.checksum), []).append(name)
        groups += [
            names for names in rows.values() if len(names) > 1 and not _is_constant(table, names[0])
        ]
    return [[name.removeprefix(prefix) for name in names] for names in groups if len(names) > 1]


def check_copy(table: StoreTable, path: Path, spec: DatasetSpec | None) -> list[Finding]:
    """The annotations a store keeps against the file at hand."""
    kept = table.features.store.annotations_sha256()
    if kept is None:
        return []
    try:
        given = hashlib.sha256(annotation_copy(path, spec)).hexdigest()
    except (TadpipeError, OSError):
        return []  # its defects are findings of their own
    if given == kept:
        return []
    text = f"sha256 {kept[:12]}; {path}: {given[:12]}"
    return [Finding("warning", "other-annotations", table.store, "annotations", text)]


def check_class_scores(
    path: Path | None,
    preset: Preset | None,
    found: Annotations,
    spec: DatasetSpec | None,
    subsets: Subsets | None,
) -> list[Finding]:
    """A file of class scores against preset and test videos; a preset that would need one."""
    takes = preset is None or preset.windows.class_agnostic or not preset.nms.multiclass
    if path is None:
        if preset is not None and preset.windows.class_agnostic and len(found.labels) > 1:
            text = f"{len(found.labels)} labels become one"
            return [Finding("warning", "no-class-scores", found.source, "", text)]
        return []
    findings = []
    if not takes:
        text = "the preset suppresses class by class (nms.multiclass = true)"
        todo = "Leave --class-scores out, or --set nms.multiclass=false."
        findings.append(Finding("error", "class-scores", str(path), "", text, todo))
    try:
        scores = load_class_scores(path, found, spec, skip_unscored=False)
    except TadpipeError as error:
        defects = getattr(error, "defects", ())
        if not defects:
            return [*findings, from_error("class-scores", str(path), "", error)]
        told = from_defects(defects, lenient=False)
        return findings + [
            replace(each, kind="class-scores", message=f"{error.what} {each.message}")
            for each in told
        ]
    if subsets is not None and subsets.test is not None:
        for name in scores.missing(found.subset(subsets.test)):
            text = f"of '{subsets.test}'"
            findings.append(Finding("error", "unscored-video", str(path), name, text))
    return findings


def _model_config(
    tables: Sequence[StoreTable], preset: Preset, preset_name: str, classes: int
) -> Any:
    widths = tuple(table.channels for table in tables) or (preset.features.channels or 1,)
    channels = widths if preset.features.separate else sum(widths)
    return preset.model_config(channels, classes, preset_name)


def _is_constant(table: StoreTable, name: str) -> bool:
    """Whether some rows from the whole video are all the same; a single row is not."""
    rows = table.open(name)
    count = len(rows)
    if count < FEWEST_ROWS:
        return False
    picked = (rows[i : i + 1] for i in range(0, count, math.ceil(count / LOOKED_AT)))
    first = next(picked)
    return all(np.array_equal(first, row) for row in picked)  # usually the first that is read


def _rows(table: StoreTable) -> Mapping[str, VideoRow]:
    return table.features.store.videos(table.features.fid)


def _reach(row: VideoRow, spec: FeatureSpec) -> tuple[float, float]:
    """Up to when a video's rows reach, and by how much that may differ from its length: a clip
    and a stride, which decoders and conventions drop at the end."""
    if row.dt is None or row.rows == 0:
        return row.duration_sec, spec.span_frames * row.duration_sec / max(row.frames, 1)
    dt_sec = float(row.dt)
    frame_sec = dt_sec / spec.stride_frames
    half_clip_sec = spec.span_frames * frame_sec / 2
    return row.t0 + (row.rows - 1) * dt_sec + half_clip_sec, 2 * half_clip_sec + dt_sec


def _some(names: Sequence[str], most: int = 3) -> str:
    if not names:
        return "no video"
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more
