"""Commits: the only way anything becomes visible in a store.

A commit is one line of JSON with its checksum. It carries the row table of a part as columns
(columns parse several times faster than one object per video), aliases, or tombstones. Commits are
never changed, and what a store holds follows from the set of them, in whatever order they came.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import xxhash

from tadpipe.errors import StoreError
from tadpipe.store.metadata import VideoRow

logger = logging.getLogger(__name__)

# Columns of a row table: the fields of VideoRow but `part`, which is the commit itself.
COLUMNS = tuple(name for name in VideoRow.__dataclass_fields__ if name != "part")
_RARE = {"history": None, "replaces": ()}  # written where they are anything else
_HEAD = '{"checksum":"%s","commit":'
_HEAD_BYTES = len(_HEAD % ("0" * 16))


class Saying(NamedTuple):
    """What one commit said of names; the newest word on a name counts."""

    created_ns: int
    commit: str
    deleted: Sequence[str]
    meanings: Sequence[Sequence[str]]  # (name, content), after the deleting

    @property
    def order(self) -> tuple[int, str]:
        return (self.created_ns, self.commit)


@dataclass(frozen=True)
class Commit:
    """One immutable step in the life of a store."""

    id: str  # also the name of the part, where there is one
    created_ns: int  # later than every commit its writer had seen
    dtype: str = ""  # of the part's rows; "" = no part
    rows: int = 0  # of the part
    videos: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # column -> values
    aliases: Sequence[Sequence[str]] = ()  # (name, content): a further name of known content
    deleted: Sequence[str] = ()  # names that mean nothing from here on
    dropped: Sequence[Sequence[str]] = ()  # (part, content): rows that are not to be used
    # The next two are of commits that stand for older ones, made by compact, gc or merge.
    history: Sequence[Sequence[Any]] | None = None  # `Saying`s of those; what else names mean here
    replaces: Sequence[str] = ()  # commits that count no more

    @property
    def order(self) -> tuple[int, str]:
        return (self.created_ns, self.id)

    @property
    def names(self) -> Sequence[str]:
        return self.videos.get("name", ())

    @property
    def contents(self) -> Sequence[str]:
        return self.videos.get("content_sha256", ())

    def sayings(self) -> list[Saying]:
        """What the commit says of names, each part of it at its own time."""
        if self.history is not None:
            return [Saying(*each) for each in self.history]
        said = [*zip(self.names, self.contents, strict=True), *self.aliases]
        return [Saying(self.created_ns, self.id, self.deleted, said)]

    def row(self, index: int, name: str) -> VideoRow:
        """Line `index` of the row table, for the name it was asked by."""
        values = {key: column[index] for key, column in self.videos.items()}
        values["name"] = name
        for key in ("dt", "fps"):
            values[key] = None if values[key] is None else Fraction(values[key])
        return VideoRow(part=self.id, **values)


def columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A row table from its lines."""
    return {key: [line[key] for line in lines] for key in COLUMNS} if lines else {}


def encode(commit: Commit) -> bytes:
    """One line of JSON: the checksum, then what it is the checksum of."""
    # Escaped to ASCII: a name may hold bytes that are no Unicode text.
    fields = {key: value for key, value in commit.__dict__.items() if value != _RARE.get(key, ...)}
    body = json.dumps(fields, separators=(",", ":"))
    return f"{_HEAD % _checksum(body.encode())}{body}}}\n".encode()


def decode(raw: bytes, place: str) -> Commit:
    """The inverse of `encode`.

    Raises:
        StoreError: cut off, changed, or not a commit; `place` is named.
    """
    body = raw[_HEAD_BYTES:].rstrip()[:-1]
    if raw[:_HEAD_BYTES] != (_HEAD % _checksum(body)).encode():
        raise StoreError("A commit is damaged.", place, "Run tadpipe store verify.")
    try:
        return Commit(**json.loads(body))
    except TypeError as error:
        raise StoreError(
            "A commit was written by a later tadpipe.", f"{place}: {error}", "Upgrade tadpipe."
        ) from None


def decode_lines(raw: bytes, place: str) -> Iterator[Commit]:
    """The commits of a catalogue without its damaged lines: these are read from their own place.

    A catalogue is derived, and one that others append to this moment may end in half a line.
    """
    for number, line in enumerate(raw.splitlines(), start=1):
        try:
            yield decode(line, f"{place}:{number}")
        except StoreError as error:
            logger.info("left out of a catalogue: %s", error)


def _checksum(raw: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(raw)
