"""JSON as people write it: every mistake found, named by its JSON path, and none of them fatal.

Python's reader silently keeps the last of two equal keys, so half of the annotations of a video
can vanish unseen; `RepeatedKeys` remembers them. `JsonReader` collects what is wrong while a
document is taken apart.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tadpipe.errors import AnnotationError, Defect


class RepeatedKeys(dict[str, Any]):
    """A JSON object with keys that occurred more than once; it holds their last values."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.repeated = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]  # add returns None


def repeated_keys(node: Iterable[str]) -> list[str]:
    """The keys that a JSON object had more than once, without repetition."""
    return list(dict.fromkeys(node.repeated)) if isinstance(node, RepeatedKeys) else []


def read_json(path: Path) -> Any:
    """Read a JSON file; objects with repeated keys become `RepeatedKeys`.

    Raises:
        AnnotationError: no such file, not text, or not JSON (with line and column).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        with collector_paused():
            return json.loads(text, object_pairs_hook=_as_dict)
    except OSError as error:
        raise AnnotationError(
            "The file cannot be read.",
            [Defect(str(path), "$", error.strerror or type(error).__name__)],
            "Check the path.",
        ) from None
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8 text"
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        reason = str(error)
    raise AnnotationError(
        "The file is not JSON.",
        [Defect(str(path), "$", reason)],
        "Mend the text at this place; the file may be cut short.",
    )


class JsonReader:
    """Collects defects while a document is taken apart."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.defects: list[Defect] = []

    def error(self, place: str, message: str) -> None:
        self.defects.append(Defect(self.source, place, message))

    def warn(self, place: str, message: str) -> None:
        self.defects.append(Defect(self.source, place, message, is_warning=True))

    def report(self, place: str, faults: Iterable[tuple[str, bool]]) -> bool:
        """Note faults as (message, is_warning); whether they are warnings only."""
        sound = True
        for message, is_warning in faults:
            self.defects.append(Defect(self.source, place, message, is_warning))
            sound &= is_warning
        return sound

    def table(self, document: Any, key: str, example: str) -> dict[str, Any]:
        """The object under `key` of the top-level object; empty when it is not there."""
        if not isinstance(document, dict):
            self.error("$", f"{kind(document)}, not an object; the file must be {example}")
            return {}
        if key not in document:
            known = ", ".join(list(document)[:5]) or "none"
            self.error("$", f"no key '{key}' (keys: {known}); the file must be {example}")
            return {}
        table = document[key]
        if not isinstance(table, dict):
            self.error(f"$.{key}", f"{kind(table)}, not an object; write video names as keys")
            return {}
        for name in repeated_keys(document):
            self.error("$", f"the key {shown(name)} occurs twice; the last one counts")
        for name in repeated_keys(table):
            self.error(
                child(f"$.{key}", name), "the video occurs twice; unite the two or rename one"
            )
        return table

    def number(self, node: Mapping[str, Any], key: str, place: str) -> float | None:
        """A positive number or None; anything else is an error."""
        if key not in node:
            return None
        value = finite(node[key])
        if value is None or value <= 0:
            self.error(
                f"{place}.{key}",
                f"{shown(node[key])} is not a positive number; correct it or remove the key",
            )
            return None
        return value

    def segment(self, node: Mapping[str, Any], place: str) -> tuple[float, float] | None:
        """(start, end) in seconds, finite, in any order; None after an error."""
        if "segment" not in node:
            self.error(place, "no segment; write [start, end] in seconds or remove the entry")
            return None
        value = node["segment"]
        if not isinstance(value, list) or len(value) != 2:
            self.error(f"{place}.segment", f"{shown(value)} is not [start, end] in seconds")
            return None
        start, end = finite(value[0]), finite(value[1])
        if start is None or end is None:
            self.error(f"{place}.segment", f"{shown(value)}: both ends must be finite numbers")
            return None
        return start, end

    def label(self, node: Mapping[str, Any], place: str, key: str = "label") -> str | None:
        """The label text under `key`; None after an error."""
        if key not in node:
            self.error(place, f"no {key}; name the action or remove the entry")
            return None
        label = node[key]
        if not isinstance(label, str) or not label.strip():
            self.error(f"{place}.{key}", f"{shown(label)} is not a name; labels are text")
            return None
        return label


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector while many objects without cycles are made.

    Its passes over the growing heap cost as much time as reading the text.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def child(place: str, key: str) -> str:
    """The JSON path of an object's entry: $.database["v1"]."""
    quoted = json.dumps(key, ensure_ascii=False)
    return f"{place}[{quoted}]"


def shown(value: Any) -> str:
    """A value of a file as it stands there, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def finite(value: Any) -> float | None:
    """A JSON number as float; None for text, truth values, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return number if math.isfinite(number) else None


def kind(value: Any) -> str:
    """What a JSON value is, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
    return "an object"


def _as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else RepeatedKeys(pairs)
