"""Stores on object storage keep the contract; what goes wrong there is said clearly."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tadpipe.errors import ConfigError, NoAnswerError, StoreError
from tadpipe.location import Address, below, location
from tadpipe.store import shards
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.local_work import work_folder
from tadpipe.store.objects import Objects
from tadpipe.store.verify import verify
from tests.unit.store.contract import StoreContract
from tests.unit.store.small_videos import SPEC, content, fill, rows, times


class TestObjectsInMemory(StoreContract):
    suffix = ".zarr"
    packs_through = (shards, "write_part")

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Address:  # type: ignore[override]
        monkeypatch.setenv("TADPIPE_WORK", str(tmp_path / "work"))
        return Address("memory", f"{secrets.token_hex(6)}/features.zarr")


@pytest.mark.slow  # every request takes some 10 ms
class TestObjectsOnS3(StoreContract):
    suffix = ".zarr"
    packs_through = (shards, "write_part")

    @pytest.fixture
    def path(self, s3_bucket: str) -> Address:  # type: ignore[override]
        return address(f"{s3_bucket}/folder/features.zarr")


def address(text: str) -> Address:
    place = location(text)
    assert isinstance(place, Address)
    return place


@pytest.fixture
def store(s3_bucket: str) -> FeatureStore:
    return FeatureStore.create(f"{s3_bucket}/x.zarr")


@pytest.fixture
def s3_drivers() -> Iterator[None]:
    """Drivers connect by the environment of when they are made: none from before or for after."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def test_two_machines_write_and_read_one_store(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, range(4), part_rows=150)
    monkeypatch.setenv("TADPIPE_WORK", str(tmp_path / "other machine"))
    other = FeatureStore.open(str(store.path), "a")
    assert other.has_content(SPEC.fid, content(3))
    fill(other, [4])
    store.refresh()
    assert all(np.array_equal(store[f"v{seed}"][:], rows(seed)) for seed in range(5))
    assert verify(store, deep=True) == []


def test_object_is_created_once(s3_bucket: str) -> None:
    objects = Objects(address(f"{s3_bucket}/x.zarr"))
    assert objects.create("commit", b"first")
    assert not objects.create("commit", b"second")
    assert objects.read("commit") == b"first"


