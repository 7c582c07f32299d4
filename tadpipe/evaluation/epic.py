"""EPIC-Kitchens-100 action detection: verb, noun and action, from the challenge's own files.

An action is the pair of a verb and a noun, numbered verb * 300 + noun. Ground truth is the CSV of
the challenge (`epic_csv.py`), detections its submission JSON (version 0.2).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadpipe.epic_csv import NUM_NOUNS, NUM_VERBS, EpicRow
from tadpipe.errors import AnnotationError, Defect
from tadpipe.evaluation.characteristics import QUANTILES, Bins
from tadpipe.evaluation.detection_map import DetectionScore, score_detections
from tadpipe.evaluation.diagnosis import Diagnosis, diagnose
from tadpipe.evaluation.protocols import EPIC, Protocol
from tadpipe.evaluation.tables import DetectionTable, TruthTable, coded
from tadpipe.json_text import JsonReader, child, finite, kind, read_json, shown

TIOUS = (0.1, 0.2, 0.3, 0.4, 0.5)
TASKS = ("verb", "noun", "action")
SUPERVISION_LEVELS = ("sls_pt", "sls_tl", "sls_td")  # pre-training, training labels, data: 0..5


def load_submission(path: str | Path) -> list[EpicRow]:
    """The detections of a challenge submission, in the order of the file.

    Raises:
        AnnotationError: a key is missing, a number out of range or not finite; all are listed.
    """
    path = Path(path)
    document = read_json(path)
    reader = JsonReader(str(path))
    results = reader.table(document, "results", '{"version": "0.2", "results": {...}}')
    if isinstance(document, dict):
        if "challenge" not in document:
            raise AnnotationError(
                "The file is no submission to the challenge.",
                [Defect(str(path), "$", 'no key "challenge"')],
                "Detections of one task are scored with --dataset epic_kitchens_verb or "
                "epic_kitchens_noun.",
            )
        for key, wanted in (("version", "0.2"), ("challenge", "action_detection")):
            if document.get(key) != wanted:
                reader.error(f"$.{key}", f"{shown(document.get(key))}, must be {shown(wanted)}")
        for key in SUPERVISION_LEVELS:
            if document.get(key) not in range(6):
                reader.error(f"$.{key}", f"{shown(document.get(key))} is not a number 0..5")
    rows = []
    for name, entries in results.items():
        place = child("$.results", name)
        if not isinstance(entries, list):
            reader.error(place, f"{kind(entries)}, not a list; write [] for none")
            continue
        for i, entry in enumerate(entries):
            row = _submitted_row(reader, name, entry, f"{place}[{i}]")
            if row is not None:
                rows.append(row)
    if reader.defects:
        raise AnnotationError(
            f"The submission has {len(reader.defects)} errors.", reader.defects, "Mend the file."
        )
    return rows


def _submitted_row(reader: JsonReader, name: str, entry: Any, place: str) -> EpicRow | None:
    if not isinstance(entry, dict):
        reader.error(place, f"{kind(entry)}, not an object")
        return None
    before = len(reader.defects)
    segment = reader.segment(entry, place)
    numbers = []
    for key, count in (("verb", NUM_VERBS), ("noun", NUM_NOUNS)):
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            reader.error(f"{place}.{key}", f"{shown(value)} is not a number 0..{count - 1}")
            value = 0
        numbers.append(value)
    score = finite(entry.get("score"))
    if score is None:
        reader.error(f"{place}.score", f"{shown(entry.get('score'))} is not a finite number")
    pair = f"{entry.get('verb')},{entry.get('noun')}"
    if entry.get("action") != pair:
        reader.error(f"{place}.action", f"{shown(entry.get('action'))}, must be {shown(pair)}")
    if segment is None or score is None or len(reader.defects) > before:
        return None
    verb, noun = numbers
    return EpicRow(name, *segment, verb, noun, score)


def score_epic(
    truth: Sequence[EpicRow],
    found: Sequence[EpicRow],
    tious: Sequence[float] = TIOUS,
    *,
    protocol: Protocol = EPIC,
    blocked: Collection[str] = (),
    top_k: Sequence[int] = (1, 5),
) -> Mapping[str, DetectionScore]:
    """The scores of the three tasks; predicted classes without ground truth are left out."""
    return {
        task: score_detections(
            _truth_table(truth, task),
            _detection_table(found, task),
            tious,
            protocol=protocol,
            blocked=blocked,
            top_k=top_k,
        )
        for task in TASKS
    }


def diagnose_epic(
    truth: Sequence[EpicRow],
    found: Sequence[EpicRow],
    tious: Sequence[float] = TIOUS,
    *,
    protocol: Protocol = EPIC,
    blocked: Collection[str] = (),
    durations: Mapping[str, float] | None = None,
    bins: str | Mapping[str, Bins] = QUANTILES,
) -> Mapping[str, Diagnosis]:
    """The errors of the three tasks; arguments as in `diagnose`."""
    return {
        task: diagnose(
            _truth_table(truth, task),
            _detection_table(found, task),
            tious,
            protocol=protocol,
            blocked=blocked,
            durations=durations,
            bins=bins,
        )
        for task in TASKS
    }


def _truth_table(rows: Sequence[EpicRow], task: str) -> TruthTable:
    videos, video = coded([row.video for row in rows])
    classes, label = _classes(rows, task)
    return TruthTable(
        videos,
        tuple(str(number) for number in classes),
        video,
        label,
        np.array([row.start_sec for row in rows], dtype=np.float64),
        np.array([row.end_sec for row in rows], dtype=np.float64),
        {str(number): number for number in classes},
    )


def _detection_table(rows: Sequence[EpicRow], task: str) -> DetectionTable:
    videos, video = coded([row.video for row in rows])
    classes, label = _classes(rows, task)
    return DetectionTable(
        videos,
        tuple(str(number) for number in classes),
        video,
        label,
        np.array([row.start_sec for row in rows], dtype=np.float64),
        np.array([row.end_sec for row in rows], dtype=np.float64),
        np.array([row.score for row in rows], dtype=np.float64),
    )


def _classes(rows: Sequence[EpicRow], task: str) -> tuple[list[int], NDArray[np.int64]]:
    """The class numbers that occur, and which of them each row has."""
    verb = np.array([row.verb for row in rows], dtype=np.int64)
    noun = np.array([row.noun for row in rows], dtype=np.int64)
    number = {"verb": verb, "noun": noun, "action": verb * NUM_NOUNS + noun}[task]
    classes, label = np.unique(number, return_inverse=True)
    return classes.tolist(), label.astype(np.int64)
