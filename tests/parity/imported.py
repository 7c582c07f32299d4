"""Parity of an imported checkpoint: official files -> command line -> store -> seconds."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np

from tests.parity.anchor_free import SCORE_ATOL, SECONDS_ATOL, pair_up
from tests.parity.case import Case
from tests.parity.official_checkpoints import (
    Clip,
    imported_detections,
    official_yaml,
    training_state,
)


def run(case: Case) -> None:
    config = case.config
    clips = [
        Clip(case.tensor(f"feats_{i}"), config["fps"], seconds, config["stride"], config["span"])
        for i, seconds in enumerate(config["durations"])
    ]
    text = official_yaml(config["config"], clips[0])
    state = training_state(case.weights())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        found = imported_detections(Path(folder), config["detector"], state, text, clips)
    for number, rows in enumerate(found):
        names = [f"{name}_{number}" for name in ("segments", "scores", "labels")]
        stored = [case.read(name) for name in names]
        ours = [
            np.array([[row.start_sec, row.end_sec] for row in rows]).reshape(-1, 2),
            np.array([row.score for row in rows]),
            np.array([int(row.label) for row in rows]),
        ]
        if len(rows) == len(stored[1]):
            order = pair_up(stored, ours)
            ours = [values[order] for values in ours]
        case.check(names[0], ours[0], atol=SECONDS_ATOL)
        case.check(names[1], ours[1], atol=SCORE_ATOL)
        case.check(names[2], ours[2])
