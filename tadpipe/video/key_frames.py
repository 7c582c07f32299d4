"""Can a decoder start at this H.264 key frame and give every later picture right?

Only an instantaneous refresh (IDR, NAL unit type 5; ITU-T H.264, Table 7-1) says so. Recovery
points of open groups of pictures and of intra refresh are called key frames by containers too, and
decord, which does not drop what they cannot restore, returns other frames than asked for.
"""

from __future__ import annotations

IDR_SLICE = 5
SLICES = range(1, 6)


def is_instant_refresh(packet: bytes, extradata: bytes | None) -> bool:
    """Whether the packet's first slice belongs to an IDR picture.

    Args:
        packet: one access unit, length-prefixed (mp4, mkv, flv: `extradata` is an avcC record,
            which starts with 1) or with start codes.
    """
    if extradata and extradata[0] == 1 and len(extradata) > 4:
        prefix = (extradata[4] & 3) + 1
        return _first_slice(_length_prefixed(packet, prefix)) == IDR_SLICE
    return _first_slice(_start_coded(packet)) == IDR_SLICE


def _first_slice(unit_types: list[int]) -> int | None:
    return next((kind for kind in unit_types if kind in SLICES), None)


def _length_prefixed(packet: bytes, prefix: int) -> list[int]:
    kinds, position = [], 0
    while position + prefix < len(packet):
        length = int.from_bytes(packet[position : position + prefix], "big")
        kinds.append(packet[position + prefix] & 31)
        position += prefix + length
    return kinds


def _start_coded(packet: bytes) -> list[int]:
    kinds, position = [], packet.find(b"\0\0\1")
    while 0 <= position < len(packet) - 3:
        kinds.append(packet[position + 3] & 31)
        position = packet.find(b"\0\0\1", position + 3)
    return kinds
