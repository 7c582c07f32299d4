"""JSON as people write it: read with the line of a mistake and with keys that occur twice.

Python's reader silently keeps the last of two equal keys, so half of the annotations of a video
can vanish unseen; `RepeatedKeys` remembers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_as_dict)
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


def child(place: str, key: str) -> str:
    """The JSON path of an object's entry: $.database["v1"]."""
    quoted = json.dumps(key, ensure_ascii=False)
    return f"{place}[{quoted}]"


def shown(value: Any) -> str:
    """A value of a file as it stands there, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else RepeatedKeys(pairs)
