"""End-to-end training killed with SIGKILL at a random step and resumed is the same training."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import torch

from tadpipe.training.metrics import read_metrics
from tests.unit.pipeline.small_project import STEPS, make_project, run

# Trains like the test does and kills itself after a step, with nothing flushed or closed.
TRAIN_AND_DIE = """
import os, signal, sys
from pathlib import Path
from tests.unit.pipeline.small_project import SmallProject, run
videos, annotations, out = map(Path, sys.argv[1:4])

class Die:
    step = 0
    def begin(self, label, total, unit): pass
    def advance(self, units=1, note=""):
        self.step += units
        if self.step >= int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
    def end(self, summary=""): pass

run(SmallProject(videos, annotations), out, egs=0.3, progress=Die())
"""


def test_killed_training_continues_bit_for_bit(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(project, whole, egs=0.3)
    step = random.Random(0).randrange(2, STEPS)
    # Sums are split over the threads: the promise holds at an equal number of them.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_DIE, *map(str, (*project, killed, step))],
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (killed / "model.safetensors").exists()
    run(project, killed, egs=0.3, resume=True)
    assert [line["step"] for line in read_metrics(killed)] == list(range(STEPS))
    for file in ("metrics.jsonl", "model.safetensors", "backbone.safetensors", "eval.json"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert not list(killed.glob(".*"))
