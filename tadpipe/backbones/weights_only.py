"""Files of `torch.save`, read without running anything they ask for.

Everything goes through `torch.load(weights_only=True)`. A training state may also hold numbers of
numpy (a score, a learning rate): the two names they are made of are answered by functions here that
only keep the number. Every other name is refused, and the error says which it was.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from tadpipe.errors import CheckpointError

NAMED = re.compile(r"GLOBAL ([\w.]+)")  # in torch's words
LARGEST_PICKLE = 64 << 20  # bytes of a program that is searched for the names it asks for
HARMLESS = re.compile(r"torch(\.|$)|collections\.OrderedDict|numpy\.|_codecs\.encode")
NUMBERS = {  # numpy's codes and those of struct
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "b1": "?",
}


def read_pickled(path: Path) -> Any:
    """What `torch.save` put into a file, on the CPU.

    Raises:
        CheckpointError: no such file, not written by torch, damaged, or a pickle that asks for more
            than tensors, plain containers and numbers.
    """
    if not path.is_file():
        what = "This is a folder, not a weights file." if path.is_dir() else "File not found."
        raise CheckpointError(what, str(path), "Name a file of weights.")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(_ANSWERS)):
            warnings.simplefilter("ignore")  # of other pickle protocols and old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _wanted(path, str(error))
        if wanted:
            raise CheckpointError(
                "The file holds more than weights, and running its code is refused.",
                f"{path}: it wants to import {wanted}",
                "Save the state dict alone where the file comes from and is trusted "
                "(for example as safetensors), then use that file.",
            ) from None
        raise _unreadable(path, error) from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        struct.error,
    ) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, pickle.UnpicklingError):  # torch's advice to read it unsafely comes first
        lines = [line for line in lines if line.startswith("Unsupported")]
    elif not isinstance(error, (RuntimeError, OSError)):  # torch ran into bytes that mean nothing
        lines = []
    reason = lines[0].split(". ")[0] if lines else "not what torch.save writes"
    return CheckpointError(
        "The weights file cannot be read.",
        f"{path}: {reason}",
        "It is damaged or cut off, or was not written by torch.save. Fetch it again.",
    )


def _wanted(path: Path, message: str) -> str:
    """What a refused pickle asks for, or "" if it is only no pickle that torch reads."""
    named = NAMED.search(message)
    if named:
        return named[1]
    strange = [name for name in _names_in(path) if not HARMLESS.match(name)]
    return ", ".join(dict.fromkeys(strange))


def _names_in(path: Path) -> list[str]:
    """Every name a pickle looks up, found without running it."""
    names: list[str] = []
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(_program(path)):
            if opcode.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
                names.append(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except (ValueError, OSError, zipfile.BadZipFile):
        pass  # what was found until there is what there is to say
    return names


def _program(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(LARGEST_PICKLE)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as file:
                    return file.read(LARGEST_PICKLE)
    return b""


class _NumberType:
    """Stands for numpy.dtype: a plain number and its byte order."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in NUMBERS:
            raise pickle.UnpicklingError(f"Unsupported numpy type {code!r}")
        self.code, self.order = NUMBERS[str(code)], "<"

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|"):
            raise pickle.UnpicklingError("Unsupported numpy type")
        self.order = "<" if order == "|" else str(order)


def _number(kind: object, raw: object) -> float | int | bool:
    """Stands for numpy's `scalar`: the number as Python's own."""
    if not isinstance(kind, _NumberType) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("Unsupported numpy number")
    (number,) = struct.unpack(kind.order + kind.code, raw)
    assert isinstance(number, (float, int))
    return number


# What a pickle may ask for besides torch's own, and who answers.
_ANSWERS = (
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
)
