"""Training killed with SIGKILL at any step and resumed is the same training, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tadpipe.pipeline.train_detector import train_detector
from tadpipe.training.metrics import read_metrics
from tests.unit.pipeline.tiny_store import SMALL, make_store

SETS = (*SMALL, "training.epochs=7", "training.checkpoint_every=5", "training.validate_every=2")
STEPS = 24
# Trains like the test does and kills itself after a step, with nothing flushed or closed.
TRAIN_AND_DIE = """
import os, signal, sys
from tadpipe.pipeline.train_detector import train_detector
store, out, last = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Die:
    step = 0
    def begin(self, label, total, unit): pass
    def advance(self, units=1, note=""):
        self.step += units
        if self.step >= last:
            os.kill(os.getpid(), signal.SIGKILL)
    def end(self, summary=""): pass

train_detector(store, sets=sys.argv[4:], out=out, device="cpu", seed=5, progress=Die())
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "tiny.zarr")


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_detector(store, sets=SETS, out=out, device="cpu", seed=5)
    return out


@pytest.mark.parametrize("moment", range(2))
def test_killed_training_continues_bit_for_bit(
    store: Path, whole: Path, tmp_path: Path, moment: int
) -> None:
    step = random.Random(moment).randrange(2, STEPS)
    # Sums are split over the threads: the promise holds at an equal number of them.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_DIE, str(store), str(tmp_path / "run"), str(step), *SETS],
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train_detector(store, sets=SETS, out=tmp_path / "run", device="cpu", seed=5, resume=True)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == list(range(STEPS))
    for file in ("metrics.jsonl", "model.safetensors", "model_plain.safetensors", "eval.json"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file
    assert not list((tmp_path / "run").glob(".*"))
