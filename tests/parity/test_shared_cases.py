"""Every stored case of the kinds we support, when the shared folder is beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.case import Case
from tests.parity.kinds import KINDS, run

SHARED = Path(__file__).parents[3] / "shared" / "parity"
CASES = sorted(p.parent for kind in KINDS for p in (SHARED / kind).glob("*/case.json"))


@pytest.mark.skipif(not CASES, reason="../shared/parity is not here")
@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_stored_case_is_reproduced(path: Path) -> None:
    case = Case.open(path)
    run(case)
    wrong = [c for c in case.comparisons if not c.ok]
    assert case.comparisons
    assert not wrong
    assert not case.skipped()
