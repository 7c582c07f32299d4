"""Names of feature stores: which say their kind, and which one was meant where none is."""

from __future__ import annotations

from collections.abc import Sequence

from tadpipe.errors import ConfigError, StoreError
from tadpipe.location import Address, Location
from tadpipe.registry import nearest

HDF5_SUFFIXES = (".h5", ".hdf5")


def check_name(path: Location) -> None:
    """Refuse a name for a new store that does not say what kind of store it is.

    Raises:
        ConfigError: it ends in neither .zarr nor .h5 nor .hdf5.
    """
    kinds = (".zarr",) if isinstance(path, Address) else (".zarr", *HDF5_SUFFIXES)
    if path.suffix.lower() not in kinds:
        raise ConfigError(
            "The name of a new store says what kind it is.",
            f"{path}: ends in none of {', '.join(kinds)}",
            f"Name it {path}.zarr (a folder, any number of writers)"
            + ("." if len(kinds) == 1 else f" or {path}.h5 (one file, one writer)."),
        )


def not_there(path: Location, beside: Sequence[str]) -> StoreError:
    """There is no store; perhaps one of its neighbours is meant."""
    near = nearest(path.name, [name for name in beside if not name.startswith(".")])
    hint = f"Did you mean {path.parent / near[0]}? " if near else ""
    return StoreError(
        "The feature store does not exist.",
        str(path),
        f"{hint}tadpipe extract --store {path} makes it.",
    )
