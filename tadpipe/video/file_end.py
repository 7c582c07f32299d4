"""Does a file hold as many bytes as its container claims? Evidence for files cut off in the middle.

Decoders read a cut file silently short, so the outermost boxes are measured here: ISO base media
(mp4, mov), Matroska and WebM, RIFF (avi) and MPEG transport streams. Other formats claim nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

TS_SYNC = 0x47
SEGMENT_ID = b"\x18\x53\x80\x67"  # Matroska's outermost element after its header
MOST_BOXES = 100_000


def bytes_missing(path: str | os.PathLike[str]) -> bool:
    """Whether the outermost structure of a container reaches beyond the end of the file."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        head = file.read(400)
        return next((check(file, head, size) for test, check in _FORMATS if test(head)), False)


def has_index(path: str | os.PathLike[str]) -> bool:
    """Whether an mp4 or mov has its index (`moov` or a fragment); True for other formats."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        if not _is_iso(file.read(12)):
            return True
        return any(name in (b"moov", b"moof") for name, _, _ in _boxes(file, size))


def _is_iso(head: bytes) -> bool:
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp")


def _boxes(file: BinaryIO, size: int) -> list[tuple[bytes, int, int]]:
    """(name, start, end) of the outermost boxes; an end may lie beyond the file's."""
    found: list[tuple[bytes, int, int]] = []
    position = 0
    while position + 8 <= size and len(found) < MOST_BOXES:
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:  # up to the end of the file
            length = size - position
        if length < 8:
            break
        found.append((header[4:8], position, position + length))
        position += length
    return found


def _iso_missing(file: BinaryIO, head: bytes, size: int) -> bool:
    boxes = _boxes(file, size)
    return bool(boxes) and boxes[-1][2] > size


def _matroska_missing(file: BinaryIO, head: bytes, size: int) -> bool:
    at = head.find(SEGMENT_ID)
    if at < 0 or at + 5 > len(head):
        return False
    first = head[at + 4]
    width = 9 - first.bit_length()  # a variable-length integer: leading zeros give its bytes
    if not 1 <= width <= 8 or at + 4 + width > len(head):
        return False
    length = int.from_bytes(head[at + 4 : at + 4 + width], "big") & ((1 << 7 * width) - 1)
    unknown = length == (1 << 7 * width) - 1  # all ones: live streams
    return not unknown and at + 4 + width + length > size


def _riff_missing(file: BinaryIO, head: bytes, size: int) -> bool:
    return int.from_bytes(head[4:8], "little") + 8 > size


def _transport_missing(file: BinaryIO, head: bytes, size: int) -> bool:
    return size % (192 if head[0] != TS_SYNC else 188) != 0


def _is_transport(head: bytes) -> bool:
    plain = len(head) > 376 and head[0] == head[188] == head[376] == TS_SYNC
    with_timecode = len(head) > 388 and head[4] == head[196] == head[388] == TS_SYNC  # m2ts
    return plain or with_timecode


_Test = Callable[[bytes], bool]
_Check = Callable[[BinaryIO, bytes, int], bool]
_FORMATS: tuple[tuple[_Test, _Check], ...] = (
    (_is_iso, _iso_missing),
    (lambda head: head.startswith(b"\x1a\x45\xdf\xa3"), _matroska_missing),
    (lambda head: head.startswith(b"RIFF"), _riff_missing),
    (_is_transport, _transport_missing),
)
