"""Commands and printed outputs in the fenced blocks of Markdown pages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```", re.S | re.M)
OUTPUT = "text"  # the language of blocks that show what the block before printed
REST = "..."  # in an output: lines, or the end of a line, that are left out
NUMBER = re.compile(r"[+-]?\d+\.\d+(?:e-?\d+)?|\b\d+(?= s\b)")


class Command(NamedTuple):
    """A command of a page, on one line."""

    page: Path
    text: str

    @property
    def words(self) -> list[str]:
        """What follows `tadpipe`, as a shell passes it on, but for patterns of file names."""
        words = shlex.split(self.text, comments=True)
        return words[words.index("tadpipe") + 1 :]

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}: {self.text}"


class Block(NamedTuple):
    """Commands, and what the page says they print."""

    commands: list[Command]
    output: list[str]


def blocks(page: Path) -> list[Block]:
    """The blocks with commands of tadpipe, in the page's order."""
    found: list[Block] = []
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == OUTPUT and found:
            found[-1].output.extend(body.splitlines())
        if language:
            continue
        lines = body.replace("\\\n", " ").splitlines()
        commands = [line for line in lines if re.match(r"(torchrun .* -m )?tadpipe ", line)]
        if commands:
            found.append(Block([Command(page, line.strip()) for line in commands], []))
    return found


def page_commands(page: Path) -> list[Command]:
    return [command for block in blocks(page) for command in block.commands]


def expanded(words: list[str]) -> list[str]:
    """Patterns of file names, as a shell expands them."""
    found: list[str] = []
    for word in words:
        files = sorted(map(str, Path().glob(word))) if "*" in word else []
        found += files or [word]
    return found


def not_printed(shown: list[str], printed: str) -> list[str]:
    """Lines of a page's output that a run did not print, in this order.

    Numbers with a decimal point, and seconds, are of the machine and count as equal; whole
    numbers and words must agree.
    """
    lines = [_masked(line) for line in printed.splitlines()]
    missing, place = [], 0
    for line in shown:
        wanted = _masked(line.removesuffix(REST))
        if not wanted:
            continue
        cut = line.endswith(REST)
        hits = (
            i
            for i, have in enumerate(lines[place:], place)
            if have == wanted or (cut and have.startswith(wanted))
        )
        hit = next(hits, None)
        if hit is None:
            missing.append(line)
        else:
            place = hit + 1
    return missing


def _masked(line: str) -> str:
    return " ".join(NUMBER.sub("N", line).split())
