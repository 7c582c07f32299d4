"""Random histories of a store against a model of a few lines; and order never matters."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.verify import verify
from tests.unit.store.small_videos import SPEC, add, content, rows, times

SEEDS = st.integers(0, 9)
NAMES = st.text(alphabet="ab/é\udc80", min_size=1, max_size=2)
QUICK = settings(
    max_examples=10,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking a history that syncs to disk takes minutes
    suppress_health_check=list(HealthCheck),
)


class StoreHistory(RuleBasedStateMachine):
    """The model: names mean contents, contents have rows, killed writers leave finished videos."""

    suffix = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = FeatureStore.create(self.folder / f"x{self.suffix}")
        self.names: dict[str, int] = {}
        self.spooled: list[tuple[str, int]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(
        videos=st.lists(st.tuples(NAMES, SEEDS), max_size=4),
        part_rows=st.sampled_from([1, 100, 32_768]),
    )
    def write(self, videos: list[tuple[str, int]], part_rows: int) -> None:
        with self.store.writer(SPEC, part_rows=part_rows) as writer:
            for name, seed in videos:
                add(writer, name, seed)
        self.names.update([*self.spooled, *videos])
        self.spooled = []

    @rule(videos=st.lists(st.tuples(NAMES, SEEDS), max_size=3))
    def write_and_die(self, videos: list[tuple[str, int]]) -> None:
        known = {seed for _, seed in self.spooled}
        writer = FeatureStore.open(self.store.path, "a").writer(SPEC)
        writer.__enter__()
        for name, seed in videos:
            is_new = not self.store.has_content(SPEC.fid, content(seed)) and seed not in known
            if is_new:  # a name without rows is not spooled: it would be lost, and said again
                add(writer, name, seed)
                self.spooled.append((name, seed))
                known.add(seed)
        writer._spool._lease.release()  # type: ignore[union-attr]
        writer._held.pop_all()
        lease = getattr(writer._store.backend, "_lease", None)
        if lease is not None:
            lease.release()

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.names:
            self.store.delete(SPEC.fid, name)
            del self.names[name]

    @rule()
    def collect_garbage(self) -> None:
        self.store.gc(grace_sec=0)
        self.names.update(self.spooled)
        self.spooled = []

    @rule()
    def open_again(self) -> None:
        self.store = FeatureStore.open(self.store.path, "a")

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        videos = self.store.videos(SPEC.fid)
        assert set(videos) == set(self.names)
        for name, seed in self.names.items():
            view = self.store.features(name, fid=SPEC.fid)
            assert videos[name].content_sha256 == content(seed)
            assert np.array_equal(view[:], rows(seed))
            assert np.array_equal(view.times, times(len(rows(seed))))

    @invariant()
    def is_sound(self) -> None:
        assert verify(FeatureStore.open(self.store.path)) == []


class ZarrHistory(StoreHistory):
    suffix = ".zarr"


class Hdf5History(StoreHistory):
    suffix = ".h5"


TestZarrHistory = ZarrHistory.TestCase
TestZarrHistory.settings = QUICK
TestHdf5History = Hdf5History.TestCase
TestHdf5History.settings = QUICK


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@settings(QUICK, max_examples=8)
@given(order=st.permutations(range(6)), part_rows=st.integers(1, 400), cut=st.integers(0, 6))
def test_write_order_never_changes_what_is_read(
    suffix: str, order: list[int], part_rows: int, cut: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.create(Path(folder) / f"x{suffix}")
        for half in (order[:cut], order[cut:]):
            with store.writer(SPEC, part_rows=part_rows) as writer:
                for seed in half:
                    add(writer, f"v{seed}", seed)
        assert list(store.videos(SPEC.fid)) == [f"v{seed}" for seed in order]
        for seed in order:
            assert np.array_equal(store[f"v{seed}"][:], rows(seed))
