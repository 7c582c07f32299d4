"""delete, compact, merge and gc as a user types them, on small made-up stores."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import pytest

from tadpipe.cli.main import run
from tadpipe.store.feature_store import FeatureStore
from tests.end_to_end.project import command
from tests.unit.store.small_videos import SPEC, add, fill, rows

CapFd = pytest.CaptureFixture[str]
NAME = "vidéo 視頻"


@pytest.fixture(params=["x.zarr", "x.h5", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of four videos in three parts, one name in two scripts."""
    monkeypatch.setenv("TADPIPE_WORK", str(tmp_path / "work"))
    path = str(tmp_path / request.param)
    if request.param == "memory://":
        path = f"memory://{secrets.token_hex(6)}/x.zarr"
    store = FeatureStore.create(path)
    fill(store, [1])
    fill(store, [2, 3])
    with store.writer(SPEC) as writer:
        add(writer, NAME, 4)
    return path


def names(place: str | Path) -> set[str]:
    return set(FeatureStore.open(place).videos(SPEC.fid))


def test_dry_runs_change_nothing(place: str, tmp_path: Path, capfd: CapFd) -> None:
    before = FeatureStore.open(place).backend.commit_ids(SPEC.fid)
    new = tmp_path / "new.zarr"
    for words in (
        ["delete", NAME, "--store", place],
        ["compact", place],
        ["gc", place],
        ["merge", place, "--into", str(new)],
    ):
        code, report, _ = command(capfd, "store", *words, "--dry-run")
        assert (code, "dry_run" in str(report)) == (0, True)
    assert FeatureStore.open(place).backend.commit_ids(SPEC.fid) == before
    assert not new.exists()


def test_deleted_video_is_gone_and_its_space_free(place: str, capfd: CapFd) -> None:
    code, report, _ = command(capfd, "store", "delete", NAME, "v3", "--store", place)
    assert code == 0
    assert {each["name"] for each in report["deleted"]} == {NAME, "v3"}
    assert names(place) == {"v1", "v2"}
    code, report, _ = command(capfd, "store", "compact", place)
    assert (code, report["parts_after"]) == (0, 1)
    assert report["rows_dropped"] == len(rows(3)) + len(rows(4))
    code, report, _ = command(capfd, "store", "gc", place, "--grace", "0")
    assert (code, len(report["parts"]), report["waiting"]) == (0, 3, [])
    assert np.array_equal(FeatureStore.open(place)["v2"][:], rows(2))


def test_merged_store_holds_all_and_says_what_it_took(
    place: str, tmp_path: Path, capfd: CapFd
) -> None:
    other = FeatureStore.create(tmp_path / "other.zarr")
    fill(other, [1, 7])
    for suffix in (".zarr", ".h5"):
        into = tmp_path / f"all{suffix}"
        words = ["merge", place, str(other.path), "--into", str(into)]
        code, report, _ = command(capfd, "store", *words)
        assert code == 0
        assert [source["contents"] for source in report["sources"]] == [4, 1]
        assert names(into) == {"v1", "v2", "v3", NAME, "v7"}
        assert np.array_equal(FeatureStore.open(into)[NAME][:], rows(4))


def test_unknown_video_deletes_nothing_and_names_the_nearest(place: str, capfd: CapFd) -> None:
    assert run(["store", "delete", "v1", "v22", "--store", place]) == 1
    assert "'v2'" in capfd.readouterr().err
    assert "v1" in names(place)


def test_delete_takes_only_the_features_asked_for(place: str, capfd: CapFd) -> None:
    assert run(["store", "delete", "v1", "--store", place, "--stride", "8"]) == 1
    assert run(["store", "delete", "v1", "--store", place, "--backbone", SPEC.backbone]) == 0
    assert "v1" not in names(place)


def test_store_is_not_merged_into_itself(place: str, capfd: CapFd) -> None:
    assert run(["store", "merge", place, "--into", place]) == 2
    assert "into itself" in capfd.readouterr().err


def test_compact_of_damaged_rows_names_them(tmp_path: Path, capfd: CapFd) -> None:
    store = FeatureStore.create(tmp_path / "x.zarr")
    fill(store, [1])
    fill(store, [2])
    part = store.path / "features" / SPEC.fid / "parts" / store["v1"].row.part  # type: ignore[operator]
    shard = part / "features" / "c.0.0"
    raw = bytearray(shard.read_bytes())
    raw[3] ^= 0xFF
    shard.write_bytes(raw)
    code, report, _ = command(capfd, "store", "compact", str(store.path))
    assert (code, report["damaged"]) == (3, ["v1"])


def test_name_of_a_new_store_says_its_kind(place: str, tmp_path: Path, capfd: CapFd) -> None:
    assert run(["store", "merge", place, "--into", str(tmp_path / "nosuffix")]) == 2
    assert "nosuffix.zarr" in capfd.readouterr().err
    assert not (tmp_path / "nosuffix").exists()
