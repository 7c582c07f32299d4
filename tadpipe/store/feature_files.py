"""Files of existing features: read as arrays [T, C], written back in the layouts of the releases.

T rows, C channels. Readers take npy, npz (one named array), csv (one row per snippet below a line
of names), pickles of arrays and h5 (one dataset per video). A file that cannot be used raises a
FeatureFileError with a typed reason; nothing in a file is ever executed.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from tadpipe.errors import StoreError
from tadpipe.store.restricted_pickle import RefusedPickleError, load_arrays

PICKLE_SUFFIXES = frozenset({".pkl", ".pickle"})
HACS_KEYS = ("slow_feature", "fast_feature")  # each [1, C_i, T]
MAX_BYTES = 16 * 2**30  # of one video's features; more than this is a damaged or hostile file
Array = np.ndarray[Any, Any]
PickleNames = Mapping[tuple[str, str], Callable[..., Any]]


class FeatureFileReason(StrEnum):
    """Why a feature file could not be used; the words of the ledger."""

    NOT_FOUND = "not-found"
    PERMISSION = "permission"
    DAMAGED = "damaged-file"
    REFUSED_PICKLE = "refused-pickle"
    NO_SUCH_KEY = "no-such-key"
    WRONG_SHAPE = "wrong-shape"
    NOT_NUMBERS = "not-numbers"
    OUT_OF_RANGE = "out-of-range"
    NO_RATE = "no-frame-rate"
    OTHER_PROVENANCE = "other-provenance"
    NAME_TAKEN = "name-taken"


class FeatureFileError(StoreError):
    """A feature file that cannot be used; `reason` is what the ledger records."""

    def __init__(
        self, reason: FeatureFileReason, what: str, where: str = "", todo: str = ""
    ) -> None:
        super().__init__(what, where, todo)
        self.reason = reason


def read_array(path: Path, key: str, pickle_names: PickleNames | None = None) -> Array:
    """The array of an npy, npz, pickle or csv file, as it is in the file.

    Args:
        key: of the array in an npz file, or in a pickled dictionary.
        pickle_names: see `restricted_pickle.load_arrays`.
    Raises:
        FeatureFileError: not there, damaged, refused, or without that key.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        if suffix == ".npz":
            return _read_npz(path, key)
        if suffix in PICKLE_SUFFIXES:
            return _read_pickle(path, key, pickle_names)
        return _read_csv(path)
    except FeatureFileError:
        raise
    except RefusedPickleError as error:
        raise FeatureFileError(
            FeatureFileReason.REFUSED_PICKLE,
            f"The pickle holds more than arrays: {error}.",
            str(path),
            "Pickles are only read when they hold arrays. Save the array as .npy.",
        ) from None
    except OSError as error:
        raise _not_readable(path, error) from None
    except (
        *(ValueError, TypeError, LookupError, AttributeError, EOFError, pickle.UnpicklingError),
        *(zipfile.BadZipFile, MemoryError, RecursionError, OverflowError, NotImplementedError),
    ) as error:
        raise damaged(path, error) from None


def _read_npz(path: Path, key: str) -> Array:
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if key not in members:
            raise FeatureFileError(
                FeatureFileReason.NO_SUCH_KEY,
                f"The file has no array '{key}'.",
                f"{path}: {', '.join(members) or 'nothing'}",
                "Name the array with --key.",
            )
        if archive.getinfo(members[key]).file_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes unpacked")
        raw = archive.read(members[key])
    array: Array = np.load(io.BytesIO(raw), allow_pickle=False)
    return array


def _read_pickle(path: Path, key: str, names: PickleNames | None) -> Array:
    value = load_arrays(path, names)
    if isinstance(value, dict):
        if all(name in value for name in HACS_KEYS):
            return np.concatenate([_channels_first(value[name]) for name in HACS_KEYS]).T
        if key not in value:
            raise FeatureFileError(
                FeatureFileReason.NO_SUCH_KEY,
                f"The pickled dictionary has no '{key}'.",
                f"{path}: {', '.join(map(str, list(value)[:10])) or 'nothing'}",
                "Name the array with --key.",
            )
        value = value[key]
    if not isinstance(value, np.ndarray):
        raise FeatureFileError(
            FeatureFileReason.WRONG_SHAPE,
            "The pickle does not hold an array.",
            f"{path}: {type(value).__name__}",
        )
    return value


