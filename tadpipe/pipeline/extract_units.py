"""What extraction hands out to workers: videos, those of one content together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tadpipe.pipeline.extract_worker import Sent
from tadpipe.pipeline.video_files import VideoFile
from tadpipe.store.content import ContentIndex
from tadpipe.store.feature_store import FeatureStore

KNOWN_COST = 1 / 32  # of a video that is stored already, in videos to do


@dataclass
class Unit:
    """What one worker has to do in one go: a video, or several that have the same content."""

    videos: tuple[Sent, ...]
    is_stored: bool  # as far as is known without reading the file
    deaths: int = 0

    @property
    def cost(self) -> float:
        return KNOWN_COST if self.is_stored else 1.0

    @property
    def bytes(self) -> int:
        return 0 if self.is_stored else self.videos[0].size_bytes or 0


def units_of(files: Sequence[VideoFile], store: FeatureStore, fid: str) -> list[Unit]:
    """The videos as they are handed out; the names of one content stay together.

    Only files of equal size can be copies, so that no other is read here.
    """
    index = ContentIndex(store.path)
    sent = [_sent(file) for file in files]
    sizes = Counter(each.size_bytes for each in sent)
    units: dict[str, Unit] = {}
    for each in sent:
        path = each.file.path
        content = None
        if each.size_bytes is not None:
            with suppress(OSError):  # the worker says what is wrong with it
                content = index.known(path)
                if content is None and sizes[each.size_bytes] > 1:
                    content = index.sha256(path)
        unit = units.setdefault(content or str(path), Unit((), False))
        unit.videos = (*unit.videos, each)
        unit.is_stored = content is not None and store.has_content(fid, content)
    return list(units.values())


def _sent(file: VideoFile) -> Sent:
    path = Path(os.path.abspath(file.path))
    try:
        size_bytes = os.stat(path).st_size if os.access(path, os.R_OK) else None
    except OSError:
        size_bytes = None
    return Sent(VideoFile(path, file.name), size_bytes)
