"""Detections as the challenges want them: ActivityNet, Ego4D Moment Queries, EPIC-Kitchens-100.

An EPIC submission states verb and noun of every detection, and our detectors find either: `pair`
joins the detections of two of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tadpipe.annotations import Detection, save_detections
from tadpipe.config import write_atomically
from tadpipe.epic_csv import NUM_NOUNS, NUM_VERBS, EpicRow
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.evaluation.epic import SUPERVISION_LEVELS
from tadpipe.evaluation.matching import Segments, overlapping_pairs
from tadpipe.json_text import child
from tadpipe.pipeline.label_entries import Entry, LabelledVideos, VideoTimes

PAIR_TIOU = 0.5  # from which a verb and a noun are one action
MOST_PAIRS = 2000  # of a video


@dataclass(frozen=True)
class EpicSubmission:
    """What an EPIC submission needs beside the verbs.

    Args:
        nouns: detections of the same videos by class of noun.
        supervision: pre-training, training labels and training data, 0..5 each, as the challenge
            asks for them (sls_pt, sls_tl, sls_td).
    """

    nouns: LabelledVideos
    supervision: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not all(level in range(6) for level in self.supervision):
            raise ConfigError(
                "Levels of supervision are numbers 0..5.",
                f"--supervision {','.join(map(str, self.supervision))}",
                "See the rules of the challenge: pre-training, training labels, training data.",
            )

    def write(self, path: Path, verbs: LabelledVideos, _times: VideoTimes) -> None:
        """Write the submission.

        Raises:
            AnnotationError: no scores, or labels that are no class number.
        """
        results: dict[str, list[dict[str, Any]]] = {}
        for name in dict.fromkeys([*verbs.entries, *self.nouns.entries]):
            found = pair(
                _numbered(path, name, verbs.entries.get(name, []), NUM_VERBS),
                _numbered(path, name, self.nouns.entries.get(name, []), NUM_NOUNS),
                name,
            )
            results[name] = [
                {
                    "verb": row.verb,
                    "noun": row.noun,
                    "action": f"{row.verb},{row.noun}",
                    "score": row.score,
                    "segment": [row.start_sec, row.end_sec],
                }
                for row in found
            ]
        head = {"version": "0.2", "challenge": "action_detection"}
        levels = dict(zip(SUPERVISION_LEVELS, self.supervision, strict=True))
        _write(path, {**head, **levels, "results": results})


Numbered = tuple[int, Entry]  # class number and detection


def pair(verbs: Sequence[Numbered], nouns: Sequence[Numbered], video: str) -> list[EpicRow]:
    """Detections of actions from those of verbs and of nouns in one video, best first.

    Every verb and noun with tIoU >= 0.5 are one action: its ends are the means of theirs, its
    score is the root of the product of theirs, and equal actions go through soft-NMS. The
    challenge's tools that join two detectors do the same point by point, before NMS.
    """
    from tadpipe.detectors.parts.nms import soft_nms  # loads torch

    verb_spans, noun_spans = _spans(verbs), _spans(nouns)  # [N, 3] start, end, score
    found = overlapping_pairs(
        Segments(np.zeros(len(nouns), dtype=np.int64), noun_spans[:, 0], noun_spans[:, 1]),
        Segments(np.zeros(len(verbs), dtype=np.int64), verb_spans[:, 0], verb_spans[:, 1]),
        PAIR_TIOU,
    )
    a, b = found.found, found.truth
    segments = (verb_spans[a, :2] + noun_spans[b, :2]) / 2
    scores = np.sqrt(verb_spans[a, 2] * noun_spans[b, 2])
    verb = np.array([number for number, _ in verbs], dtype=np.int64)[a]
    noun = np.array([number for number, _ in nouns], dtype=np.int64)[b]
    kept = soft_nms(
        segments.astype(np.float32),
        scores.astype(np.float32),
        verb * NUM_NOUNS + noun,
        max_kept=MOST_PAIRS,
    )
    starts, ends = segments.T.tolist()
    return [
        EpicRow(video, starts[row], ends[row], int(verb[row]), int(noun[row]), score)
        for row, score in zip(kept.rows.tolist(), kept.scores.tolist(), strict=True)
    ]


def _spans(numbered: Sequence[Numbered]) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = [(entry.start_sec, entry.end_sec, entry.score or 0.0) for _, entry in numbered]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _numbered(path: Path, name: str, rows: Sequence[Entry], count: int) -> list[Numbered]:
    """Class numbers of labels such as id_012 or 12."""
    numbered, defects = [], []
    _check_scores(path, {name: rows})
    for i, row in enumerate(rows):
        digits = row.label.removeprefix("id_")
        if digits.isascii() and digits.isdecimal() and int(digits) < count:
            numbered.append((int(digits), row))
        else:
            text = f"label '{row.label}' is no class number 0..{count - 1}, such as id_012"
            defects.append(Defect(str(path), f"{child('$.results', name)}[{i}]", text))
    if defects:
        raise AnnotationError(
            f"{len(defects)} labels are no classes of EPIC-Kitchens-100.",
            defects[:20],
            "Give verbs as the source and nouns with --nouns, of detectors for "
            "epic_kitchens_verb and epic_kitchens_noun.",
        )
    return numbered


def write_activitynet(path: Path, labelled: LabelledVideos, _times: VideoTimes) -> None:
    """A submission to ActivityNet's detection challenge.

    Raises:
        AnnotationError: entries without scores.
    """
    _check_scores(path, labelled.entries)
    save_detections(
        path,
        {
            name: [Detection(r.start_sec, r.end_sec, r.label, r.score or 0.0) for r in rows]
            for name, rows in labelled.entries.items()
        },
    )


def write_ego4d(path: Path, labelled: LabelledVideos, _times: VideoTimes) -> None:
    """A submission to Ego4D's Moment Queries challenge; both lists hold all, best first.

    Recall is counted over the first rows of a label in the order of the file.

    Raises:
        AnnotationError: entries without scores.
    """
    _check_scores(path, labelled.entries)
    found = {
        name: [
            {"label": row.label, "score": row.score, "segment": [row.start_sec, row.end_sec]}
            for row in sorted(rows, key=lambda row: -(row.score or 0.0))
        ]
        for name, rows in labelled.entries.items()
    }
    head = {"version": "1.0", "challenge": "ego4d_moment_queries"}
    _write(path, {**head, "detect_results": found, "retrieve_results": found})


def _check_scores(path: Path, entries: Mapping[str, Sequence[Entry]]) -> None:
    """Raises AnnotationError for annotations, which have none."""
    for name, rows in entries.items():
        if any(row.score is None for row in rows):
            raise AnnotationError(
                "A submission is made of detections.",
                [Defect(str(path), child("$.results", name), "no score")],
                "Export the detections of a run, not annotations.",
            )


def _write(path: Path, document: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")
