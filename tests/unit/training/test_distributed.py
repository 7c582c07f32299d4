"""Two processes train as one does: the same loss curve, each video tested once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tadpipe.annotations import load_detections
from tadpipe.errors import ConfigError
from tadpipe.pipeline.train_detector import train_detector
from tadpipe.training.distributed import ALONE, Ranks
from tadpipe.training.metrics import read_metrics
from tests.unit.pipeline.small_project import SmallProject, make_project, run
from tests.unit.pipeline.tiny_store import SMALL, make_store

# Random layers draw anew in every process, hence none here.
STILL = ("model.dropout=0.0", "model.drop_path=0.0")
SETS = (*SMALL, *STILL, "training.batch_size=2")
E2E_SETS = (*STILL, "e2e.egs.ratio=1.0", "training.epochs=1")
TRAIN_BOTH = """
import sys
from pathlib import Path
from tadpipe.pipeline.train_detector import train_detector
from tests.unit.pipeline.small_project import SmallProject, run
from tests.unit.training.test_distributed import E2E_SETS, SETS

folder = Path(sys.argv[1])
train_detector(
    folder / "s.zarr", annotations=folder / "odd.json", sets=SETS, out=folder / "two", device="cpu"
)
run(SmallProject(folder / "videos", folder / "annotations.json"), folder / "e2e two", *E2E_SETS)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and videos, and what one process and two made of them."""
    folder = tmp_path_factory.mktemp("distributed")
    store = make_store(folder / "s.zarr")
    database = json.loads((store / "annotations.json").read_text())
    database["database"]["video 7"]["subset"] = "testing"  # three to test on
    (folder / "odd.json").write_text(json.dumps(database))
    project = make_project(folder)
    train_detector(
        store, annotations=folder / "odd.json", sets=SETS, out=folder / "one", device="cpu"
    )
    run(SmallProject(*project), folder / "e2e one", *E2E_SETS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN_BOTH, str(folder)],
            env={**os.environ, **_as_torchrun(rank, port)},
            cwd=Path(__file__).parents[3],
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for child in children:
        _, said = child.communicate()
        assert child.returncode == 0, said.decode()
    return folder


def _as_torchrun(rank: int, port: str) -> dict[str, str]:
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.parametrize(("one", "two"), [("one", "two"), ("e2e one", "e2e two")])
def test_two_processes_have_the_loss_curve_of_one(folder: Path, one: str, two: str) -> None:
    ours, wanted = read_metrics(folder / two), read_metrics(folder / one)
    assert len(ours) == len(wanted) > 1
    for mine, theirs in zip(ours, wanted, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3)  # sums are taken in another order


def test_every_test_video_is_detected_on_once(folder: Path) -> None:
    ours = load_detections(folder / "two" / "detections.json")
    wanted = load_detections(folder / "one" / "detections.json")
    assert list(ours) == list(wanted) == ["video 7", "video 8", "video 9"]
    assert [len(ours[name]) for name in wanted] == [len(found) for found in wanted.values()]


def test_shares_are_all_items_each_once() -> None:
    shares = [Ranks(rank, 3).share(range(7)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(7))
    assert ALONE.share(range(7)) == list(range(7))


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=2"):
        Ranks(0, 2).check_batch(3)
