"""The ledger is read back in order, whatever a kill did to its last line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tadpipe.store import ledger
from tadpipe.store.ledger import LedgerRow


def test_lines_of_all_writers_come_oldest_first(tmp_path: Path) -> None:
    for writer, when in (("b", 2.0), ("a", 3.0), ("a", 1.0)):
        ledger.append(
            tmp_path, writer, "fid", LedgerRow(f"{writer}{when}", "done", at_unix_sec=when)
        )
    assert [row.name for _, row in ledger.read(tmp_path)] == ["a1.0", "b2.0", "a3.0"]


def test_torn_line_is_left_out_and_the_next_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.append(tmp_path, "w", "f", LedgerRow("one", "done"))
    path = tmp_path / "w.jsonl"
    path.write_bytes(path.read_bytes() + b'{"fid": "f", "na')
    ledger.append(tmp_path, "w", "f", LedgerRow("two", "failed", "truncated"))
    with caplog.at_level(logging.WARNING):
        assert [row.name for _, row in ledger.read(tmp_path)] == ["one", "two"]
    assert "w.jsonl:2" in caplog.text
