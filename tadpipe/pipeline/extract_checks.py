"""What can be known to be wrong with an extraction before its backbone is loaded.

A large backbone takes minutes to load; a store that cannot be written is said before. Nothing is
made here. Whether torch can compile a backbone shows with its first clips alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from tadpipe.errors import ConfigError
from tadpipe.location import Address, Location, location
from tadpipe.store.durable import writing
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.store_names import HDF5_SUFFIXES, check_name
from tadpipe.store.zarr_folder import is_free


def check_store(store: Path | str, *, several: bool, dry_run: bool) -> None:
    """Refuse a place that cannot hold the features.

    Args:
        several: workers write to it at the same time.
        dry_run: nothing will be written, so that it need not be possible.
    Raises:
        ConfigError: a name that says no kind of store, or a kind that takes one writer only.
        StoreError: it is something else, cannot be read, or cannot be written.
    """
    place = location(store)
    if several and _is_hdf5(place):
        raise ConfigError(
            "An HDF5 store takes one writer at a time.",
            str(place),
            "Extract into a .zarr store, or leave --workers and --scheduler out.",
        )
    if not FeatureStore.exists(place):
        check_name(place)
    elif isinstance(place, Address) or _is_hdf5(place) or not is_free(place):
        FeatureStore.open(place, "a")
    if isinstance(place, Path) and not dry_run:
        _check_writable(place)


def check_workers(workers: int | None, scheduler: str | None) -> None:
    """Refuse numbers of workers that there cannot be.

    Raises:
        ConfigError: fewer than one, or beside a cluster that has its own.
    """
    if workers is not None and workers < 1:
        raise ConfigError("There must be a worker.", f"workers = {workers}", "Take 1 or more.")
    if workers and scheduler is not None:
        raise ConfigError(
            "--workers starts processes here, --scheduler uses those of a cluster.",
            f"--workers {workers} --scheduler {scheduler}",
            "Give one of them; the cluster has the workers that were started for it.",
        )


@contextmanager
def compiling(spec: FeatureSpec) -> Iterator[None]:
    """Tell that torch could not compile a backbone from what is wrong with a video or a worker.

    Raises:
        ConfigError: torch gave up on it.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # seconds, and no use before

        if not isinstance(error, TorchDynamoException):
            raise
        text = str(error).removeprefix("backend='inductor' raised:").strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise ConfigError(
            "torch.compile does not work for this backbone.",
            f"{spec.backbone}, {spec.compute_dtype}: {reason}",
            "Leave --compile out; --debug shows what torch says.",
        ) from error


def _is_hdf5(place: Location) -> bool:
    is_file = isinstance(place, Path) and place.is_file()
    return is_file or Path(place.name).suffix.lower() in HDF5_SUFFIXES


def _check_writable(place: Path) -> None:
    """Try it with a file without a name, in the store or where it would be made.

    Raises:
        StoreError: the system refuses.
    """
    with writing(place):
        if place.is_file():
            place.open("r+b").close()
        folder = place if place.is_dir() else place.parent
        while not folder.exists():
            folder = folder.parent
        with TemporaryFile(dir=folder):
            pass