def test_storage_that_overwrites_is_refused(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objects, "create", lambda self, key, raw: self.put(key, raw) is None)
    with pytest.raises(StoreError, match="ignores conditional puts"):
        fill(store, [1])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every request for a range, as they are made."""
    made: list[int] = []
    read_range = Objects.read_range
    monkeypatch.setattr(
        Objects,
        "read_range",
        lambda self, key, start, stop: (
            made.append(stop - start) or read_range(self, key, start, stop)
        ),
    )
    return made


def test_window_is_one_request_for_its_bytes(store: FeatureStore, reads: list[int]) -> None:
    fill(store, [1, 5])
    view = store["v5"]
    view[:1]  # looks at the index once
    reads.clear()
    assert np.array_equal(view[3:7], rows(5)[3:7])
    assert reads == [4 * 6 * 2]


def test_rows_that_are_kept_are_asked_for_once(store: FeatureStore, reads: list[int]) -> None:
    fill(store, [1, 5])
    store.keep_rows()
    view = store["v5"]
    view[:1]
    asked = len(reads)
    assert np.array_equal(store["v5"][3:7], rows(5)[3:7])
    assert np.array_equal(view[1:9:3], rows(5)[1:9:3])
    assert len(reads) == asked


def test_times_that_are_kept_are_those_given(store: FeatureStore, reads: list[int]) -> None:
    fill(store, [1, 5])
    store.keep_rows()
    first = store["v5"].times
    asked = len(reads)
    assert np.array_equal(first, times(len(rows(5))))
    assert np.array_equal(store["v5"].times, first)
    assert len(reads) == asked


def test_disk_without_room_for_kept_rows_leaves_the_store_readable(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, [1, 5])
    store.keep_rows()
    monkeypatch.setattr("tadpipe.store.kept_rows.RESERVE_BYTES", 1 << 60)
    assert np.array_equal(store["v1"][:], rows(1))
    assert np.array_equal(store["v5"][3:7], rows(5)[3:7])
    assert caplog.text.count("read from the store every time") == 1


def test_reader_follows_rows_whose_object_is_gone(store: FeatureStore) -> None:
    fill(store, [1, 2], part_rows=1)
    view = FeatureStore.open(store.path)["v2"]
    view[:1]
    store.compact()
    store.gc(grace_sec=0)
    assert np.array_equal(view[:], rows(2))


def stop_answering(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """From now on requests for keys that hold `word` are not answered."""
    for name in ("read", "read_range"):
        whole = getattr(Objects, name)

        def refuse(self: Objects, key: str, *args: int, whole: Any = whole) -> bytes:
            if word in key:
                raise NoAnswerError("The object storage does not answer.", key)
            return bytes(whole(self, key, *args))

        monkeypatch.setattr(Objects, name, refuse)


@pytest.mark.parametrize("word", ["commits/", "features/c.", "times/", "features/zarr.json"])
def test_outage_is_no_damage(
    word: str, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [1, 2])
    stop_answering(monkeypatch, word)
    with pytest.raises(NoAnswerError):
        verify(FeatureStore.open(store.path), deep=True)


def test_outage_is_not_looked_behind(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, [1, 2])
    view = store["v1"]
    stop_answering(monkeypatch, "features/c.")
    looked: list[str] = []
    monkeypatch.setattr(FeatureStore, "moved", lambda self, fid, row: looked.append(fid))
    with pytest.raises(NoAnswerError):
        view[:]
    assert looked == []


def test_compaction_ends_when_the_storage_does(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [1, 2], part_rows=1)
    stop_answering(monkeypatch, "features/c.")
    with pytest.raises(NoAnswerError):
        store.compact()


def test_commits_read_once_are_kept_on_this_machine(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [1, 2], part_rows=1)
    FeatureStore.open(store.path).videos(SPEC.fid)
    asked: list[str] = []
    read_many = Objects.read_many
    monkeypatch.setattr(
        Objects, "read_many", lambda self, keys: asked.extend(keys) or read_many(self, keys)
    )
    again = FeatureStore.open(store.path)
    assert list(again.videos(SPEC.fid)) == ["v1", "v2"]
    assert asked == []


def test_missing_bucket_is_an_error_that_says_so(s3_environment: dict[str, str]) -> None:
    for attempt in (FeatureStore.open, FeatureStore.create):
        with pytest.raises(StoreError, match="bucket does not exist"):
            attempt("s3://no-such-bucket-here/x.zarr")


def test_endpoint_that_is_down_is_an_error_that_says_so(
    s3_environment: dict[str, str], s3_drivers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="does not answer") as caught:
        FeatureStore.open("s3://bucket/x.zarr")
    assert s3_environment["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_missing_credentials_are_an_error_that_says_so(
    s3_environment: dict[str, str],
    s3_drivers: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none either"))
    with pytest.raises(StoreError, match="No credentials"):
        FeatureStore.open("s3://bucket/x.zarr")


def test_unknown_scheme_names_what_to_install() -> None:
    with pytest.raises(StoreError, match="no driver for nonsense://"):
        FeatureStore.open("nonsense://bucket/x.zarr")


def test_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="no user names") as caught:
        location("s3://key:hunter2@bucket/x.zarr")
    assert "hunter2" not in str(caught.value)


def test_address_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="names a bucket and a folder"):
        location("s3://bucket/")


def test_scheme_is_known_in_capitals() -> None:
    assert str(location("S3://bucket/x.zarr")) == "s3://bucket/x.zarr"


def test_address_without_slashes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean s3://bucket/x\.zarr\?"):
        location("S3:bucket/x.zarr")


def test_address_outlives_pathlib() -> None:
    assert str(location(Path("s3://bucket/a/x.zarr/"))) == "s3://bucket/a/x.zarr"
    assert below(Path("project"), Path("s3://bucket/x.zarr")) == Path("s3:/bucket/x.zarr")
    assert below(Path("project"), Path("store/x.zarr")) == Path("project/store/x.zarr")
    assert location("file:///data/x.zarr") == Path("/data/x.zarr")


def test_addresses_of_equal_names_have_work_folders_of_their_own() -> None:
    folders = {work_folder(address(f"s3://{bucket}/x.zarr")) for bucket in "ab"}
    assert len(folders) == 2
