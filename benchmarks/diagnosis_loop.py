"""The baseline of the diagnosis: DETAD's three analyses class by class, detection by detection.

The way the public tool goes, written in a few lines, but kinder: it matches once, where the public
tool matches anew for each analysis. numpy works on the list of one class at a time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tadpipe.annotations import Detections, Video

KINDS = 6  # true positive, double detection, wrong label, localisation, confusion, background


class Figures(NamedTuple):
    counts: np.ndarray  # [T, 6]
    gain: np.ndarray  # [5]
    unmatched: float
    average_map_n: float
    sensitivity: dict[str, list[float]]  # characteristic -> average mAP_N of each occupied bin


@dataclass
class ClassLists:
    """What the loop over the detections of a class leaves."""

    match: np.ndarray  # [T, n] row of the ground truth taken, or -1
    kind: np.ndarray  # [T, m], of the first m = 10 * G
    own: list[int] = field(default_factory=list)  # rows of the ground truths


def diagnosis_loop(
    videos: dict[str, Video],
    detections: Detections,
    tious: tuple[float, ...],
    edges: dict[str, tuple[float, ...]],
) -> Figures:
    """All figures; `edges` are the bins of length, coverage and num-instances."""
    spans, labels, of_video, values = _ground_truths(videos)
    own: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        own[label].append(row)
    found = defaultdict(list)
    for name, rows in detections.items():
        for start, end, label, score in rows:
            found[label].append((score, name, start, end))
    lists = {
        label: _walk(label, rows, found[label], spans, labels, of_video, tious)
        for label, rows in own.items()
    }
    mean = len(labels) / len(own)
    counts = sum(
        np.stack([np.bincount(row, minlength=KINDS) for row in part.kind])
        for part in lists.values()
    )
    base = np.array([[_ap(row >= 0, len(p.own), mean) for row in p.match] for p in lists.values()])
    return Figures(
        np.asarray(counts),
        _gain(lists, mean),
        _unmatched(lists, mean, len(labels), len(tious)),
        float(base.mean()),
        {name: _sensitivity(lists, mean, values[name], bins) for name, bins in edges.items()},
    )


def _ground_truths(
    videos: dict[str, Video],
) -> tuple[np.ndarray, list[str], dict[str, np.ndarray], dict[str, np.ndarray]]:
    spans, labels, of_video, coverage, instances = [], [], {}, [], []
    for name, video in videos.items():
        of_video[name] = np.arange(len(spans), len(spans) + len(video.actions))
        for start, end, label in video.actions:
            spans.append((start, end))
            labels.append(label)
            coverage.append((end - start) / (video.duration_sec or np.nan))
            instances.append(len(video.actions))
    table = np.array(spans)
    values = {"length": table[:, 1] - table[:, 0], "coverage": np.array(coverage)}
    return table, labels, of_video, values | {"num-instances": np.array(instances, dtype=float)}


def _walk(
    label: str,
    own: list[int],
    found: list[tuple[float, str, float, float]],
    spans: np.ndarray,
    labels: list[str],
    of_video: dict[str, np.ndarray],
    tious: tuple[float, ...],
) -> ClassLists:
    order = np.argsort([row[0] for row in found], kind="stable")[::-1]
    limit = min(10 * len(own), len(found))
    match = np.full((len(tious), len(found)), -1)
    kind = np.full((len(tious), limit), KINDS - 1)
    taken: list[set[int]] = [set() for _ in tious]
    for place, index in enumerate(order):
        _, name, start, end = found[index]
        here = of_video.get(name, np.zeros(0, dtype=int))
        if not here.size:
            continue
        both = np.minimum(end, spans[here, 1]) - np.maximum(start, spans[here, 0])
        both = np.maximum(both, 0)
        whole = (spans[here, 1] - spans[here, 0]) + (end - start) - both
        tiou = both / whole
        best_first = [i for i in np.argsort(tiou, kind="stable")[::-1] if labels[here[i]] == label]
        nearest = int(tiou.argmax())
        for t, threshold in enumerate(tious):
            for choice in best_first:
                if tiou[choice] < threshold:
                    break
                if here[choice] not in taken[t]:
                    taken[t].add(here[choice])
                    match[t, place] = here[choice]
                    break
            if place >= limit:
                continue
            if match[t, place] >= 0:
                kind[t, place] = 0
            elif tiou[nearest] >= 0.1:
                other = labels[here[nearest]] != label
                kind[t, place] = (1 if tiou[nearest] >= threshold else 3) + other
    return ClassLists(match, kind, own)


def _curve(hit: np.ndarray, count: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    right = np.cumsum(hit)
    weight = right / count * mean
    return right / count, weight / (weight + np.arange(1, hit.size + 1) - right)


def _ap(hit: np.ndarray, count: int, mean: float) -> float:
    if not hit.size:
        return 0.0
    recall, precision = _curve(hit, count, mean)
    precision = np.maximum.accumulate(np.r_[precision, 0][::-1])[::-1]
    recall = np.r_[0, recall, 1]
    rises = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[rises + 1] - recall[rises]) * precision[rises]))


def _gain(lists: dict[str, ClassLists], mean: float) -> np.ndarray:
    table = np.zeros((KINDS, len(lists)))
    for k, part in enumerate(lists.values()):
        for kind in part.kind:
            count = len(part.own)
            table[0, k] += _ap(kind == 0, count, mean)
            for error in range(1, KINDS):
                table[error, k] += _ap(kind[kind != error] == 0, count, mean)
        table[:, k] /= len(part.kind)
    return table[1:].mean(axis=1) - table[0].mean()


def _unmatched(lists: dict[str, ClassLists], mean: float, count: int, tious: int) -> float:
    missed = np.ones((tious, count), dtype=bool)
    for part in lists.values():
        for t, match in enumerate(part.match):
            if match.size:
                good = _curve(match >= 0, len(part.own), mean)[1] > 0.05
                missed[t, match[good & (match >= 0)]] = False
    return float(missed.mean())


def _sensitivity(
    lists: dict[str, ClassLists], mean: float, values: np.ndarray, edges: tuple[float, ...]
) -> list[float]:
    bin_of = np.searchsorted(np.array(edges[1:]), values, side="left")
    result = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        means = []
        for part in lists.values():
            count = int(inside[part.own].sum())
            if not count:
                continue
            gone = ((part.match >= 0) & ~inside[part.match]).any(axis=0)
            means.append(np.mean([_ap(row[~gone] >= 0, count, mean) for row in part.match]))
        result.append(float(np.mean(means)))
    return result
