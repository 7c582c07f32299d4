"""Which files are the videos: from files and folders named by a user to (path, name) pairs.

A name is the alias of a video in store, annotations and detections: the file's stem, as data sets
name their videos, or the path below the folder where stems collide. It is never used as a path.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tadpipe.errors import ConfigError
from tadpipe.location import Address, location

SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)


@dataclass(frozen=True)
class VideoFile:
    """A file to read and the name its features go by."""

    path: Path
    name: str


def find_videos(sources: Iterable[Path]) -> list[VideoFile]:
    """Every file named, and every file with a video suffix below every folder named.

    Files need not exist or be videos: whoever reads them says what is wrong with which.

    Raises:
        ConfigError: no source, a folder without any video, or an address.
    """
    found: list[tuple[Path, Path]] = []  # (path, path below its folder)
    for source in sources:
        place = location(source)
        if isinstance(place, Address):
            raise ConfigError(
                "Videos are files of this machine; only a feature store can be elsewhere.",
                str(place),
                "Name files and folders; mount or copy the videos first.",
            )
        if source.is_dir():
            inside = sorted(_walk(source))
            if not inside:
                raise ConfigError(
                    "No videos in this folder.",
                    printable(source),
                    f"Files ending in {', '.join(sorted(SUFFIXES))} count as videos; "
                    "name others one by one.",
                )
            found += [(path, path.relative_to(source)) for path in inside]
        else:
            found.append((source, Path(source.name)))
    unique = {os.path.abspath(path): (path, below) for path, below in found}
    stems = Counter(below.stem for _, below in unique.values())
    return [
        VideoFile(path, below.stem if stems[below.stem] == 1 else below.with_suffix("").as_posix())
        for path, below in unique.values()
    ]


def shard(videos: list[VideoFile], index: int, count: int) -> list[VideoFile]:
    """Every `count`-th video beginning with the `index`-th (from 0): job i of n."""
    if not 0 <= index < count:
        raise ConfigError(
            "--shard i/n needs 0 <= i < n.", f"--shard {index}/{count}", "Jobs count from 0."
        )
    return videos[index::count]


def printable(path: Path | str) -> str:
    """A path as text that any terminal and JSON can show, on one line.

    Control characters and bytes that are not UTF-8 are escaped.
    """
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _walk(folder: Path) -> Iterator[Path]:
    """Files with a video suffix, through links to folders too but never twice through one."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for file in files:
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith("."):
                yield Path(parent, file)
