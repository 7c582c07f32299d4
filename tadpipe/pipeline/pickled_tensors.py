"""Tensor files of features: .pt files, and the tensors inside pickled dictionaries (HACS).

Both go through torch's own restricted loader; a tensor is handed over as a numpy array.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tadpipe.store.feature_files import (
    FeatureFileError,
    FeatureFileReason,
    damaged,
)
from tadpipe.store.restricted_pickle import RefusedPickleError

Array = np.ndarray[Any, Any]


def read_tensor(path: Path) -> Array:
    """The tensor of a .pt file.

    Raises:
        FeatureFileError: not there, damaged, or something other than a tensor.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FeatureFileError(FeatureFileReason.NOT_FOUND, "File not found.", str(path)) from None
    except pickle.UnpicklingError as error:
        if "unsupported global" not in str(error).lower():
            raise damaged(path, error) from None
        raise FeatureFileError(
            FeatureFileReason.REFUSED_PICKLE,
            "The file holds more than a tensor.",
            str(path),
            "Tensor files are only read when they hold a tensor. Save it again with torch.save.",
        ) from None
    except (RuntimeError, OSError, ValueError, EOFError, LookupError, TypeError) as error:
        raise damaged(path, error) from None
    if not isinstance(value, torch.Tensor):
        raise FeatureFileError(
            FeatureFileReason.WRONG_SHAPE,
            "The file does not hold a tensor.",
            f"{path}: {type(value).__name__}",
        )
    return _numbers(value)


def _numbers(tensor: torch.Tensor) -> Array:
    detached = tensor.detach()
    return (detached.float() if detached.dtype == torch.bfloat16 else detached).numpy()


def _storage(raw: object) -> Array:
    if not isinstance(raw, bytes):
        raise RefusedPickleError("a tensor without bytes")
    storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise RefusedPickleError("a tensor without numbers")
    flat = torch.tensor([], dtype=storage.dtype).set_(storage)
    return _numbers(flat)


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> Array:
    """A tensor on a storage, which it must not reach out of or be larger than."""
    if not isinstance(storage, np.ndarray) or not (
        isinstance(offset, int) and isinstance(size, tuple) and isinstance(stride, tuple)
    ):
        raise RefusedPickleError("a tensor without numbers")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise RefusedPickleError("a tensor without numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size or last >= len(storage) or math.prod(size) > len(storage):
        raise RefusedPickleError("a tensor that is not within its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


# What a pickle may ask for besides arrays, and who answers.
TENSOR_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