def _channels_first(value: object) -> Array:
    """[1, C, T] -> [C, T]."""
    if not isinstance(value, np.ndarray) or value.ndim != 3 or len(value) != 1:
        raise ValueError(f"{' and '.join(HACS_KEYS)} must be arrays [1, C, T]")
    return value[0]


def _read_csv(path: Path) -> Array:
    lines = path.read_text(encoding="utf-8-sig").splitlines()[1:]  # the first one names columns
    rows = [line for line in lines if line.strip()]
    if not rows:
        raise ValueError("no row below the line of column names")
    array: Array = np.loadtxt(rows, delimiter=",", dtype=np.float64, ndmin=2, comments=None)
    return array


def read_hdf5(path: Path) -> Iterator[tuple[str, Array | FeatureFileError]]:
    """(name, array) of every dataset of a file, or the error instead of the array.

    Links that lead out of the file are not followed.

    Raises:
        FeatureFileError: not there, or not an HDF5 file.
    """
    import h5py  # takes 0.2 s

    try:
        with h5py.File(path, "r") as file:
            for name in file:
                yield name, _dataset_or_error(h5py, file, name)
    except OSError as error:
        raise _not_readable(path, error) from None


def _dataset_or_error(h5py: Any, file: Any, name: str) -> Array | FeatureFileError:
    try:
        return _dataset(h5py, file, name)
    except FeatureFileError as error:
        return error
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        return damaged(Path(f"{file.filename}:{name}"), error)


def _dataset(h5py: Any, file: Any, name: str) -> Array:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError("a link, not a dataset")
    node = file[name]
    if not isinstance(node, h5py.Dataset) or node.external or node.is_virtual:
        raise FeatureFileError(
            FeatureFileReason.WRONG_SHAPE,
            "Expected one dataset per video.",
            f"{file.filename}: {name}",
        )
    if math.prod(node.shape or (0,)) * node.dtype.itemsize > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    array: Array = node[()]
    return array


def as_rows(array: Array, channels: int, where: str) -> Array:
    """The array as rows [T, C], whichever way round it is kept.

    Axes of length 1 before the last two are dropped. [T, C] is the layout of the releases and is
    taken where both sides are `channels` long.

    Raises:
        FeatureFileError: not numbers, or no side has the stated number of channels.
    """
    if array.dtype.kind not in "fiu":
        raise FeatureFileError(
            FeatureFileReason.NOT_NUMBERS,
            "The array does not hold numbers.",
            f"{where}: {array.dtype}",
        )
    shape = array.shape
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2 and array.size:
        if array.shape[1] == channels:
            return array
        if array.shape[0] == channels:
            return array.T
    raise FeatureFileError(
        FeatureFileReason.WRONG_SHAPE,
        f"Expected [T, {channels}] or [{channels}, T], T >= 1.",
        f"{where}: {list(shape)}",
        "Check --channels.",
    )


def damaged(path: Path, error: BaseException) -> FeatureFileError:
    """What to say of a file that is not what its suffix says."""
    said = (str(error) or type(error).__name__).splitlines()[0][:200]
    return FeatureFileError(
        FeatureFileReason.DAMAGED, "The feature file is damaged.", f"{path}: {said}"
    )


def _not_readable(path: Path, error: OSError) -> FeatureFileError:
    if isinstance(error, FileNotFoundError):
        return FeatureFileError(FeatureFileReason.NOT_FOUND, "File not found.", str(path))
    if isinstance(error, PermissionError):
        reason = FeatureFileReason.PERMISSION
        return FeatureFileError(reason, "The file may not be read.", str(path))
    return damaged(path, error)


def npy_bytes(array: Array) -> bytes:
    """The array as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz_bytes(array: Array, key: str = "feats") -> bytes:
    """The array as an .npz file, under one key."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{key: array})
    return buffer.getvalue()


def write_hdf5(path: Path, videos: Iterator[tuple[str, Array]]) -> None:
    """A new HDF5 file with one dataset [T, C] per video."""
    import h5py

    with h5py.File(path, "x") as file:
        for name, array in videos:
            file.create_dataset(name, data=array)
