"""A disk that is full, of a limited size or read-only: one clear error, nothing committed lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tadpipe.cli.main import run
from tadpipe.errors import StoreError
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.verify import verify
from tests.unit.store.small_videos import SPEC, add, content, rows

ROWS = 4000  # of a video: 48 kB
FIRST_KB, THEN_KB = 600, 8000
SEEDS = range(16)


class Disk:
    """A file system of a given size, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={FIRST_KB}k", "tmpfs")

    def _mount(self, *words: str) -> None:
        command = ["mount", *words, str(self.path)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            pytest.skip(f"no disk of its own can be mounted here: {answer.stderr.strip()}")

    def resize(self, size_kb: int) -> None:
        self._mount("-o", f"remount,size={size_kb}k")

    def make_read_only(self) -> None:
        """By a second mount on top, which nobody has opened anything of for writing."""
        self._mount("--bind", str(self.path))
        self._mount("-o", "remount,bind,ro")

    def make_writable(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk of its own")
    made = Disk(tmp_path / "disk")
    yield made
    subprocess.run(["umount", "-l", str(made.path)], check=True)


def fill(store: FeatureStore) -> None:
    with store.writer(SPEC, part_rows=2 * ROWS) as writer:
        for seed in SEEDS:
            if not store.has_content(SPEC.fid, content(seed)):
                add(writer, f"v{seed}", seed, rows(seed, ROWS))


def check(path: Path) -> int:
    """Every video that is there is right; returns how many there are."""
    store = FeatureStore.open(path)
    assert verify(store, deep=True) == []
    names = list(store.videos(SPEC.fid))
    assert all(np.array_equal(store[name][:], rows(int(name[1:]), ROWS)) for name in names)
    return len(names)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_full_disk_is_one_error_and_the_next_run_goes_on(
    disk: Disk, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = disk.path / f"x{suffix}"
    with pytest.raises(StoreError, match="The disk is full"):
        fill(FeatureStore.create(path))
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    committed = check(path)
    waiting = FeatureStore.open(path).status().waiting_in_spool
    assert 0 < committed + waiting < len(SEEDS)
    disk.resize(THEN_KB)
    again = FeatureStore.open(path, "a")
    fill(again)
    assert check(path) == len(SEEDS)
    assert sum(c.rows for c in again.videos(SPEC.fid).commits) == ROWS * len(SEEDS)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_compacting_on_a_full_disk_leaves_the_store_as_it_was(disk: Disk, suffix: str) -> None:
    disk.resize(2 * FIRST_KB)
    store = FeatureStore.create(disk.path / f"x{suffix}")
    for seed in range(4):
        with store.writer(SPEC) as writer:
            add(writer, f"v{seed}", seed, rows(seed, ROWS))
    ballast = disk.path / "ballast"
    free = os.statvfs(disk.path).f_bavail * os.statvfs(disk.path).f_frsize
    ballast.write_bytes(bytes(max(0, free - 40_000)))
    with pytest.raises(StoreError, match="The disk is full"):
        store.compact()
    assert check(store.path) == 4
    ballast.unlink()
    disk.resize(THEN_KB)
    assert FeatureStore.open(store.path, "a").compact().parts_after == 1
    assert check(store.path) == 4


def test_merging_into_a_full_disk_takes_whole_parts_only(disk: Disk, tmp_path: Path) -> None:
    source = FeatureStore.create(tmp_path / "source.zarr")
    fill(source)
    path = disk.path / "x.zarr"
    with pytest.raises(StoreError, match="The disk is full"):
        FeatureStore.create(path).merge(source)
    check(path)
    disk.resize(THEN_KB)
    FeatureStore.open(path, "a").merge(FeatureStore.open(source.path))
    assert check(path) == len(SEEDS)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_read_only_store_is_read_and_says_that_it_cannot_be_written(
    disk: Disk, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = disk.path / f"x{suffix}"
    store = FeatureStore.create(path)
    with store.writer(SPEC) as writer:
        add(writer, "v1", 1, rows(1, ROWS))
    disk.make_read_only()
    try:
        assert check(path) == 1
        assert FeatureStore.open(path).status().waiting_in_spool == 0
        attempts: list[Callable[[], object]] = [
            lambda: fill(FeatureStore.open(path, "a")),
            lambda: FeatureStore.open(path, "a").delete(SPEC.fid, "v1"),
            lambda: FeatureStore.open(path, "a").set_annotations(b"{}"),
        ]
        for attempt in attempts:
            with pytest.raises(StoreError, match="Cannot write to the feature store"):
                attempt()
        assert run(["store", "delete", "v1", "--store", str(path)]) == 1
        assert "Read-only file system" in capsys.readouterr().err
    finally:
        disk.make_writable()
    assert check(path) == 1


LIMITED = """
import resource, sys
from pathlib import Path
from tadpipe.cli.main import run
from tests.faults.test_full_disk import fill
from tadpipe.errors import StoreError
from tadpipe.store.feature_store import FeatureStore

store = FeatureStore.create(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    fill(store)
except StoreError as error:
    print(error.what)
"""


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_limit_on_file_sizes_is_an_error_and_nothing_is_lost(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    command = [sys.executable, "-c", LIMITED, str(path), "90000"]  # a video fits, a part does not
    limited = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert limited.stdout.strip() == "The disk is full."
    fill(FeatureStore.open(path, "a"))
    assert check(path) == len(SEEDS)
