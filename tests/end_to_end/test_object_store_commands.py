"""Commands whose store is on object storage, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tadpipe.cli.main import run
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.objects import Objects
from tests.end_to_end.project import SMALL_MODEL, command
from tests.unit.pipeline.tiny_store import make_store

CapFd = pytest.CaptureFixture[str]
TRAIN = ["train-detector", "--test-subset=testing", *SMALL_MODEL, "--set=training.batch_size=2"]


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_bucket: str) -> tuple[str, str]:
    """The same features in a folder and on object storage; the tests run beside the folder."""
    monkeypatch.chdir(tmp_path)
    folder, address = str(make_store(tmp_path / "x.zarr")), f"{s3_bucket}/x.zarr"
    FeatureStore.create(address).merge(FeatureStore.open(folder))
    return folder, address


def test_training_from_object_storage_is_training_from_the_folder(
    stores: tuple[str, str], capfd: CapFd
) -> None:
    for store, out in zip(stores, ("folder", "s3"), strict=True):
        code, _, err = command(capfd, *TRAIN, f"--features={store}", f"--out={out}")
        assert code == 0, err
    for file in ("model.safetensors", "detections.json", "metrics.jsonl"):
        assert Path("s3", file).read_bytes() == Path("folder", file).read_bytes()


def test_epochs_after_the_first_ask_for_no_rows(
    stores: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read_range = Objects.read_range

    def counted(self: Objects, key: str, *place: int) -> bytes:
        asked.append(key)
        return read_range(self, key, *place)

    monkeypatch.setattr(Objects, "read_range", counted)
    requests = []
    for epochs in (1, 5):
        asked.clear()
        sets = [f"--set=training.epochs={epochs}", "--set=training.warmup_epochs=0"]
        assert run([*TRAIN, *sets, f"--features={stores[1]}", f"--out={epochs}"]) == 0
        requests.append(len(asked))
    assert requests[0] == requests[1]


def test_run_trained_on_object_storage_is_scored_anew(
    stores: tuple[str, str], capfd: CapFd
) -> None:
    assert run([*TRAIN, f"--features={stores[1]}", "--out=s3"]) == 0
    code, report, err = command(capfd, "evaluate", "s3")
    assert code == 0, err
    assert report["average_map"] == json.loads(Path("s3/eval.json").read_text())["average_map"]


def test_validate_looks_at_the_projects_store_on_object_storage(
    stores: tuple[str, str], capfd: CapFd
) -> None:
    Path("tadpipe.toml").write_text(f'store = "{stores[1]}"\n', encoding="utf-8")
    code, report, _ = command(capfd, "validate")
    assert code == 0
    assert any(stores[1] in line for line in report["checked"])


@pytest.mark.parametrize(
    "words",
    [
        ["train-detector", "--features=x.zarr", "--out=s3://bucket/run"],
        ["compare", "--features=x.zarr", "--detectors=asl", "--out=s3://bucket/run"],
        ["detect", "v.mp4", "--model=run", "--out=s3://bucket/d.json"],
        ["detect", "s3://bucket/v.mp4", "--model=run"],
        ["evaluate", "d.json", "--out=s3:/bucket/e.json"],
        ["report", "run", "--out=s3://bucket/page"],
        ["extract", "s3://bucket/videos", "--backbone=videomae-tiny", "--weights=random"],
        ["store", "export", "x.zarr", "--out=s3://bucket/features"],
    ],
)
def test_address_of_anything_but_a_store_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: CapFd
) -> None:
    monkeypatch.chdir(tmp_path)
    code, answer, _ = command(capfd, *words)
    assert (code, "only a feature store" in answer["error"]["message"]) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--store=s3://bucket/", "names a bucket and a folder"),
        ("--videos=s3://bucket/videos", "Only the feature store"),
    ],
)
def test_init_refuses_what_no_command_would_take(
    option: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: CapFd,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, answer, _ = command(capfd, "init", option)
    assert (code, words in answer["error"]["message"]) == (2, True)
    assert not list(tmp_path.iterdir())


def test_project_file_may_give_the_address_of_a_store_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: CapFd
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tadpipe.toml").write_text('runs = "s3://bucket/runs"\n', encoding="utf-8")
    code, answer, _ = command(capfd, "train-detector")
    assert (code, "runs = s3://bucket/runs" in answer["error"]["message"]) == (2, True)
