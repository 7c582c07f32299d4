"""Names and times of commits: never given twice, and later than all that was seen."""

from __future__ import annotations

import datetime
import re
import secrets
import socket
import time

from tadpipe.store.catalogue import Catalogue


def commit_id(writer_id: str) -> str:
    """A new name for a commit and its part, from which `writer_of` tells the writer."""
    return f"{writer_id}.{secrets.token_hex(4)}"


def writer_of(part: str) -> str:
    return part.rpartition(".")[0]


def later_than(catalogue: Catalogue) -> int:
    """Now in ns, but later than every commit in sight, whatever the machines' clocks say."""
    return max(time.time_ns(), catalogue.latest_ns + 1)


def unique_writer_id() -> str:
    """Time, machine and chance: sorts by age and is never given twice."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:20]
    return f"{now}-{host}-{secrets.token_hex(4)}"
