"""Video files before anything is decoded: each one read packet by packet, and held against its
annotations.

The pass runs in the decoder's own process with its watchdog, so that no file can hang or crash it.
Contents are compared by hash only where two files have the same size.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tadpipe.annotations import BEYOND_DURATION_SEC, Annotations, Video
from tadpipe.datasets.sources import match_videos
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import ConfigError, VideoError, VideoReason
from tadpipe.pipeline.progress import Progress
from tadpipe.pipeline.validate_findings import Finding, Severity, from_error
from tadpipe.pipeline.video_files import VideoFile, find_videos, printable
from tadpipe.video.packets import VideoProbe
from tadpipe.video.process import DecodeProcess

DURATION_SHARE = 0.01  # a stated duration may differ by this share of the file's, or
DURATION_SEC = 0.25  # by so much: containers and editors count the last frame differently
OTHER_CUT_SHARE = 0.05  # beyond this it is hardly the same video
MOST_PROCESSES, FILES_PER_PROCESS = 8, 8  # a process takes a moment to start
FPS_SHARE = 0.005  # 29.97 for 30 is a rounding of people, 25 for 30 is not


@dataclass
class VideoCheck:
    """What became of the video files."""

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    probes: dict[str, VideoProbe] = field(default_factory=dict)  # by annotated name, else file name
    same: list[list[str]] = field(default_factory=list)  # names of equal files


class _Outcome(NamedTuple):
    """What reading a file gave: a probe or an error."""

    file: VideoFile
    probe: VideoProbe | None
    error: VideoError | None

    def findings(self, name: str, *, is_annotated: bool) -> Iterator[Finding]:
        severity: Severity = "error" if is_annotated else "warning"
        where = printable(self.file.path)
        if self.error is not None:
            is_cut = self.error.reason is VideoReason.TRUNCATED
            kind = "truncated-video" if is_cut else "unreadable-video"
            message = f"{self.error.reason.value}: {self.error.what}"
            yield Finding(severity, kind, where, name, message, self.error.todo)
        elif self.probe is not None and self.probe.truncated:
            text = f"{self.probe.frames} frames, {self.probe.duration_sec:.2f} s are there"
            yield Finding(severity, "truncated-video", where, name, text)


def check_videos(
    sources: Sequence[Path],
    found: Annotations | None,
    spec: DatasetSpec | None,
    *,
    with_features: frozenset[str],
    span_frames: int | None,
    timeout_sec: float,
    progress: Progress,
) -> VideoCheck:
    """Probe every file and compare it with what is annotated.

    Args:
        sources: files and folders.
        with_features: annotated videos that have features already: their file may be gone.
        span_frames: of a snippet; shorter videos have no row. None = not known.
    """
    check = VideoCheck()
    where = ", ".join(printable(source) for source in sources)
    for source in sources:
        if not os.path.lexists(source):
            gone = Finding("error", "no-videos", printable(source), "", "no such file or folder")
            check.findings.append(gone)
    try:
        files = find_videos(source for source in sources if os.path.lexists(source))
    except ConfigError as error:
        check.findings.append(from_error("no-videos", where, "", error))
        files = []
    check.files = len(files)
    videos = {} if found is None else found.videos
    prefix = "" if spec is None else spec.feature_prefix
    by_name = {file.name: file for file in files}
    stored_as = match_videos(videos, list(videos), list(by_name), prefix).stored_as
    name_of = {file: name for name, file in stored_as.items()}
    if files:
        check.findings += _missing(videos, stored_as, with_features, where, lenient=bool(spec))
    names = [name_of.get(file.name, file.name) for file in files]
    for name, outcome in zip(names, _probe_all(files, timeout_sec, progress), strict=True):
        check.findings += outcome.findings(name, is_annotated=name in videos)
        if outcome.probe is not None:
            check.probes[name] = outcome.probe
    for file, name in zip(files, names, strict=True):
        if found is not None and name not in videos:
            text = "no entry in the annotations"
            check.findings.append(
                Finding("note", "unannotated-video", printable(file.path), file.name, text)
            )
        if name in check.probes:
            probe = check.probes[name]
            check.findings += _against_file(videos.get(name), probe, file, span_frames)
    check.same = [
        [name_of.get(file.name, file.name) for file in group] for group in _equal_files(files)
    ]
    return check


def _missing(
    videos: Mapping[str, Video],
    stored_as: Mapping[str, str],
    with_features: frozenset[str],
    where: str,
    *,
    lenient: bool,
) -> Iterator[Finding]:
    """Annotated videos without a file; public data sets lose videos, so there it is a warning."""
    severity: Severity = "warning" if lenient else "error"
    for name, video in videos.items():
        if name not in stored_as and name not in with_features:
            yield Finding(severity, "missing-video", where, name, f"of '{video.subset}'")


def _probe_all(
    files: Sequence[VideoFile], timeout_sec: float, progress: Progress
) -> list[_Outcome]:
    """Probe the files on several threads, each with a decoder's process of its own."""
    threads = min(os.cpu_count() or 1, MOST_PROCESSES, math.ceil(len(files) / FILES_PER_PROCESS))
    progress.begin("probe", len(files), "video")
    local = threading.local()
    with ExitStack() as stack:

        def start() -> None:
            local.process = DecodeProcess(timeout_sec=timeout_sec)
            stack.callback(local.process.close)

        pool = stack.enter_context(ThreadPoolExecutor(max(threads, 1), initializer=start))
        outcomes = []
        for outcome in pool.map(lambda file: _probe(local.process, file), files):
            outcomes.append(outcome)
            progress.advance()
    progress.end()
    return outcomes


