"""Features of a store as files that other trainers read: npy, npz (key `feats`) or one h5.

Arrays are float32 [T, C]. `features.json` beside them says what they are: the feature spec and
each video's frame rate, offset and duration. A video's name becomes a file name only if it is one.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tadpipe.config import write_atomically
from tadpipe.errors import ConfigError
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.video_files import printable
from tadpipe.pipeline.video_outcomes import Outcomes, VideoOutcome
from tadpipe.store.feature_files import (
    FeatureFileReason,
    npy_bytes,
    npz_bytes,
    write_hdf5,
)
from tadpipe.store.feature_store import FeatureStore, StoredFeatures
from tadpipe.store.feature_view import FeatureView
from tadpipe.store.store_names import HDF5_SUFFIXES

LONGEST_NAME = 200  # bytes; file systems allow 255 with the suffix
SIDE_FILE = "features.json"
Layout = Literal["npy", "npz", "h5"]


@dataclass
class ExportReport(Outcomes):
    """What became of each video of an export."""

    out: Path
    fid: str
    dry_run: bool = False
    videos: list[VideoOutcome] = field(default_factory=list)

    def text(self) -> str:
        lines = [*self.failed_lines(), f"{self.counts_text('there already')} -> {self.out}"]
        return "\n".join(lines)

    def to_mapping(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "fid": self.fid,
            **self.counts(),
            "videos": [{**video._asdict(), "name": printable(video.name)} for video in self.videos],
        }


def export_features(
    store: Path | str,
    *,
    out: Path | str,
    layout: Layout = "npy",
    backbone: str | None = None,
    stride: int | None = None,
    prefix: str = "",
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write the features of a store as files; a file that is there with the same bytes stays.

    Args:
        out: a folder, or with layout "h5" a file that is not there yet.
        backbone, stride: which features, where the store holds several kinds.
        prefix: put before every name, as `v_` of ActivityNet.
    Returns:
        What became of each video; `exit_code` is 3 when some failed.
    Raises:
        ConfigError: several kinds of features, or `out` does not suit the layout.
        StoreError: the store cannot be read.
    """
    path = Path(out)
    features = FeatureStore.open(store).table(backbone=backbone, stride=stride)
    report = ExportReport(path, features.fid, dry_run)
    if layout == "h5":
        _check_hdf5(path)
    elif path.exists() and not path.is_dir():
        raise ConfigError("Files are written into a folder.", f"--out {path} is not one")
    progress.begin("export", len(features.names()), "video")
    try:
        if layout == "h5":
            _export_hdf5(features, path, prefix, report, progress)
        else:
            for name in features.names():
                report.videos.append(_export_one(features, path, layout, prefix, name, dry_run))
                progress.advance()
        if not dry_run:
            side = path.with_name(f"{path.name}.json") if layout == "h5" else path / SIDE_FILE
            write_atomically(side, json.dumps(_description(features, prefix, report), indent=1))
    finally:
        progress.end()
    return report


def _check_hdf5(path: Path) -> None:
    if path.suffix.lower() not in HDF5_SUFFIXES:
        raise ConfigError("An h5 export is a file ending in .h5.", f"--out {path}")
    if path.exists():
        raise ConfigError("There is something at this path already.", f"--out {path}")


def _export_one(
    features: StoredFeatures, folder: Path, layout: Layout, prefix: str, name: str, dry_run: bool
) -> VideoOutcome:
    stem = prefix + name
    if not _is_file_name(stem):
        return _refused(name)
    array = _float32(features.open(name))
    raw = npy_bytes(array) if layout == "npy" else npz_bytes(array)
    path = folder / f"{stem}.{layout}"
    if path.exists():
        if path.read_bytes() == raw:
            return VideoOutcome(name, "reused", rows=len(array))
        return VideoOutcome(
            name, "failed", FeatureFileReason.NAME_TAKEN.value, "another file is there"
        )
    if not dry_run:
        write_atomically(path, raw)
    return VideoOutcome(name, "done", rows=len(array), bytes=len(raw))


def _export_hdf5(
    features: StoredFeatures, path: Path, prefix: str, report: ExportReport, progress: Progress
) -> None:
    """All of the file or nothing: it is written beside its place and renamed."""

    def arrays() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        for name in features.names():
            progress.advance()
            if not _is_file_name(prefix + name):
                report.videos.append(_refused(name))
                continue
            array = _float32(features.open(name))
            yield prefix + name, array
            report.videos.append(VideoOutcome(name, "done", rows=len(array), bytes=array.nbytes))

    if report.dry_run:
        for _ in arrays():
            pass
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        write_hdf5(temporary, arrays())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _description(features: StoredFeatures, prefix: str, report: ExportReport) -> dict[str, Any]:
    """What the files are: enough to state their provenance when they are imported again."""
    rows = features.store.videos(features.fid)
    thinning = features.stride // features.spec.stride
    written = [video.name for video in report.videos if video.status != "failed"]
    return {
        "spec": features.spec.to_mapping(),
        "stride": features.stride,
        "prefix": prefix,
        "videos": {
            name: {
                "fps": None if (row := rows[name]).fps is None else float(row.fps or 0),
                "offset_frames": row.offset_frames,
                "duration_sec": row.duration_sec,
                "rows": -(-row.rows // thinning),
                "times_sec": features.open(name).times.tolist() if row.dt is None else None,
            }
            for name in written
        },
    }


def _float32(view: FeatureView) -> np.ndarray[Any, Any]:
    return np.asarray(view).astype(np.float32)


def _is_file_name(stem: str) -> bool:
    """Whether a name can be a file's: one part, not hidden, not too long, printable Unicode."""
    try:
        raw = stem.encode("utf-8")
    except UnicodeEncodeError:
        return False
    separators = any(c in stem for c in '/\\:*?"<>|')
    return (
        stem.isprintable()
        and not separators
        and not stem.startswith(".")
        and (0 < len(raw) <= LONGEST_NAME)
    )


def _refused(name: str) -> VideoOutcome:
    return VideoOutcome(name, "failed", "not-a-file-name", "the name cannot be a file's name")
