"""What the errors of configurations say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tadpipe.config import build
from tadpipe.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    epochs: int = 30
    warmup_epochs: int = 5


def test_unknown_key_is_answered_with_values_and_defaults() -> None:
    with pytest.raises(ConfigError, match=r"epochs \(now 7\), warmup_epochs \(default 5\)"):
        build(Schedule, {"epoch": 3, "epochs": 7}, "x.toml")
