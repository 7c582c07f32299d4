"""The rules of evaluation as plain loops, one detection after the other; slow and obvious.

A row is (video, start, end, label) or (video, start, end, label, score), all Python values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tadpipe.evaluation.tables import DetectionTable, TruthTable

Truth = tuple[str, float, float, str]
Found = tuple[str, float, float, str, float]


def tables(truth: Sequence[Truth], found: Sequence[Found]) -> tuple[TruthTable, DetectionTable]:
    """The same rows as columns; label ids in alphabetical order."""
    videos = tuple(dict.fromkeys(row[0] for row in truth))
    labels = tuple(dict.fromkeys(row[3] for row in truth))
    every = sorted({row[3] for row in (*truth, *found)})
    names = tuple(dict.fromkeys(row[0] for row in found))
    found_labels = tuple(dict.fromkeys(row[3] for row in found))
    return (
        TruthTable(
            videos,
            labels,
            np.array([videos.index(row[0]) for row in truth], dtype=np.int64),
            np.array([labels.index(row[3]) for row in truth], dtype=np.int64),
            np.array([row[1] for row in truth], dtype=np.float64),
            np.array([row[2] for row in truth], dtype=np.float64),
            {label: i for i, label in enumerate(every)},
        ),
        DetectionTable(
            names,
            found_labels,
            np.array([names.index(row[0]) for row in found], dtype=np.int64),
            np.array([found_labels.index(row[3]) for row in found], dtype=np.int64),
            np.array([row[1] for row in found], dtype=np.float64),
            np.array([row[2] for row in found], dtype=np.float64),
            np.array([row[4] for row in found], dtype=np.float64),
        ),
    )


def tiou(a: Sequence[float], b: Sequence[float], clipped: bool) -> float:
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (b[1] - b[0]) + (a[1] - a[0]) - both
    if clipped:
        union = max(union, 1e-8)
    if union == 0:
        return math.nan
    return both / union


def ranked(rows: Sequence[Found]) -> list[Found]:
    """By falling score; the later of equal rows first."""
    return list(reversed(sorted(rows, key=lambda row: row[4])))


def average_precision(
    truth: Sequence[Truth], found: Sequence[Found], label: str, threshold: float, clipped: bool
) -> float:
    own = [row for row in truth if row[3] == label]
    taken: set[int] = set()
    hits = []
    for row in ranked([row for row in found if row[3] == label]):
        choices = [
            (tiou(row[1:3], g[1:3], clipped), i) for i, g in enumerate(own) if g[0] == row[0]
        ]
        choices.sort(key=lambda c: (math.inf if math.isnan(c[0]) else c[0], c[1]), reverse=True)
        hit = False
        for overlap, i in choices:
            if overlap < threshold:
                break
            if i not in taken:
                taken.add(i)
                hit = True
                break
        hits.append(hit)
    if not hits:
        return 0.0
    done = np.cumsum(hits)
    precision = [0.0, *(done / np.arange(1, len(hits) + 1)), 0.0]
    recall = [0.0, *(done / len(own)), 1.0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    return float(sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall))))


def recall_at_kx(
    truth: Sequence[Truth],
    found: Sequence[Found],
    label: str,
    threshold: float,
    k: int,
    clipped: bool,
) -> float:
    own = [row for row in truth if row[3] == label]
    covered = 0
    for video in dict.fromkeys(row[0] for row in own):
        here = [row for row in own if row[0] == video]
        best = ranked([r for r in found if r[0] == video and r[3] == label])[: k * len(here)]
        covered += sum(any(tiou(r[1:3], g[1:3], clipped) >= threshold for r in best) for g in here)
    return covered / len(own)


def average_recall(
    truth: Sequence[Truth],
    found: Sequence[Found],
    thresholds: Sequence[float],
    max_an: int | None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Recall [T, 100], the AN axis [100] and the AUC of the ActivityNet toolkit."""
    videos = list(dict.fromkeys(row[0] for row in truth))
    limit = float(len(found)) / len(videos) if max_an is None else max_an
    ratio = limit * float(len(videos)) / len(found)
    kept, total = {}, 0
    for video in videos:
        rows = ranked([row for row in found if row[0] == video])
        kept[video] = rows[: min(int(len(rows) * ratio), len(rows))]
        total += len(kept[video])
    share = np.arange(1, 101) / 100.0 * (limit * float(len(videos)) / total)
    recall = np.zeros((len(thresholds), 100))
    for i, threshold in enumerate(thresholds):
        for j, part in enumerate(share):
            for row in truth:
                used = kept[row[0]][: min(int(len(kept[row[0]]) * part), len(kept[row[0]]))]
                recall[i, j] += any(tiou(r[1:3], row[1:3], False) >= threshold for r in used)
    recall /= len(truth)
    axis = share * (float(total) / len(videos))
    return recall, axis, float(np.trapezoid(recall.mean(axis=0), axis) / axis[-1])


def random_rows(seed: int) -> tuple[list[Truth], list[Found]]:
    """Coarse times and scores: many ties, duplicates, empty and inverted segments."""
    rng = np.random.default_rng(seed)
    videos, labels = [f"v{i}" for i in range(5)], ["a", "b", "c"]

    def draw(count: int, names: list[str], lowest: int) -> list[tuple[str, float, float, str]]:
        rows = []
        for _ in range(count):
            start = float(rng.integers(0, 8))
            end = start + float(rng.integers(lowest, 5))
            rows.append((names[rng.integers(len(names))], start, end, labels[rng.integers(3)]))
        return rows

    truth = draw(int(rng.integers(1, 25)), videos[:4], 0)
    found = draw(int(rng.integers(1, 60)), videos, -1)
    return truth, [(*row, float(rng.integers(0, 6)) / 5) for row in found]