def _probe(process: DecodeProcess, file: VideoFile) -> _Outcome:
    """Read a file's packets, then decode its first picture."""
    try:
        probe = process.probe(file.path)
        next(process.frames(file.path), None)
    except VideoError as error:
        return _Outcome(file, None, error)
    return _Outcome(file, probe, None)


def _against_file(
    video: Video | None, probe: VideoProbe, file: VideoFile, span_frames: int | None
) -> Iterator[Finding]:
    where = printable(file.path)
    if span_frames is not None and probe.frames < span_frames:
        text = f"{probe.frames} frames, a snippet has {span_frames}"
        name = file.name if video is None else video.name
        yield Finding("warning", "short-video", where, name, text)
    if video is None or probe.truncated:
        return
    actual_sec = probe.duration_sec
    if video.duration_sec is not None:
        differs_sec = abs(video.duration_sec - actual_sec)
        if differs_sec > max(DURATION_SEC, DURATION_SHARE * actual_sec):
            far = differs_sec > OTHER_CUT_SHARE * actual_sec
            text = f"stated {video.duration_sec:g} s, the file has {actual_sec:.2f} s"
            yield Finding(
                "error" if far else "warning", "duration-contradicts", where, video.name, text
            )
    actual_fps = float(probe.fps) if probe.fps is not None else probe.frames / actual_sec
    if video.fps is not None and abs(video.fps - actual_fps) > FPS_SHARE * actual_fps:
        text = f"stated {video.fps:g} fps, the file has {actual_fps:.3f}"
        yield Finding("warning", "fps-contradicts", where, video.name, text)
    limit_sec = actual_sec + BEYOND_DURATION_SEC
    for action in video.actions:
        # Beyond the stated duration it is a finding of the annotations already.
        stated = video.duration_sec
        is_new = stated is None or action.end_sec <= stated + BEYOND_DURATION_SEC
        if action.end_sec > limit_sec and is_new:
            text = f"[{action.start_sec:g}, {action.end_sec:g}] ends after {actual_sec:.2f} s"
            yield Finding("warning", "segment-beyond-file", where, video.name, text)


def _equal_files(files: Sequence[VideoFile]) -> list[list[VideoFile]]:
    """Groups of files with the same bytes; only files of one size are read."""
    sizes: dict[int, list[VideoFile]] = {}
    for file in files:
        try:
            sizes.setdefault(os.stat(file.path).st_size, []).append(file)
        except OSError:
            continue  # the probe has said so
    contents: dict[str, list[VideoFile]] = {}
    for size, group in sizes.items():
        for file in group if size and len(group) > 1 else ():
            try:
                with open(file.path, "rb") as stream:
                    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError:
                continue
            contents.setdefault(sha256, []).append(file)
    return [group for group in contents.values() if len(group) > 1]
