"""Verifying a store: every video that cannot be trusted is named.

Fast: commits, metadata, sizes and shard indexes. Deep: also reads every row and compares it with
its checksum, counts NaN and looks for videos whose values are far from everybody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tadpipe.errors import NoAnswerError, StoreError
from tadpipe.store.commits import Commit
from tadpipe.store.metadata import FeatureSpec, VideoRow
from tadpipe.store.opened import OpenStore
from tadpipe.store.writer import checksum

OUTLIER_RATIO = 20.0  # root mean square this many times above or below the median video's
MIN_VIDEOS_FOR_OUTLIERS = 8
_BLOCK_ROWS = 8192
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one video (or, for a commit of which nothing is known, a part)."""

    fid: str
    name: str  # "" where only the part is known
    part: str
    content_sha256: str
    kind: Literal["spec", "commit", "unreadable", "checksum", "times", "nan", "outlier"]
    message: str
    damaged: bool  # not to be used; False = odd, but what was extracted

    def __str__(self) -> str:
        what = "damaged" if self.damaged else "note"
        return f"{what}: {self.name or 'part ' + self.part}: {self.kind}: {self.message}"


def verify(store: OpenStore, deep: bool = False) -> list[Finding]:
    """Everything wrong with a store, damaged videos before mere oddities.

    Raises:
        NoAnswerError: the storage stopped answering; nothing is called damaged for that.
    """
    store.refresh()
    found: list[Finding] = []
    for fid, spec in store.specs().items():
        if spec.fid != fid:
            found.append(
                Finding(fid, "", "", "", "spec", "the spec is not the one of its id", False)
            )
        found += _verify_commits(store, fid)
        found += _verify_videos(store, fid, spec, deep)
    return sorted(found, key=lambda finding: not finding.damaged)


def _verify_commits(store: OpenStore, fid: str) -> Iterator[Finding]:
    """Commits that cannot be read; their videos are named if the catalogue remembers them."""
    remembered = {commit.id: commit for commit in store.videos(fid).commits}
    for commit_id in sorted(store.backend.commit_ids(fid)):
        try:
            store.backend.read_commit(fid, commit_id)
        except NoAnswerError:
            raise
        except StoreError as error:
            names = remembered[commit_id].names if commit_id in remembered else [""]
            for name in names:
                yield Finding(fid, name, commit_id, "", "commit", error.where, True)


def _verify_videos(store: OpenStore, fid: str, spec: FeatureSpec, deep: bool) -> Iterator[Finding]:
    videos = store.videos(fid)
    commits = {commit.id: commit for commit in videos.commits}
    flaws = {part: store.backend.check_part(fid, commits[part]) for part in videos.live_parts()}
    sizes: list[tuple[VideoRow, float]] = []
    for row in videos.used_rows():
        problems: list[_Problem] = [
            _Problem("unreadable", flaw.message, True)
            for flaw in flaws[row.part]
            if flaw.first_row < row.first_row + row.rows and row.first_row < flaw.stop_row
        ]
        if deep and not problems:
            problems, size = _read_through(store, fid, commits[row.part], row)
            sizes.append((row, size))
        for name in videos.names_of[row.content_sha256]:
            for kind, message, damaged in problems:
                yield Finding(fid, name, row.part, row.content_sha256, kind, message, damaged)
    yield from _outliers(fid, spec, sizes)


class _Problem(NamedTuple):
    kind: Literal["unreadable", "checksum", "times", "nan"]
    message: str
    damaged: bool


def _read_through(
    store: OpenStore, fid: str, commit: Commit, row: VideoRow
) -> tuple[list[_Problem], float]:
    """(problems, root mean square) of a video, all of its rows read."""
    stop = row.first_row + row.rows
    try:
        part = store.backend.open_part(fid, commit.id)
        features = part.read(row.first_row, stop, 1)
        times = part.times(row.first_row, stop)
    except NoAnswerError:
        raise
    except StoreError as error:
        return [_Problem("unreadable", error.where, True)], np.nan
    if features.dtype != np.dtype(commit.dtype) or checksum(features) != row.checksum:
        return [_Problem("checksum", "the rows are not those that were written", True)], np.nan
    if checksum(times) != row.times_checksum:
        return [_Problem("times", "the row times are not those that were written", True)], np.nan
    if row.nan_count:
        share = row.nan_count / features.size
        return [_Problem("nan", f"{row.nan_count} values are NaN ({share:.1%})", False)], np.nan
    return [], _root_mean_square(features)


def _root_mean_square(features: Array) -> float:
    """Root mean square of the finite values, in double precision, a block at a time."""
    total, count = 0.0, 0
    for start in range(0, len(features), _BLOCK_ROWS):
        block = features[start : start + _BLOCK_ROWS].astype(np.float64)
        finite = block[np.isfinite(block)]
        total += float(finite @ finite)
        count += finite.size
    return (total / count) ** 0.5 if count else np.nan


def _outliers(
    fid: str, spec: FeatureSpec, sizes: list[tuple[VideoRow, float]]
) -> Iterator[Finding]:
    known = [(row, size) for row, size in sizes if np.isfinite(size)]
    if len(known) < MIN_VIDEOS_FOR_OUTLIERS:
        return
    median = float(np.median([size for _, size in known]))
    for row, size in known:
        if median and not 1 / OUTLIER_RATIO <= size / median <= OUTLIER_RATIO:
            message = f"values of size {size:.3g}; the median video of {spec.backbone} {median:.3g}"
            yield Finding(fid, row.name, row.part, row.content_sha256, "outlier", message, False)
