"""Pickles of arrays are read whatever wrote them; a pickle that asks for more is refused."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tadpipe.store.feature_files import FeatureFileError, read_array
from tadpipe.store.restricted_pickle import RefusedPickleError, load_arrays


class Harmful:
    """Makes a file when it is unpickled the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4"])
def test_arrays_come_back_as_they_were(tmp_path: Path, protocol: int, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = OrderedDict(a=array, b=[np.asfortranarray(array)])
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    found = load_arrays(path)
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"][0], array)
    assert found["a"].dtype == array.dtype


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    path, made = tmp_path / "x.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"feats": np.zeros((2, 2)), "x": Harmful(made)}))
    with pytest.raises(RefusedPickleError, match=r"posix\.mkdir|nt\.mkdir"):
        load_arrays(path)
    with pytest.raises(FeatureFileError, match="Save the array") as caught:
        read_array(path, "feats")
    assert caught.value.reason == "refused-pickle"
    assert not made.exists()


@pytest.mark.parametrize("value", [np.array([{}]), np.array(["a"]), np.zeros(2, "f4,f4"), {1j}])
def test_what_is_not_numbers_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises((RefusedPickleError, FeatureFileError)):
        read_array(path, "feats")


def test_a_pickle_cannot_change_the_functions_it_calls(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"cnumpy.core.multiarray\n_reconstruct\n(N}S'__defaults__'\n(K\x01tstb.")
    with pytest.raises(RefusedPickleError, match="changes a function"):
        load_arrays(path)


def test_a_shape_without_its_bytes_is_refused(tmp_path: Path) -> None:
    raw = pickle.dumps(np.zeros((2, 3), np.float32), protocol=5)
    path = tmp_path / "x.pkl"
    path.write_bytes(raw.replace(b"K\x02K\x03", b"K\xffK\xff"))
    with pytest.raises(RefusedPickleError, match=r"shape \(255, 255\) with 24 bytes"):
        load_arrays(path)
