"""The videos of a report: where they are as seen from the page, and pictures of them."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from tadpipe.pipeline.progress import Progress
from tadpipe.pipeline.video_files import find_videos
from tadpipe.report.viewer import Film
from tadpipe.video.thumbnails import Strip, picture_strips

STRIP_BYTES = 1_500_000  # of all pictures of a page together
MOST_PICTURES = 8  # of a video
PICTURE_BYTES = 1_500  # of one, about


def video_paths(sources: Sequence[str | Path], names: Sequence[str]) -> dict[str, Path]:
    """The files of the scored videos: by the names that extraction gives them."""
    if not sources:
        return {}
    by_name = {video.name: video.path for video in find_videos([Path(s) for s in sources])}
    by_stem = {path.stem: path for path in by_name.values()}
    found = {name: by_name.get(name) or by_stem.get(name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def films_of(files: Mapping[str, Path], out: Path, progress: Progress) -> dict[str, Film]:
    """Where each video is as seen from the page, and pictures of it."""
    if not files:
        return {}
    pictures = min(MOST_PICTURES, STRIP_BYTES // (len(files) * PICTURE_BYTES))
    strips: dict[str, Strip] = {}
    if pictures:
        progress.begin("pictures", len(files), "video")
        most_bytes = STRIP_BYTES * 3 // 4 // len(files)  # base64 makes four of three
        for name, strip in picture_strips(files, pictures, most_bytes):
            strips[name] = strip
            progress.advance()
        progress.end()
    films = {}
    for name, path in files.items():
        too_many = f"No pictures: there are more than {STRIP_BYTES // PICTURE_BYTES} videos."
        strip = strips.get(name, Strip(None, 0, too_many))
        films[name] = Film(_url(path, out), strip.data_url, strip.pictures, strip.problem)
    return films


def _url(path: Path, out: Path) -> str:
    """Relative to the page, so that a folder that is moved as a whole keeps working."""
    relative = os.path.relpath(path.resolve(), out.resolve().parent)
    quoted = urllib.parse.quote(Path(relative).as_posix(), errors="surrogatepass")
    return f"./{quoted}"  # a name with a colon is no scheme
