"""Where the weights of a backbone were seen last, by their SHA-256.

A trained detector names the hash of the backbone weights its features came from. Extraction
remembers the file behind each hash in the user's cache folder, so that `detect` finds it again.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from tadpipe.config import write_atomically

logger = logging.getLogger(__name__)


def cache_file() -> Path:
    """$XDG_CACHE_HOME/tadpipe/weights.json, by default below ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "tadpipe", "weights.json")


def remember_weights(sha256: str, path: Path) -> None:
    """Note the file of a hash; a cache that cannot be written is said and otherwise no matter."""
    known = _read()
    absolute = str(path.resolve())
    if known.get(sha256) == absolute:
        return
    try:
        write_atomically(cache_file(), json.dumps({**known, sha256: absolute}, indent=1))
    except OSError as error:
        logger.warning("%s: %s; the place of weights is not remembered", cache_file(), error)


def find_weights(sha256: str) -> Path | None:
    """The file seen under this hash, if it is still there."""
    path = _read().get(sha256)
    return Path(path) if path is not None and Path(path).is_file() else None


def _read() -> dict[str, str]:
    try:
        known = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
