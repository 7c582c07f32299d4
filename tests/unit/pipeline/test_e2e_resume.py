"""An end-to-end run that broke off goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tadpipe.pipeline.extract import extract
from tadpipe.training.checkpoint import load_state
from tadpipe.training.metrics import read_metrics
from tests.unit.pipeline.small_project import (
    FRAMES_TIA,
    STEPS,
    SmallProject,
    make_project,
    run,
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return make_project(tmp_path_factory.mktemp("project"))


class StopError(Exception):
    """Stands for a crash."""


class StopAt:
    """Progress that breaks off after some steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def begin(self, label: str, total: int | None, unit: str) -> None:
        del label, total, unit

    def advance(self, units: int = 1, note: str = "") -> None:
        del note
        self.left -= units
        if self.left <= 0:
            raise StopError

    def end(self, summary: str = "") -> None:
        del summary


@pytest.mark.parametrize(
    "sets",
    [
        (*FRAMES_TIA, "e2e.tune=adapter"),
        ("e2e.egs.ratio=0.3", "e2e.unsampled=store", "e2e.picture_size=0"),
    ],
    ids=["frames", "bank"],
)
def test_a_run_that_broke_off_continues_bit_for_bit(
    project: SmallProject, tmp_path: Path, sets: tuple[str, ...]
) -> None:
    store = tmp_path / "s.zarr"
    if "e2e.unsampled=store" in sets:
        extract(
            [project.videos],
            store=store,
            backbone="videomae-tiny",
            weights="random",
            seed=3,
            device="cpu",
        )
    whole = run(project, tmp_path / "whole", *sets, features=store)
    with pytest.raises(StopError):
        run(project, tmp_path / "broken", *sets, features=store, progress=StopAt(3))
    assert load_state(tmp_path / "broken" / "state.pt").step == 2
    run(project, tmp_path / "broken", *sets, features=store, resume=True)
    for file in ("metrics.jsonl", "model.safetensors", "backbone.safetensors", "eval.json"):
        ours, wanted = (tmp_path / name / file for name in ("broken", "whole"))
        assert ours.read_bytes() == wanted.read_bytes(), file
    assert [line["step"] for line in read_metrics(whole.run)] == list(range(STEPS))
