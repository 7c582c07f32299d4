"""A video is known by the SHA-256 of its bytes, and hashed once.

The hash is remembered by (absolute path, size, modification time in ns). The index is a file of
JSON lines that only ever grows by whole lines; losing it costs time, never correctness.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

from tadpipe.location import Location, location
from tadpipe.store.durable import append_line, writing
from tadpipe.store.local_work import work_folder

logger = logging.getLogger(__name__)

FILE_NAME = "content.jsonl"


class ContentIndex:
    """Remembers the content hashes of video files, beside the features of a store.

    Args:
        store_path: the store; the index is in its work folder (local_work.py).
        remember: write new hashes down; False for a dry run.
    """

    def __init__(self, store_path: str | Location, remember: bool = True) -> None:
        self._remember = remember
        self.path = work_folder(location(store_path)) / FILE_NAME
        self.hashed = 0  # files read by this object
        self._known: dict[tuple[str, int, int], str] = {}
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for line in lines:
            try:
                name, size, mtime_ns, sha256 = json.loads(line)
                self._known[name, size, mtime_ns] = sha256
            except (ValueError, TypeError):
                logger.warning("%s: unreadable line left out", self.path)

    def known(self, path: str | Path) -> str | None:
        """The hash that is remembered, None where the file would have to be read.

        Raises:
            OSError: no such file.
        """
        status = os.stat(path)
        return self._known.get((os.path.abspath(path), status.st_size, status.st_mtime_ns))

    def sha256(self, path: str | Path) -> str:
        """SHA-256 of a file's bytes, hexadecimal.

        Raises:
            OSError: the file cannot be read.
            StoreError: the index cannot be written.
        """
        status = os.stat(path)
        key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
        if key not in self._known:
            with open(path, "rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            self.hashed += 1
            if self._remember:
                with writing(self.path):
                    append_line(self.path, json.dumps([*key, self._known[key]]))
        return self._known[key]
