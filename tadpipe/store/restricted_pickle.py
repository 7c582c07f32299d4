"""Arrays out of pickle files without running anything a pickle asks for.

A pickle names functions and has them called. Here the few names that arrays are made of stand for
classes of this file, which only keep what they are given; every other name is refused. What was
kept is turned into arrays after its type, shape and number of bytes agree.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_NUMBER = re.compile(r"[fiub]\d{1,2}")
Array = np.ndarray[Any, Any]


class RefusedPickleError(ValueError):
    """The pickle asks for something that arrays do not need."""


class _Dtype:
    """Stands for numpy.dtype: a plain number type and its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        plain = isinstance(code, str) and _NUMBER.fullmatch(code)
        self.dtype = np.dtype(code) if plain else None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if self.dtype is None or state[2:5] != (None, None, None) or state[1] not in "<>|":
            raise RefusedPickleError("an array of something other than numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray while it is rebuilt from its state."""

    def __init__(self) -> None:
        self.array: Array | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.array = _view(raw, dtype, shape, "F" if is_fortran else "C")


def _view(raw: object, dtype: object, shape: object, order: object) -> Array:
    if isinstance(raw, str):
        raw = raw.encode("latin1")  # as Python 2 wrote bytes
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
        raise RefusedPickleError("an array of something other than numbers")
    sound = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if dtype.dtype is None or not sound or order not in ("C", "F"):
        raise RefusedPickleError("an array of something other than numbers")
    assert isinstance(shape, tuple)
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise RefusedPickleError(f"an array of shape {shape} with {len(raw)} bytes")
    flat = np.frombuffer(raw, dtype.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(raw: object, dtype: object, shape: object, order: object) -> Array:
    return _view(raw, dtype, shape, order)


def _scalar(dtype: object, raw: object) -> Any:
    """A single number that was kept as numpy's own kind of number."""
    return _view(raw, dtype, (), "C").item()


def _encode(text: object, encoding: object) -> bytes:
    """`_codecs.encode`, which old protocols write bytes with, always as Latin-1."""
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedPickleError("_codecs.encode of something other than bytes")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
for _package in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_package}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_package}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_package}.numeric", "_frombuffer"] = _frombuffer


class _Answer:
    """A function that a pickle may have called, but not change: it could set attributes of one."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise RefusedPickleError("it changes a function")


class _Unpickler(pickle.Unpickler):
    """Looks names up in a table and nowhere else."""

    known: Mapping[tuple[str, str], Callable[..., Any]] = _KNOWN

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise RefusedPickleError(f"it asks for {module}.{name}")
        return _Answer(self.known[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedPickleError("it refers to objects outside the file")


def load_arrays(
    path: Path, also: Mapping[tuple[str, str], Callable[..., Any]] | None = None
) -> Any:
    """The arrays of a pickle file, in the dictionaries, lists and tuples they are kept in.

    Args:
        also: more names a pickle may ask for and the safe functions that answer.
    Raises:
        RefusedPickleError: the pickle asks for anything else.
        ValueError, EOFError, pickle.UnpicklingError and others: the file is damaged.
    """
    with open(path, "rb") as file:
        unpickler = _Unpickler(file, encoding="latin1")
        unpickler.known = {**_KNOWN, **(also or {})}
        return _finished(unpickler.load())


def _finished(value: Any) -> Any:
    """The value with arrays in the place of what stood for them."""
    if isinstance(value, _Array):
        if value.array is None:
            raise RefusedPickleError("an array without numbers")
        return value.array
    if isinstance(value, dict):
        return {key: _finished(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finished(item) for item in value]
    return value
