"""The small cases committed with the project, which every machine has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.parity.case import Case
from tests.parity.kinds import run

CASES = sorted(path.parent for path in (Path(__file__).parent / "own").glob("*/*/case.json"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_own_case_is_reproduced(path: Path) -> None:
    case = Case.open(path)
    run(case)
    assert [c for c in case.comparisons if not c.ok] == []
    assert case.comparisons
    assert case.skipped() == []


def test_there_are_own_cases_of_several_kinds() -> None:
    assert len({path.parent.name for path in CASES}) >= 4


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_runner_notices_a_changed_and_a_skipped_array(path: Path) -> None:
    case = Case.open(path)
    run(case)
    name = next(c.name for c in case.comparisons if c.name in case.arrays)
    changed = dict(case.arrays)
    changed[name] = (
        np.logical_not(changed[name]) if changed[name].dtype == bool else changed[name] + 1
    )
    wrong = Case(path, case.config, changed)
    run(wrong)
    assert not wrong.ok()
    extra = Case(path, case.config, {**case.arrays, "nobody_reads_this": np.zeros(1)})
    run(extra)
    assert not extra.ok()
    assert extra.skipped() == ["nobody_reads_this"]
