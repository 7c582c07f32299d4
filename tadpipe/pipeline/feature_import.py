"""Files of existing features into a feature store.

What the features are must be stated (`feature_provenance.py`). A file that cannot be used becomes
a typed ledger row and the rest is imported. Content is known by the SHA-256 of the feature file,
for a dataset inside an HDF5 file by that of its array: the video itself is not at hand.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tadpipe.annotations import Video
from tadpipe.datasets import DATASETS
from tadpipe.datasets.annotation_files import annotation_copy, read_annotations
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import ConfigError
from tadpipe.location import location
from tadpipe.pipeline.feature_provenance import Provenance
from tadpipe.pipeline.import_report import ImportReport
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.video_files import printable
from tadpipe.pipeline.video_outcomes import VideoOutcome
from tadpipe.registry import resolve
from tadpipe.store.feature_files import (
    PICKLE_SUFFIXES,
    FeatureFileError,
    FeatureFileReason,
    as_rows,
    damaged,
    read_array,
    read_hdf5,
)
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.ledger import LedgerRow
from tadpipe.store.metadata import VideoRow
from tadpipe.store.store_names import HDF5_SUFFIXES
from tadpipe.store.writer import StoreWriter

logger = logging.getLogger(__name__)

TENSOR_SUFFIXES = frozenset({".pt", ".pth"})
SUFFIXES = (
    frozenset({".npy", ".npz", ".csv"}) | TENSOR_SUFFIXES | PICKLE_SUFFIXES | {*HDF5_SUFFIXES}
)
Array = np.ndarray[Any, Any]


def import_features(
    files: Sequence[Path | str],
    *,
    store: Path | str,
    provenance: Provenance,
    annotations: Path | str | None = None,
    dataset: str | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ImportReport:
    """Import feature files into a store; what the store has is not written again.

    Args:
        files: feature files, and folders of them.
        store: a .zarr folder, .h5 file or s3:// address; made if missing.
        provenance: what the features are, of `state_provenance`.
        annotations: kept in the store; the source of frame rates where they are "native".
        dataset: whose annotations these are.
        dry_run: read and check everything, write nothing.
    Returns:
        What became of each video; `exit_code` is 3 when some failed.
    Raises:
        ConfigError: no feature files, or native frame rates without annotations.
        AnnotationError: defects in the annotations. StoreError: the store cannot be written.
    """
    started = time.monotonic()
    found = find_feature_files([Path(file) for file in files])
    if provenance.rate == "native" and annotations is None:
        raise ConfigError(
            "The frame rate of these features is each video's own, and nothing states it.",
            todo="Give --annotations with fps (or frame and duration) per video, or --fps.",
        )
    videos: Mapping[str, Video] = {}
    spec: DatasetSpec | None = resolve("dataset", DATASETS, dataset) if dataset else None
    if annotations is not None:
        videos = read_annotations(annotations, spec).videos
    report = ImportReport(location(store), provenance.spec.fid, dry_run)
    run = _Import(report, provenance, videos, progress)
    if dry_run:
        run.over(found, FeatureStore.open(store) if FeatureStore.exists(store) else None, None)
    else:
        opened = FeatureStore.create(store)
        if annotations is not None:
            opened.set_annotations(annotation_copy(annotations, spec))
        with opened.writer(provenance.spec) as writer:
            run.over(found, opened, writer)
    report.seconds = time.monotonic() - started
    return report


class FeatureFile(NamedTuple):
    """A file to read and the name its features go by (unless it names its videos itself)."""

    path: Path
    name: str


def find_feature_files(sources: Sequence[Path]) -> list[FeatureFile]:
    """Every file named, and every feature file below every folder named.

    Raises:
        ConfigError: a folder without any, or a file of another kind.
    """
    found: list[tuple[Path, Path]] = []  # (path, path below its folder)
    for source in sources:
        if source.is_dir():
            inside = sorted(_walk(source))
            if not inside:
                raise ConfigError(
                    "No feature files in this folder.",
                    printable(source),
                    f"Files ending in {', '.join(sorted(SUFFIXES))} are.",
                )
            found += [(path, path.relative_to(source)) for path in inside]
        elif source.suffix.lower() not in SUFFIXES:
            raise ConfigError(
                "Not a feature file by its suffix.",
                printable(source),
                f"Known: {', '.join(sorted(SUFFIXES))}.",
            )
        else:
            found.append((source, Path(source.name)))
    unique = {os.path.abspath(path): (path, below) for path, below in found}
    stems = Counter(below.stem for _, below in unique.values())
    return [
        FeatureFile(
            path, below.stem if stems[below.stem] == 1 else below.with_suffix("").as_posix()
        )
        for path, below in unique.values()
    ]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.endswith(".zarr"))
        for file in files:
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith("."):
                yield Path(parent, file)


class _Times(NamedTuple):
    """When the rows of one video are."""

    fps: Fraction
    frames: int
    duration_sec: float
    differs: bool  # from the annotated duration, by more than one clip


class _Import:
    """One pass over the files: check, write and record each video."""

    def __init__(
        self,
        report: ImportReport,
        provenance: Provenance,
        annotated: Mapping[str, Video],
        progress: Progress,
    ) -> None:
        self.report = report
        self.provenance = provenance
        self.annotated = annotated
        self.progress = progress
        self.stored: dict[str, VideoRow] = {}  # content -> row, of the store before this run
        self.names: dict[str, str] = {}  # name -> content, of this run
        self.seen: dict[str, tuple[str, _Times]] = {}  # content -> name and times, of this run

    def over(
        self, files: Sequence[FeatureFile], store: FeatureStore | None, writer: StoreWriter | None
    ) -> None:
        if store is not None and self.report.fid in store.specs():
            rows = store.videos(self.report.fid).values()
            self.stored = {row.content_sha256: row for row in rows}
        self.progress.begin("import", len(files), "file")
        try:
            for file in files:
                for name, array, content in self._arrays(file):
                    self._one(name, file.path, array, content, writer)
                self.progress.advance()
        finally:
            self.progress.end()

    def _arrays(self, file: FeatureFile) -> Iterator[tuple[str, Array | FeatureFileError, str]]:
        """(name, array or why there is none, content) of each video of a file."""
        suffix = file.path.suffix.lower()
        name = self._plain(file.name)
        try:
            if suffix in HDF5_SUFFIXES:
                for inner, value in read_hdf5(file.path):
                    is_array = isinstance(value, np.ndarray)
                    yield self._plain(inner), value, _array_sha256(value) if is_array else ""
                return
            array = _read(file.path, suffix, self.provenance.key)
            yield name, array, _file_sha256(file.path)
        except FeatureFileError as error:
            yield name, error, ""

    def _plain(self, name: str) -> str:
        """The annotated name: without the release's prefix, in the last part of a path."""
        folder, slash, last = name.rpartition("/")
        return folder + slash + last.removeprefix(self.provenance.prefix)

    def _one(
        self,
        name: str,
        path: Path,
        value: Array | FeatureFileError,
        content: str,
        writer: StoreWriter | None,
    ) -> None:
        started = time.monotonic()
        try:
            if isinstance(value, FeatureFileError):
                raise value
            rows = self._checked(value, f"{path}: {name}")
            times = self._times(name, len(rows), str(path))
            is_stored = self._is_stored(name, content, times, str(path))
            self.names[name] = content
            self.seen.setdefault(content, (name, times))
        except FeatureFileError as error:
            message = f"{error.what} {error.where}".strip()
            outcome = VideoOutcome(name, "failed", error.reason.value, message)
        else:
            if writer is not None:
                self._write(writer, name, content, rows, times)
            note = "length differs from the annotated duration" if times.differs else ""
            if times.differs:
                self.report.other_lengths.append(name)
            width = np.dtype(self.provenance.spec.stored_dtype).itemsize
            outcome = (
                VideoOutcome(name, "reused", message=note)
                if is_stored
                else VideoOutcome(
                    name, "done", message=note, rows=len(rows), bytes=rows.size * width
                )
            )
        outcome = outcome._replace(seconds=time.monotonic() - started)
        self.report.videos.append(outcome)
        if writer is not None:
            writer.record(_ledger_row(outcome, content))

    def _checked(self, array: Array, where: str) -> Array:
        """Rows [T, C] of numbers that the stored type can hold."""
        rows = as_rows(array, self.provenance.spec.channels, where)
        with np.errstate(over="ignore"):
            stored = rows.astype(self.provenance.spec.stored_dtype)
        if np.isinf(stored).sum() > np.isinf(rows).sum():
            raise FeatureFileError(
                FeatureFileReason.OUT_OF_RANGE,
                f"The features do not fit into {self.provenance.spec.stored_dtype}.",
                where,
                "Import with --feature-dtype float32.",
            )
        return stored

    def _times(self, name: str, rows: int, where: str) -> _Times:
        video, spec = self.annotated.get(name), self.provenance.spec
        fps = self.provenance.fps(None if video is None else video.fps)
        if fps is None or fps <= 0:
            raise FeatureFileError(
                FeatureFileReason.NO_RATE,
                "The annotations state no frame rate of this video.",
                f"{where}: {name!r}{'' if video else ' is not annotated'}",
            )
        # Clips anchored at the start end with the last frame; others have a row per stride.
        clip = spec.span_frames if spec.anchor == "start" else spec.stride
        implied = (rows - 1) * spec.stride + clip
        annotated = None if video is None else video.duration_sec
        duration_sec = float(implied / fps) if annotated is None else annotated
        frames = round(duration_sec * fps) if annotated is not None else implied
        differs = abs(frames - implied) > max(spec.span_frames, spec.stride)
        return _Times(fps, max(frames, 1), duration_sec, differs)

    def _is_stored(self, name: str, content: str, times: _Times, where: str) -> bool:
        """Whether the store, or this run, has the content already, with the same times."""
        if self.names.get(name, content) != content:
            raise FeatureFileError(
                FeatureFileReason.NAME_TAKEN, "Another file goes by the same name.", where
            )
        if content in self.seen:
            known, its_times = self.seen[content]
            if its_times != times:
                raise _other_provenance(where, known)
            return True
        row = self.stored.get(content)
        if row is not None and not self._agrees(row, times):
            raise _other_provenance(where, row.name)
        return row is not None

    def _agrees(self, row: VideoRow, times: _Times) -> bool:
        return row.fps == times.fps and row.offset_frames == self.provenance.offset_frames

    def _write(
        self, writer: StoreWriter, name: str, content: str, rows: Array, times: _Times
    ) -> None:
        offset, stride = self.provenance.offset_frames, self.provenance.spec.stride
        fps = times.fps
        writer.add(
            name,
            content,
            rows,
            (np.arange(len(rows)) * stride + offset) / float(fps),
            t0=offset / float(fps),
            dt=stride / fps,
            fps=fps,
            frames=times.frames,
            duration_sec=times.duration_sec,
            offset_frames=offset,
        )


def _read(path: Path, suffix: str, key: str) -> Array:
    if suffix not in TENSOR_SUFFIXES | PICKLE_SUFFIXES:
        return read_array(path, key)
    from tadpipe.pipeline.pickled_tensors import TENSOR_NAMES, read_tensor  # torch takes seconds

    return read_tensor(path) if suffix in TENSOR_SUFFIXES else read_array(path, key, TENSOR_NAMES)


def _file_sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damaged(path, error) from None


def _array_sha256(array: Array | FeatureFileError) -> str:
    assert isinstance(array, np.ndarray)
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _other_provenance(where: str, known: str) -> FeatureFileError:
    return FeatureFileError(
        FeatureFileReason.OTHER_PROVENANCE,
        "The same features are stored with another frame rate, duration or offset.",
        f"{where}: stored as {known!r}",
    )


def _ledger_row(outcome: VideoOutcome, content: str) -> LedgerRow:
    return LedgerRow(
        name=outcome.name,
        status=outcome.status,
        reason=outcome.reason,
        message=outcome.message,
        content_sha256=content,
        seconds=outcome.seconds,
        bytes=outcome.bytes,
    )
