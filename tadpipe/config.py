"""Configuration: frozen dataclasses are the schema, TOML and JSON files are data.

`build` turns a mapping into a dataclass with checks and near misses, `to_mapping` back again,
`apply_sets` serves `--set key=value`. `PixelRecipe` is here because backbones, the store and the
pipeline all speak of it and none of them may import the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tadpipe.errors import ConfigError
from tadpipe.registry import nearest

T = TypeVar("T")


@dataclass(frozen=True)
class PixelRecipe:
    """How decoded frames become the pixels a backbone sees."""

    size: int = 224  # side of the square picture, pixels
    # straight to size x size; keep the aspect; keep it as PySlowFast does, the long side rounded
    # down; keep it and never shrink; straight to resize_to
    resize: Literal["squash", "short-side", "short-side-floor", "enlarge", "fixed"] = "squash"
    resize_short_side: int = 0  # length that keeps the aspect, before the centre crop; 0 = size
    resize_to: tuple[int, ...] = ()  # for "fixed": height and width before the centre crop
    interpolation: Literal["float-bilinear", "uint8-bilinear", "antialias-bilinear"] = (
        "float-bilinear"
    )
    mean: tuple[float, ...] = ()  # per channel, on the 0..1 scale; () = no normalisation
    std: tuple[float, ...] = ()
    # three colours, or optical flow in two channels: computed from the frames or read from files
    colour: Literal["rgb", "bgr", "flow-tvl1", "flow-files"] = "rgb"

    @property
    def channels(self) -> int:
        """Channels of a picture: 3, or 2 of optical flow (right, down)."""
        return 2 if self.colour.startswith("flow") else 3

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError("Picture size must be positive.", f"size = {self.size}")
        if len(self.mean) != len(self.std):
            raise ConfigError("mean and std must have the same length.", f"{self.mean}, {self.std}")
        if self.resize_short_side and self.resize_short_side < self.size:
            raise ConfigError(
                "The crop is larger than the resized picture.",
                f"size = {self.size}, resize_short_side = {self.resize_short_side}",
            )
        if self.mean and len(self.mean) != self.channels:
            raise ConfigError(
                "mean and std need one value per channel.",
                f"{len(self.mean)} values, colour = {self.colour}: {self.channels} channels",
            )
        if (self.resize == "fixed") != bool(self.resize_to):
            raise ConfigError(
                "resize_to belongs to the resize 'fixed', which needs it.",
                f"resize = {self.resize}, resize_to = {self.resize_to}",
            )
        if self.resize_to and (len(self.resize_to) != 2 or min(self.resize_to) < self.size):
            raise ConfigError(
                "resize_to is a height and a width, neither below the size of the crop.",
                f"resize_to = {self.resize_to}, size = {self.size}",
            )


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON-ready values (tuples become lists, paths become text)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    mapping = plain(config)
    assert isinstance(mapping, dict)
    return mapping


def build(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Make dataclass `cls` from a mapping.

    Args:
        where: file and table, for messages ("tadpipe.toml", "preset x.toml [training]").
    Raises:
        ConfigError: unknown key (with the nearest known ones), missing key or wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            guesses = nearest(key, fields) or sorted(fields)
            shown = ", ".join(f"{name} ({_shown(mapping, fields[name])})" for name in guesses)
            raise ConfigError(f"Unknown key '{key}'.", where, f"Nearest keys: {shown}.")
    values = {
        key: _coerce(value, hints[key], f"{where}: {key} = {value!r}")
        for key, value in mapping.items()
    }
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"Missing key {', '.join(missing)}.", where, "Add it and run again.")
    return cls(**values)


def apply_sets(mapping: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `table.key=value` assignments; values are read as TOML, else as text.

    Raises:
        ConfigError: an assignment without "=", or a path through something that is no table.
    """
    changed: dict[str, Any] = json.loads(json.dumps(mapping))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ConfigError(
                "--set needs key=value.", f"--set {assignment}", "Example: --set training.epochs=20"
            )
        *tables, key = path.strip().split(".")
        node = changed
        for name in tables:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"'{name}' is a value, not a table.", f"--set {assignment}")
        node[key] = _read_value(text.strip())
    return changed


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: missing, unreadable or not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("File not found.", str(path), "Check the path.") from None
    except OSError as error:
        raise ConfigError("The file cannot be read.", f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("Not a valid TOML file.", f"{path}: {error}") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _shown(mapping: Mapping[str, Any], field: dataclasses.Field[Any]) -> str:
    if field.name in mapping:
        return f"now {mapping[field.name]!r}"
    if field.default is not dataclasses.MISSING:
        return f"default {field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f"default {field.default_factory()!r}"
    return "required"


def _read_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Check `value` against a field's type; lists become tuples, whole numbers floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        for option in arguments:
            try:
                return _coerce(value, option, where)
            except ConfigError:
                continue
        raise ConfigError(f"Expected {hint}.", where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"Expected one of {', '.join(map(str, arguments))}.", where)
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError("Expected a list.", where)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_coerce(item, arguments[0], where) for item in value)
        if len(arguments) != len(value):
            raise ConfigError(f"Expected a list of {len(arguments)}.", where)
        return tuple(_coerce(item, a, where) for item, a in zip(value, arguments, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError("Expected a table.", where)
        return build(hint, value, where.split(" = ")[0])
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint):
        if hint is int and isinstance(value, bool):
            raise ConfigError("Expected int, not a truth value.", where)
        return value
    raise ConfigError(f"Expected {getattr(hint, '__name__', hint)}.", where)
