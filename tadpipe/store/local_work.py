"""Where a store's own machine-local files are: the spool, the ledger, the content index.

A folder store holds them itself; an HDF5 file has a folder beside it; a store on object storage
has a folder in the user's cache, one per address and machine.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from tadpipe.location import Address, Location

VARIABLE = "TADPIPE_WORK"  # another folder for what object stores keep on this machine


def work_folder(store: Location) -> Path:
    """The folder of a store's machine-local files; it need not exist."""
    if isinstance(store, Address):
        digest = hashlib.sha256(str(store).encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9._-]", "_", store.name)[:40]
        return _root() / f"{name}-{digest}"
    return beside(store) if store.is_file() else store


def beside(hdf5: Path) -> Path:
    """The work folder of an HDF5 file."""
    return hdf5.with_name(hdf5.name + ".work")


def _root() -> Path:
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tadpipe" / "stores"
