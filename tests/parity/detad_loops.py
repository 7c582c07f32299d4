"""DETAD's analyses as plain loops over Python values; shares no code with tadpipe.

A ground truth is a dict with video, start, end, label and characteristics; a detection one with
video, start, end, label, score. All scores of a class are distinct.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Row = dict[str, Any]
KINDS = ("tp", "double", "wrong label", "localisation", "confusion", "background")


def tiou(a: Row, b: Row) -> float:
    both = max(0.0, min(a["end"], b["end"]) - max(a["start"], b["start"]))
    return both / ((a["end"] - a["start"]) + (b["end"] - b["start"]) - both)


class Loops:
    """The figures of one problem; names are those of the stored cases."""

    def __init__(
        self, truth: list[Row], found: list[Row], tious: list[float], bins: dict[str, Any]
    ) -> None:
        self.labels = list(dict.fromkeys(row["label"] for row in truth))
        self.truth = [row for row in truth if row["coverage"] <= 1 and row["start"] < row["end"]]
        self.ranked = {
            label: sorted((r for r in found if r["label"] == label), key=lambda r: -r["score"])
            for label in self.labels
        }
        self.tious, self.bins = tious, bins
        self.mean = len(self.truth) / len(self.labels)
        self.own = {c: [g for g in self.truth if g["label"] == c] for c in self.labels}
        self.table = [[self.walk(c, t) for c in self.labels] for t in tious]

    def walk(self, label: str, threshold: float) -> list[int | None]:
        """Which ground truth (its index in self.truth) each detection of the class takes."""
        taken: set[int] = set()
        result: list[int | None] = []
        for row in self.ranked[label]:
            choices = [
                (tiou(row, g), i)
                for i, g in enumerate(self.truth)
                if g["label"] == label and g["video"] == row["video"]
            ]
            free = [c for c in choices if c[0] >= threshold and c[1] not in taken]
            best = max(free)[1] if free else None
            if best is not None:
                taken.add(best)
            result.append(best)
        return result

    def curve(self, hits: list[bool], count: int) -> list[tuple[float, float]]:
        """Recall and normalised precision after each detection."""
        points, right, wrong = [], 0, 0
        for hit in hits:
            right, wrong = right + hit, wrong + (not hit)
            weight = right / count * self.mean if count else 0.0
            points.append((right / count if count else 0.0, weight / (weight + wrong)))
        return points

    def area(self, points: list[tuple[float, float]]) -> float:
        total, before = 0.0, 0.0
        for i, (recall, _) in enumerate(points):
            total += (recall - before) * max(p for _, p in points[i:])
            before = recall
        return total

    def ap(self, hits: list[bool], count: int) -> float:
        return self.area(self.curve(hits, count))

    def plain_ap(self, hits: list[bool], count: int) -> float:
        points, right = [], 0
        for i, hit in enumerate(hits):
            right += hit
            points.append((right / count if count else 0.0, right / (i + 1)))
        return self.area(points)

    def kind(self, row: Row, threshold: float) -> str:
        here = [g for g in self.truth if g["video"] == row["video"]]
        overlaps = [tiou(row, g) for g in here]
        best = max(overlaps, default=0.0)
        if best < 0.1:
            return "background"
        same = here[overlaps.index(best)]["label"] == row["label"]
        if best >= threshold:
            return "double" if same else "wrong label"
        return "localisation" if same else "confusion"

    def bin_of(self, name: str, value: float) -> str | None:
        edges = [math.inf if e == "inf" else e for e in self.bins[name]["edges"]]
        for i, bin_name in enumerate(self.bins[name]["names"]):
            if edges[i] < value <= edges[i + 1] or (i == 0 and value == edges[0]):
                return str(bin_name)
        return None

    def everything(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays and the lists of bins."""
        arrays: dict[str, Any] = {
            "num_gt": len(self.truth),
            "avg_instances_per_class": self.mean,
        }
        arrays |= self.false_positives(self.table)
        missed, more = self.false_negatives(self.table)
        sensitive, most = self.sensitivity(self.table)
        return arrays | missed | sensitive, more | most

    def false_positives(self, table: list[Any]) -> dict[str, Any]:
        shape = (len(self.tious), len(self.labels))
        plain, ap, recall, precision = (np.zeros(shape) for _ in range(4))
        without = np.zeros((5, *shape))
        profile = np.zeros((10, len(self.tious), 6))
        for t, threshold in enumerate(self.tious):
            for k, label in enumerate(self.labels):
                count = len(self.own[label])
                every = [match is not None for match in table[t][k]]
                hits = every[: 10 * count]
                plain[t, k] = self.plain_ap(every, count)
                ap[t, k] = self.ap(hits, count)
                if hits:
                    recall[t, k], precision[t, k] = self.curve(hits, count)[-1]
                kinds = [
                    "tp" if hit else self.kind(row, threshold)
                    for hit, row in zip(hits, self.ranked[label], strict=False)
                ]
                for i, kind in enumerate(kinds):
                    profile[i // count, t, KINDS.index(kind)] += 1
                for e, error in enumerate(KINDS[1:]):
                    left = [hit for hit, kind in zip(hits, kinds, strict=True) if kind != error]
                    without[e, t, k] = self.ap(left, count)
        sizes = profile[:, 0].sum(axis=1)
        with np.errstate(invalid="ignore"):
            fraction = (profile / sizes[:, None, None]).mean(axis=1)
        return {
            "plain_ap": plain,
            "fp_ap_n": ap,
            "fp_recall": recall,
            "fp_precision_n": precision,
            "fp_num_predictions_kept": sizes.sum(),
            "fp_error_counts": profile.sum(axis=0),
            "fp_profile_counts": profile,
            "fp_profile_fraction": fraction,
            "fp_ap_gain_ap": without,
            "fp_average_map_n_gain": without.mean(axis=(1, 2)) - ap.mean(),
        }

    def false_negatives(self, table: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        ap = np.zeros((len(self.tious), len(self.labels)))
        matched: list[set[int]] = []
        for t in range(len(self.tious)):
            matched.append(set())
            for k, label in enumerate(self.labels):
                count = len(self.own[label])
                hits = [match is not None for match in table[t][k]]
                good = [p > 0.05 for _, p in self.curve(hits, count)]
                kept = [hit and fine for hit, fine in zip(hits, good, strict=True)]
                ap[t, k] = self.ap(kept, count)
                matched[t] |= {m for m, keep in zip(table[t][k], kept, strict=True) if keep}
        arrays: dict[str, Any] = {"fn_ap_n": ap}
        lists = {}
        groups = [(name,) for name in self.bins] + [("coverage", "length")]
        for group in groups:
            name = "fn_" + ("pair_" if len(group) > 1 else "") + "_".join(group)
            own = [tuple(self.bin_of(c, g[c]) for c in group) for g in self.truth]
            order = [list(self.bins[c]["names"]) for c in group]
            occupied = sorted(
                set(own), key=lambda b: [o.index(n) for o, n in zip(order, b, strict=True)]
            )
            rates, shares = [], []
            for chosen in occupied:
                rows = [i for i, b in enumerate(own) if b == chosen]
                missed = [sum(i not in found for i in rows) / len(rows) for found in matched]
                rates.append(sum(missed) / len(missed))
                shares.append(len(rows) / len(self.truth))
            arrays[f"{name}_unmatched_rate"], arrays[f"{name}_share"] = rates, shares
            lists[f"{name}_bins"] = [list(b) if len(b) > 1 else b[0] for b in occupied]
        return arrays, lists

    def sensitivity(self, table: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        ap = np.array(
            [
                [
                    self.ap([m is not None for m in row[k]], len(self.own[label]))
                    for k, label in enumerate(self.labels)
                ]
                for row in table
            ]
        )
        arrays: dict[str, Any] = {"sens_ap_n": ap, "sens_base_average_map_n": ap.mean()}
        lists: dict[str, Any] = {}
        for name in self.bins:
            values, occupied = [], []
            for chosen in self.bins[name]["names"]:
                inside = {
                    i for i, g in enumerate(self.truth) if self.bin_of(name, g[name]) == chosen
                }
                if inside:
                    occupied.append(chosen)
                    values.append(self.only(table, inside))
            arrays[f"sens_{name}"], lists[f"sens_{name}_bins"] = values, occupied
        return arrays, lists

    def only(self, table: list[Any], inside: set[int]) -> float:
        means = []
        for k, label in enumerate(self.labels):
            count = sum(self.truth[i]["label"] == label for i in inside)
            if not count:
                continue
            lists = [row[k] for row in table]
            gone = [
                any(m is not None and m not in inside for m in column)
                for column in zip(*lists, strict=True)
            ]
            aps = [
                self.ap([m is not None for m, g in zip(row, gone, strict=True) if not g], count)
                for row in lists
            ]
            means.append(sum(aps) / len(aps))
        return sum(means) / len(means)


def random_problem(seed: int) -> tuple[list[Row], list[Row], dict[str, float]]:
    """Ground truths with all characteristics, detections around and beside them, durations."""
    random = np.random.default_rng(seed)
    truth, found, durations = [], [], {}
    labels = ["run", "jump", "throw", "dive"]
    for v in range(12):
        name = f"video {v}"
        duration = durations[name] = float(random.uniform(60, 240))
        count = int(random.integers(1, 9)) if v else 0  # the first video shows nothing
        for _ in range(count):
            length = duration * float(random.choice([0.05, 0.15, 0.3, 0.5, 0.7, 0.9]))
            start = float(random.uniform(0, duration - length))
            row = {"video": name, "start": start, "end": start + length}
            row |= {"label": labels[int(random.choice(4, p=[0.5, 0.3, 0.15, 0.05]))]}
            row |= {"length": length, "coverage": length / duration, "num-instances": count}
            row |= {"context-size": int(random.integers(0, 7))}
            row |= {"context-distance": int(random.integers(0, 4))}
            truth.append(row | {"agreement": float(random.uniform(0, 1))})
        own = [row for row in truth if row["video"] == name]
        for _ in range(40):
            base = own[int(random.integers(len(own)))] if own else None
            if base and random.random() < 0.7:
                width = base["end"] - base["start"]
                shift = random.normal(0, random.choice([0.03, 0.3]), 2) * width
                start, end = base["start"] + shift[0], base["end"] + shift[1]
                if end <= start:
                    start, end = base["start"], base["end"]
                other = random.random() < 0.25
                label = labels[int(random.integers(3))] if other else base["label"]
            else:
                start = float(random.uniform(0, 0.8 * duration))
                end, label = start + float(random.uniform(1, 40)), labels[int(random.integers(3))]
            row = {"video": name, "start": float(start), "end": float(end), "label": label}
            found.append(row | {"score": float(random.random())})
    long = dict(truth[0], end=truth[0]["start"] + 2 * durations[truth[0]["video"]], coverage=2.0)
    empty = dict(truth[-1], end=truth[-1]["start"], length=0.0, coverage=0.0, label="stand")
    return [*truth, long, empty], [r for r in found if r["label"] != "dive"], durations
