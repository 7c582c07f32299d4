"""Tables for a terminal: columns aligned, and broken into several when they are too wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

Row = tuple[str, ...]
GAP = "  "


def aligned(rows: Sequence[Row]) -> list[str]:
    """The first column flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        GAP.join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def fitted(rows: Sequence[Row], width: int) -> list[str]:
    """The same in at most `width` characters: further columns go below, the first one repeated.

    A first column of more than half the width is cut, and so are cells that do not fit beside it.
    """
    limit = max(width // 2, 8)
    head = max(min(len(row[0]), limit) for row in rows)
    room = max(width - head - len(GAP), 8)
    rows = [(cut(row[0], limit), *(cut(cell, room) for cell in row[1:])) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    lines: list[str] = []
    begin = 0
    while begin < len(widths) or not lines:
        end, used = begin, head
        while end < len(widths) and (end == begin or used + len(GAP) + widths[end] <= width):
            used += len(GAP) + widths[end]
            end += 1
        lines += aligned([(row[0], *row[begin + 1 : end + 1]) for row in rows])
        begin = end
    return lines


def prose(text: str, width: int) -> list[str]:
    """A sentence in lines of at most `width` characters."""
    return textwrap.wrap(text, max(width, 20))


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and three dots."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
