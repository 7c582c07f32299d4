"""Where the weights of a backbone were seen last, by their SHA-256.

A trained detector names the hash of the backbone weights its features came from. Extraction
remembers the file, or the seed, behind each hash in the user's cache folder, so that `detect`
finds it again.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from tadpipe.backbones.loading import RANDOM
from tadpipe.config import write_atomically

logger = logging.getLogger(__name__)


def cache_file() -> Path:
    """$XDG_CACHE_HOME/tadpipe/weights.json, by default below ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "tadpipe", "weights.json")


class KnownWeights(NamedTuple):
    """What `load_backbone` has to be given."""

    weights: str | Path  # a file, or "random"
    seed: int = 0  # of random weights


def remember_weights(sha256: str, known: KnownWeights) -> None:
    """Note what a hash came from; a cache that cannot be written is said, and no matter else."""
    source = f"{RANDOM}:{known.seed}"
    if known.weights != RANDOM:
        source = str(Path(known.weights).resolve())
    before = _read()
    if before.get(sha256) == source:
        return
    try:
        write_atomically(cache_file(), json.dumps({**before, sha256: source}, indent=1))
    except OSError as error:
        logger.warning("%s: %s; the place of weights is not remembered", cache_file(), error)


def find_weights(sha256: str) -> KnownWeights | None:
    """The seed, or the file if it is still there, seen under this hash."""
    source = _read().get(sha256, "")
    kind, _, seed = source.partition(":")
    if kind == RANDOM and seed.lstrip("-").isdecimal():
        return KnownWeights(RANDOM, int(seed))
    return KnownWeights(Path(source)) if source and Path(source).is_file() else None


def _read() -> dict[str, str]:
    try:
        known = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
