"""Both kinds of store keep the contract; and what is no store is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tadpipe.errors import StoreError
from tadpipe.store.backend import VERSION_KEY
from tadpipe.store.feature_store import FeatureStore
from tests.unit.store.contract import StoreContract
from tests.unit.store.small_videos import fill


class TestZarrFolder(StoreContract):
    suffix = ".zarr"


class TestHdf5File(StoreContract):
    suffix = ".h5"


def test_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(StoreError, match="Not a feature store"):
        FeatureStore.open(tmp_path)
    with pytest.raises(StoreError, match="not empty and not a feature store"):
        FeatureStore.create(tmp_path)


def test_zarr_group_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(StoreError, match="Not a feature store"):
        FeatureStore.open(tmp_path)


def test_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"not HDF5")
    with pytest.raises(StoreError, match=r"cannot be read"):
        FeatureStore.open(tmp_path / "x.h5")


def test_later_format_of_a_zarr_store_is_refused(tmp_path: Path) -> None:
    FeatureStore.create(tmp_path / "x.zarr")
    file = tmp_path / "x.zarr" / "zarr.json"
    file.write_text(file.read_text().replace(f'"{VERSION_KEY}": 1', f'"{VERSION_KEY}": 99'))
    with pytest.raises(StoreError, match="version 99"):
        FeatureStore.open(tmp_path / "x.zarr")


def test_later_format_of_an_hdf5_store_is_refused(tmp_path: Path) -> None:
    FeatureStore.create(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs[VERSION_KEY] = 99
    with pytest.raises(StoreError, match="version 99"):
        FeatureStore.open(tmp_path / "x.h5")


def test_hdf5_by_another_name_is_known_by_its_content(tmp_path: Path) -> None:
    fill(FeatureStore.create(tmp_path / "x.h5"), [1])
    (tmp_path / "x.h5").rename(tmp_path / "moved.bin")
    assert list(FeatureStore.open(tmp_path / "moved.bin").table().names()) == ["v1"]


def test_store_package_never_loads_torch(tmp_path: Path) -> None:
    package = Path(__file__).parents[3] / "tadpipe" / "store"
    names = [f"tadpipe.store.{path.stem}" for path in sorted(package.glob("[a-z]*.py"))]
    script = f"import sys, {', '.join(names)}; print('torch' in sys.modules, 'zarr' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_view_refuses_to_be_read_without_a_copy(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "x.zarr")
    fill(store, [1])
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(store["v1"], copy=False)
