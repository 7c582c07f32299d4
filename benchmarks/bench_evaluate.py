"""Evaluation: CPU seconds of mAP against a per-class loop over predictions, same APs.

Two random problems of the size of THUMOS14 and of ActivityNet-1.3. The baseline is the way every
public evaluator goes, written in a few lines: class by class, prediction by prediction, threshold
by threshold. The diagnosis is measured against DETAD's analyses done the same way
(diagnosis_loop.py), with equal figures.
Run: python benchmarks/bench_evaluate.py [--json PATH] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from diagnosis_loop import diagnosis_loop

from tadpipe.annotations import (
    Action,
    Detection,
    Detections,
    Video,
    load_annotations,
    load_detections,
    save_detections,
)
from tadpipe.config import write_atomically
from tadpipe.evaluation.detection_map import score_detections
from tadpipe.evaluation.diagnosis import Diagnosis, diagnose
from tadpipe.evaluation.proposals import average_recall
from tadpipe.evaluation.tables import DetectionTable, TruthTable

SIZES = {  # videos, detections per video, actions, classes, thresholds
    "THUMOS14": (213, 200, 3524, 20, (0.3, 0.4, 0.5, 0.6, 0.7)),
    "ActivityNet": (
        4728, 100, 8542, 200, (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    ),
}  # fmt: skip


def problem(
    videos: int, per_video: int, actions: int, classes: int, seed: int
) -> tuple[dict[str, Video], Detections]:
    """Random actions; half of the detections are moved actions, half are anywhere."""
    rng = np.random.default_rng(seed)
    labels = [f"class {k:03}" for k in range(classes)]
    owners = np.sort(np.r_[np.arange(min(videos, actions)), rng.integers(0, videos, actions)])
    counts = np.bincount(owners[rng.permutation(owners.size)[:actions]], minlength=videos)
    truth, found = {}, {}
    for v in range(videos):
        name, duration = f"video_{v:05}", float(rng.uniform(60, 240))
        own = rng.integers(0, classes, 2)  # a video shows one or two classes
        spans = _spans(rng, int(counts[v]), duration)
        names = [labels[own[i]] for i in rng.integers(0, 2, len(spans))]
        truth[name] = Video(
            name, "validation", duration, 30.0,
            tuple(Action(s, e, label) for (s, e), label in zip(spans.tolist(), names, strict=True)),
        )  # fmt: skip
        rows = []
        anywhere = _spans(rng, per_video, duration)
        for i in range(per_video):
            score = float(rng.random())
            if spans.size and i % 2:
                j = int(rng.integers(len(spans)))
                start, end = spans[j] + rng.normal(0, 0.1 * (spans[j, 1] - spans[j, 0]), 2)
                rows.append(Detection(float(start), float(end), names[j], score))
            else:
                start, end = anywhere[i]
                label = labels[int(rng.integers(classes))]
                rows.append(Detection(float(start), float(end), label, score))
        found[name] = sorted(rows, key=lambda row: -row.score)
    return truth, found


def _spans(rng: np.random.Generator, count: int, duration: float) -> np.ndarray:
    start = rng.uniform(0, 0.9 * duration, count)
    return np.stack([start, start + rng.uniform(1, 0.1 * duration + 2, count)], axis=1)


def per_class_loop(
    videos: dict[str, Video], detections: Detections, tious: tuple[float, ...]
) -> dict[str, list[float]]:
    """The baseline: AP per class and threshold, one prediction after the other."""
    truths: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(dict)
    for name, video in videos.items():
        for start, end, label in video.actions:
            truths[label].setdefault(name, []).append((start, end))
    found = defaultdict(list)
    for name, rows in detections.items():
        for start, end, label, score in rows:
            found[label].append((score, name, start, end))
    table = {}
    for label, by_video in truths.items():
        spans = {name: np.array(rows) for name, rows in by_video.items()}
        taken = {
            name: np.zeros((len(tious), len(rows)), dtype=bool) for name, rows in spans.items()
        }
        ranked = found[label]
        order = np.argsort([row[0] for row in ranked], kind="stable")[::-1]
        hit = np.zeros((len(tious), len(ranked)))
        for place, index in enumerate(order):
            _, name, start, end = ranked[index]
            if name not in spans:
                continue
            own = spans[name]
            both = np.maximum(np.minimum(end, own[:, 1]) - np.maximum(start, own[:, 0]), 0)
            whole = (own[:, 1] - own[:, 0]) + (end - start) - both
            tiou = both / whole
            best_first = np.argsort(tiou, kind="stable")[::-1]
            for t, threshold in enumerate(tious):
                for choice in best_first:
                    if tiou[choice] < threshold:
                        break
                    if not taken[name][t, choice]:
                        taken[name][t, choice] = True
                        hit[t, place] = 1
                        break
        num_truth = sum(len(rows) for rows in spans.values())
        table[label] = [_average_precision(row, num_truth) for row in hit]
    return table


def read_unchecked(truth_file: Path, found_file: Path) -> tuple[dict[str, Video], Detections]:
    """The files as the baseline reads them."""
    database = json.loads(truth_file.read_text(encoding="utf-8"))["database"]
    results = json.loads(found_file.read_text(encoding="utf-8"))["results"]
    videos = {
        name: Video(name, node["subset"], actions=tuple(
            Action(*entry["segment"], entry["label"]) for entry in node["annotations"]))
        for name, node in database.items()
    }  # fmt: skip
    detections = {
        name: [Detection(*row["segment"], row["label"], row["score"]) for row in rows]
        for name, rows in results.items()
    }
    return videos, detections


def _average_precision(hit: np.ndarray, num_truth: int) -> float:
    if not hit.size:
        return 0.0
    hits = np.cumsum(hit)
    precision = np.r_[0, hits / np.arange(1, hit.size + 1), 0]
    recall = np.r_[0, hits / num_truth, 1]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    rises = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[rises] - recall[rises - 1]) * precision[rises]))


def cpu_seconds(function: Callable[[], Any], repeats: int) -> tuple[Any, list[float]]:
    times = []
    for _ in range(repeats):
        before = time.process_time()
        outcome = function()
        times.append(time.process_time() - before)
    return outcome, times


def measure(name: str, repeats: int, folder: Path) -> list[dict[str, Any]]:
    videos_n, per_video, actions, classes, tious = SIZES[name]
    videos, detections = problem(videos_n, per_video, actions, classes, seed=0)
    truth = TruthTable.from_videos(videos)
    found = DetectionTable.from_detections(detections)
    truth_file, found_file = folder / f"{name}.json", folder / f"{name}_found.json"
    database = {
        video.name: {
            "subset": video.subset,
            "duration": video.duration_sec,
            "annotations": [{"segment": [a.start_sec, a.end_sec], "label": a.label}
                            for a in video.actions],
        }
        for video in videos.values()
    }  # fmt: skip
    write_atomically(truth_file, json.dumps({"database": database}))
    save_detections(found_file, detections)

    def from_objects() -> Any:
        return score_detections(
            TruthTable.from_videos(videos),
            DetectionTable.from_detections(detections),
            tious,
            top_k=(),
        )

    def from_files() -> Any:
        return score_detections(
            TruthTable.from_videos(load_annotations(truth_file, for_evaluation=True).videos),
            DetectionTable.from_detections(load_detections(found_file)),
            tious,
            top_k=(),
        )

    baseline, baseline_times = cpu_seconds(lambda: per_class_loop(videos, detections, tious), 1)
    score, object_times = cpu_seconds(from_objects, repeats)
    expected = np.array([baseline[label] for label in score.labels]).T
    difference = float(np.abs(expected - score.ap).max())
    assert difference == 0.0, f"APs differ by {difference}"
    _, file_times = cpu_seconds(
        lambda: per_class_loop(*read_unchecked(truth_file, found_file), tious), 1
    )
    rows = [("baseline: per-class loop, from objects", baseline_times)]
    rows.append(("mAP, from objects", object_times))
    _, times = cpu_seconds(lambda: score_detections(truth, found, tious, top_k=()), repeats)
    rows.append(("mAP, from column tables", times))
    _, times = cpu_seconds(lambda: score_detections(truth, found, tious), repeats)
    rows.append(("mAP and Recall@1x,5x, from column tables", times))
    _, times = cpu_seconds(from_files, repeats)
    rows.append(("baseline: per-class loop, from JSON files, unchecked", file_times))
    rows.append(("mAP, from JSON files, checked", times))
    _, times = cpu_seconds(lambda: average_recall(truth, found, tious), repeats)
    rows.append(("AR@100, from column tables", times))
    rows += measure_diagnosis(videos, detections, tious, repeats)
    return [
        {
            "problem": name,
            "detections": int(found.score.size),
            "actions": int(truth.video.size),
            "classes": len(score.labels),
            "tious": len(tious),
            "what": what,
            "repeats": len(times),
            "cpu_sec_median": statistics.median(times),
            "cpu_sec_min": min(times),
            "baseline_ratio": ratio(what, rows),
            "average_map": score.average_map,
            "max_ap_difference": difference,
        }
        for what, times in rows
    ]


def measure_diagnosis(
    videos: dict[str, Video], detections: Detections, tious: tuple[float, ...], repeats: int
) -> list[tuple[str, list[float]]]:
    """Rows of the diagnosis; its figures are those of the loop."""
    durations = {name: video.duration_sec or np.nan for name, video in videos.items()}

    def vectorised() -> Diagnosis:
        return diagnose(
            TruthTable.from_videos(videos),
            DetectionTable.from_detections(detections),
            tious,
            durations=durations,
        )

    ours, times = cpu_seconds(vectorised, repeats)
    edges = {item.name: item.bins.edges for item in ours.characteristics}
    loop, loop_times = cpu_seconds(lambda: diagnosis_loop(videos, detections, tious, edges), 1)
    assert (loop.counts == ours.false_positives.counts).all()
    pairs = [(loop.gain, ours.false_positives.gain), (loop.average_map_n, ours.average_map_n)]
    pairs += [(loop.unmatched, ours.false_negatives.unmatched.mean())]
    pairs += [(loop.sensitivity[s.characteristic], s.average_map_n) for s in ours.sensitivity]
    for theirs, mine in pairs:
        assert np.allclose(theirs, mine, rtol=0, atol=1e-12), f"{theirs} {mine}"
    return [
        ("baseline: DETAD's analyses as per-class loop, from objects", loop_times),
        ("diagnosis, from objects (DETAD, curves, calibration, confusion, recall)", times),
    ]


def ratio(what: str, rows: list[tuple[str, list[float]]]) -> float | None:
    """How many times faster than the baseline with the same input and task."""
    kind = "diagnosis" if "DETAD" in what else "files" if "files" in what else "objects"
    if what.startswith("AR"):
        return None  # no loop of AR@AN is measured here
    names = {"diagnosis": "DETAD's", "files": "files", "objects": "per-class loop, from objects"}
    baseline = next(t for n, t in rows if n.startswith("baseline") and names[kind] in n)
    return min(baseline) / min(dict(rows)[what])


def machine() -> dict[str, str]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {"cpu": model, "python": platform.python_version(), "numpy": np.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in SIZES for row in measure(name, options.repeats, Path(folder))]
    document = {"machine": machine(), "rows": rows}
    print("| problem | detections / actions / classes / tIoU | what | CPU s median (min) | ratio |")
    print("|---|---|---|---|---|")
    for row in rows:
        sizes = " / ".join(str(row[k]) for k in ("detections", "actions", "classes", "tious"))
        ratio = "-" if row["baseline_ratio"] is None else f"{row['baseline_ratio']:.1f}x"
        print(
            f"| {row['problem']} | {sizes} | {row['what']} | {row['cpu_sec_median']:.3f} "
            f"({row['cpu_sec_min']:.3f}) | {ratio} |"
        )
    print(json.dumps(document))
    if options.json is not None:
        write_atomically(options.json, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
