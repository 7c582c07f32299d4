"""Names to code: each family keeps one dict of strings, and this imports an entry on demand."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from tadpipe.errors import ConfigError


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known words most like `word`, best first."""
    return difflib.get_close_matches(word, list(known), n=most, cutoff=0.5)


def known(kind: str, table: Mapping[str, object], name: str) -> None:
    """Check that `table` holds `name`, without importing anything.

    Args:
        kind: the family, for the message ("detector", "backbone", "dataset").
        table: its names are looked at only.
    Raises:
        ConfigError: the name is not in the table; the message names the nearest ones.
    """
    if name not in table:
        guesses = nearest(name, table)
        hint = f"Did you mean {' or '.join(guesses)}? " if guesses else ""
        raise ConfigError(
            f"Unknown {kind} '{name}'.", todo=f"{hint}Known: {', '.join(sorted(table))}."
        )


def resolve(kind: str, table: Mapping[str, str], name: str) -> Any:
    """Import what `table` holds under `name`; an unknown name is a ConfigError, see `known`."""
    known(kind, table, name)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
