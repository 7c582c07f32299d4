"""What can be told without a backbone is told before one is loaded, and nothing is made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch._dynamo.exc import TorchDynamoException

from tadpipe.backbones.loading import load_backbone
from tadpipe.errors import ConfigError, StoreError, TadpipeError
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.extract_checks import check_store
from tadpipe.store.feature_store import FeatureStore
from tests.corpus import make_video

BOTH = [None, 2]  # this process, or workers


class Loaded(Exception):
    """The backbone was about to be loaded."""


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **named: Any) -> None:
        raise Loaded

    def no_compiler(device: Any) -> None:
        raise ConfigError("torch.compile does not work here.")

    monkeypatch.setattr("tadpipe.pipeline.extract_spec.load_backbone", load)
    monkeypatch.setattr("tadpipe.pipeline.extract.require_compiler", no_compiler)
    monkeypatch.setattr("tadpipe.pipeline.scheduler_client.CONNECT_SEC", 0.2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("{}")
    Path("folder.zarr").mkdir()
    Path("folder.zarr", "mine.txt").touch()
    Path("other.zarr").mkdir()
    Path("other.zarr", "zarr.json").write_text('{"attributes": {}}')
    Path("broken.h5").write_text("nothing of HDF5")


def begin(**settings: Any) -> None:
    given = {"store": "s.zarr", "device": "cpu", "weights": "random", **settings}
    extract(["v.mp4"], backbone="videomae-tiny", **given)


@pytest.mark.parametrize("workers", BOTH, ids=["alone", "workers"])
@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"store": "nosuffix"}, ConfigError, "ends in none of"),
        ({"store": "file/s.zarr"}, StoreError, "Cannot write to the feature store"),
        ({"store": "folder.zarr"}, StoreError, "Not a feature store"),
        ({"store": "other.zarr"}, StoreError, "Not a feature store"),
        ({"store": "s3://bucket"}, ConfigError, "a bucket and a folder"),
        ({"shard_of": (9, 8)}, ConfigError, "--shard 9/8"),
        ({"device": "cuda"}, ConfigError, "No CUDA device"),
        ({"device": "gpu"}, ConfigError, "Unknown device"),
        ({"fps": float("nan")}, ConfigError, "fps must be positive"),
        ({"frame_interval": 0}, ConfigError, "frame_interval must be positive"),
        ({"clip_len": 0}, ConfigError, "clip_len must be positive"),
        ({"pixels": "i4d"}, ConfigError, "Unknown pixel recipe"),
        ({"flow": "nowhere"}, ConfigError, "no folder nowhere"),
        ({"compile": True}, ConfigError, "torch.compile does not work"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_mistake_is_told_before_the_backbone_is_loaded(
    settings: dict[str, Any], kind: type[TadpipeError], words: str, workers: int | None
) -> None:
    with pytest.raises(kind, match=words):
        begin(workers=workers, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workers": 0}, "There must be a worker"),
        ({"workers": 2, "store": "s.h5"}, "one writer at a time"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "Give one of them"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "No Dask scheduler answers"),
        ({"scheduler": "nonsense"}, "No Dask scheduler answers"),
        ({"scheduler": ""}, "No Dask scheduler answers"),
        ({"scheduler": "file"}, "No Dask scheduler answers"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_mistaken_workers_are_told_before_the_backbone_is_loaded(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        begin(**settings)


def test_damaged_hdf5_store_is_told_before_the_backbone_is_loaded() -> None:
    with pytest.raises(StoreError, match=r"HDF5 file cannot be read[^$]*broken.h5"):
        begin(store="broken.h5")


def test_checks_make_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Loaded):
        begin(store="new/folders/s.zarr")
    assert sorted(tmp_path.rglob("*")) == before


def test_store_may_be_made_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".zarr.json-killed").touch()
    check_store(tmp_path / "empty", several=True, dry_run=False)
    FeatureStore.create(tmp_path / "empty")


def test_dry_run_needs_no_place_that_can_be_written() -> None:
    check_store("file/s.zarr", several=False, dry_run=True)


def test_backbone_that_torch_cannot_compile_is_told_from_a_defect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any) -> None:
        raise TorchDynamoException("backend='inductor' raised:\nCppCompileError: out of memory")

    backbone = load_backbone("videomae-tiny", "random")
    monkeypatch.setattr("tadpipe.pipeline.extract_spec.load_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(type(backbone), "forward", fail)
    make_video(Path("v.mp4"), frames=20)
    with pytest.raises(ConfigError, match=r"videomae-tiny[^$]*out of memory[^$]*--compile"):
        begin()
