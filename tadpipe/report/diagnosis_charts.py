"""Charts of a diagnosis: which errors, what they cost, which actions are hard, can scores be read.

Figures are those of `tadpipe evaluate --errors` (docs/diagnosis.md), of the first seed of a system.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tadpipe.evaluation.characteristics import Characteristic
from tadpipe.evaluation.curves import RECALL_POINTS
from tadpipe.evaluation.diagnosis import Diagnosis
from tadpipe.evaluation.false_positives import ERRORS, KINDS
from tadpipe.evaluation.sensitivity import Missed
from tadpipe.report.chart import (
    Chart,
    Row,
    by_run,
    layered,
    ordered,
    quantity,
    single_view,
    tips,
)
from tadpipe.report.systems import System, percent

ERROR_SECTION = "Errors"
ACTION_SECTION = "Hard actions"
SCORE_SECTION = "Ranking and scores"
KIND_COLOURS = ("#009E73", "#56B4E9", "#D55E00", "#E69F00", "#CC79A7", "#8c8c8c")
SHOWN_CLASSES = 25  # of a confusion; the most confused ones where there are more
SHOWN_RECALLS = 4  # every 4th of the 101 points of a curve


def diagnosis_charts(systems: Sequence[System]) -> Iterator[Chart]:
    """All cards below the scores."""
    found = [system for system in systems if system.diagnosis.problem.found.score.size]
    if not found:
        return
    for system in found:
        yield _profile(system)
    yield _gain(found)
    for system in found:
        yield _confusion(system)
    for number in range(len(found[0].diagnosis.characteristics)):
        yield _sensitivity(found, number)
        yield _missed(found, number)
    for system in found:
        yield from _missed_by_two(system)
    yield _precision_recall(found)
    yield _calibration(found)
    yield _average_recall(found)


def _of(title: str, system: System) -> str:
    return f"{title}: {system.name}"


def _profile(system: System) -> Chart:
    errors = system.diagnosis.false_positives
    sizes = errors.profile_counts[:, 0].sum(axis=1).tolist()
    rows = [
        {
            "multiple": f"{m + 1}G",
            "kind": kind,
            "order": i,
            "share": percent(share),
            "detections": sizes[m],
        }
        for m, shares in enumerate(errors.profile.tolist())
        if sizes[m]
        for i, (kind, share) in enumerate(zip(KINDS, shares, strict=True))
    ]
    encoding = {
        "x": ordered("multiple", "the G best of every class, the next G, ...",
                     list(dict.fromkeys(row["multiple"] for row in rows)), axis={"labelAngle": 0}),
        "y": {**quantity("share", "% of these detections", domain=[0, 100]), "stack": "zero"},
        "color": {"field": "kind", "type": "nominal", "title": None, "sort": list(KINDS),
                  "scale": {"domain": list(KINDS), "range": list(KIND_COLOURS)},
                  "legend": {"orient": "top", "columns": 2}},
        "order": {"field": "order"},
        "tooltip": tips(multiple="place", kind="kind", share="%", detections="detections"),
    }  # fmt: skip
    note = "G is the number of actions of a class. A perfect detector is all true positives at 1G."
    spec = single_view(rows, {"type": "bar"}, encoding)
    return Chart(ERROR_SECTION, _of("Kinds of detections", system), note, spec)


def _gain(systems: Sequence[System]) -> Chart:
    names = [system.name for system in systems]
    rows = [
        {"run": system.name, "kind": kind, "gain": percent(gain)}
        for system in systems
        for kind, gain in zip(ERRORS, system.diagnosis.false_positives.gain.tolist(), strict=True)
    ]
    encoding = {
        "y": ordered("kind", None, ERRORS),
        "yOffset": {"field": "run", "sort": names},
        "x": quantity("gain", "points of average mAP_N gained"),
        "color": by_run(names),
        "tooltip": tips(run="run", kind="kind", gain="points of mAP_N"),
    }
    note = "What average mAP_N would rise by if all errors of the kind were gone: where work pays."
    return Chart(
        ERROR_SECTION, "Gain per kind of error removed", note,
        single_view(rows, {"type": "bar"}, encoding),
    )  # fmt: skip


def _confusion(system: System) -> Chart:
    diagnosis = system.diagnosis
    matrix = diagnosis.confusion()
    classes = len(diagnosis.labels)
    wrong = matrix[:classes] * ~np.eye(classes, dtype=bool)
    trouble = wrong.sum(axis=0) + wrong.sum(axis=1)
    chosen = sorted(np.argsort(-trouble, kind="stable")[:SHOWN_CLASSES].tolist())
    names = [*(diagnosis.labels[k] for k in chosen), "(background)"]
    sizes = np.maximum(matrix.sum(axis=0), 1)
    rows: list[Row] = [
        {
            "truth": names[i],
            "found": names[j],
            "count": int(matrix[true, k]),
            "share": percent(matrix[true, k] / sizes[k]),
        }
        for i, true in enumerate([*chosen, classes])
        for j, k in enumerate(chosen)
    ]
    encoding = {
        "x": ordered("found", "detected as", names[:-1], axis={"labelLimit": 90}),
        "y": ordered("truth", "lies on an action of", names, axis={"labelLimit": 110}),
        "color": {**quantity("share", "% of column", domain=[0, 100], scheme="cividis"),
                  "legend": {"orient": "top", "gradientLength": 120}},
        "tooltip": tips(truth="lies on", found="detected as", count="detections",
                        share="% of those detected so"),
    }  # fmt: skip
    note = "The G best detections of each class, and what they lie on."
    if classes > len(chosen):
        note += f" The {len(chosen)} most confused of {classes} classes."
    spec = single_view(rows, {"type": "rect"}, encoding)
    spec["height"] = max(220, 18 * len(names))
    return Chart(ERROR_SECTION, _of("Confusion of classes", system), note, spec)


def _sensitivity(systems: Sequence[System], number: int) -> Chart:
    names = [system.name for system in systems]
    item = systems[0].diagnosis.characteristics[number]
    bins = systems[0].diagnosis.sensitivity[number].bins
    rows, rules = [], []
    for system in systems:
        part = system.diagnosis.sensitivity[number]
        rules.append({"run": system.name, "overall": percent(system.diagnosis.average_map_n)})
        rows += [
            {"run": system.name, "bin": name, "range": bin_range(item, name),
             "value": percent(value), "actions": count}
            for name, value, count in zip(
                part.bins, part.average_map_n.tolist(), part.num_truth.tolist(), strict=True
            )
        ]  # fmt: skip
    bars = {
        "mark": {"type": "bar"},
        "encoding": {
            "x": ordered("bin", item.name, bins, axis={"labelAngle": 0}),
            "xOffset": {"field": "run", "sort": names},
            "y": quantity("value", "average mAP_N %", zero=True),
            "color": by_run(names),
            "tooltip": tips(run="run", bin="bin", range="range", value="mAP_N %",
                            actions="actions"),
        },
    }  # fmt: skip
    overall = {
        "data": {"values": rules},
        "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 2},
        "encoding": {"y": {"field": "overall", "type": "quantitative"}, "color": by_run(names)},
    }
    note = f"Average mAP_N on the actions of one bin; dashed: on all. {_ranges(item, bins)}"
    return Chart(
        ACTION_SECTION, f"Sensitivity to {item.name}", note, layered(rows, [bars, overall])
    )


def _missed(systems: Sequence[System], number: int) -> Chart:
    names = [system.name for system in systems]
    item = systems[0].diagnosis.characteristics[number]
    groups = [_single(system.diagnosis, item.name) for system in systems]
    rows = [
        {"run": system.name, "bin": bin_name, "range": bin_range(item, bin_name),
         "missed": percent(rate), "actions": count, "share": percent(share)}
        for system, group in zip(systems, groups, strict=True)
        for (bin_name,), rate, count, share in zip(
            group.bins, group.unmatched_rate.tolist(), group.num_truth.tolist(),
            group.share.tolist(), strict=True,
        )
    ]  # fmt: skip
    encoding = {
        "x": ordered("bin", item.name, [name for (name,) in groups[0].bins],
                     axis={"labelAngle": 0}),
        "xOffset": {"field": "run", "sort": names},
        "y": quantity("missed", "% of the bin's actions missed", zero=True),
        "color": by_run(names),
        "tooltip": tips(run="run", bin="bin", range="range", missed="missed %",
                        actions="actions", share="% of all actions"),
    }  # fmt: skip
    note = "Actions that no detection matches, mean over the thresholds."
    spec = single_view(rows, {"type": "bar"}, encoding)
    return Chart(ACTION_SECTION, f"Missed actions by {item.name}", note, spec)


def _missed_by_two(system: System) -> Iterator[Chart]:
    bins = {item.name: item.bins.names for item in system.diagnosis.characteristics}
    for group in system.diagnosis.false_negatives.by_bin:
        if len(group.characteristics) != 2:
            continue
        first, second = group.characteristics
        rows = [
            {"first": a, "second": b, "missed": percent(rate), "actions": count}
            for (a, b), rate, count in zip(
                group.bins, group.unmatched_rate.tolist(), group.num_truth.tolist(), strict=True
            )
        ]
        encoding = {
            "y": ordered("first", first, bins[first]),
            "x": ordered("second", second, bins[second], axis={"labelAngle": 0}),
            "color": {**quantity("missed", "missed %", domain=[0, 100], scheme="cividis"),
                      "legend": {"orient": "top", "gradientLength": 120}},
            "tooltip": tips(first=first, second=second, missed="missed %", actions="actions"),
        }  # fmt: skip
        title = _of(f"Missed by {first} and {second}", system)
        note = "Empty: no such action."
        yield Chart(ACTION_SECTION, title, note, single_view(rows, {"type": "rect"}, encoding))


def _precision_recall(systems: Sequence[System]) -> Chart:
    names = [system.name for system in systems]
    tious = systems[0].diagnosis.tious
    reference = tious[systems[0].diagnosis.reference]
    rows = [
        {"run": system.name, "tiou": tiou, "recall": round(100 * recall, 1),
         "precision": percent(precision)}
        for system in systems
        for tiou, curve in zip(tious, system.diagnosis.precision.mean(axis=1).tolist(), strict=True)
        for recall, precision in list(zip(RECALL_POINTS.tolist(), curve, strict=True))[
            ::SHOWN_RECALLS
        ]
    ]  # fmt: skip
    spec = single_view(
        rows,
        {"type": "line"},
        {
            "x": quantity("recall", "recall %", domain=[0, 100]),
            "y": quantity("precision", "precision %, mean over classes", domain=[0, 100]),
            "color": by_run(names),
            "strokeDash": by_run(names, "strokeDash"),
            "tooltip": tips(run="run", recall="recall %", precision="precision %"),
        },
        params=[{
            "name": "at",
            "value": reference,
            "bind": {"input": "select", "options": list(tious), "name": "tIoU "},
        }],
        transform=[{"filter": "datum.tiou === at"}],
    )  # fmt: skip
    note = "Interpolated precision. Choose the threshold below."
    return Chart(SCORE_SECTION, "Precision and recall", note, spec)


def _calibration(systems: Sequence[System]) -> Chart:
    names = [system.name for system in systems]
    rows: list[Row] = []
    errors = []
    for system in systems:
        found = system.diagnosis.calibration
        if found is None:
            errors.append(f"{system.name}: scores outside 0..1, not measured")
            continue
        at = system.diagnosis.reference
        errors.append(f"{system.name} {100 * found.error[at]:.1f} %")
        rows += [
            {"run": system.name, "score": percent(score), "right": percent(right),
             "detections": count}
            for score, right, count in zip(
                found.score.tolist(), found.precision[at].tolist(), found.count.tolist(),
                strict=True,
            )
            if count
        ]  # fmt: skip
    even = [{"score": 0, "right": 0}, {"score": 100, "right": 100}]
    x, y = (
        quantity("score", "mean score %", domain=[0, 100]),
        quantity("right", "right %", domain=[0, 100]),
    )
    layers = [
        {"data": {"values": even}, "mark": {"type": "line", "color": "#888", "strokeDash": [3, 3]},
         "encoding": {"x": x, "y": y}},
        {"mark": {"type": "line"},
         "encoding": {"x": x, "y": y, "color": by_run(names),
                      "strokeDash": by_run(names, "strokeDash")}},
        {"mark": {"type": "point", "filled": True, "size": 60},
         "encoding": {"x": x, "y": y, "color": by_run(names), "shape": by_run(names, "shape"),
                      "tooltip": tips(run="run", score="mean score %", right="right %",
                                      detections="detections")}},
    ]  # fmt: skip
    tiou = systems[0].diagnosis.tious[systems[0].diagnosis.reference]
    note = (
        f"Share of true positives at tIoU {tiou:.2f} among detections of a score; on the diagonal, "
        f"scores are probabilities. Expected calibration error: {'; '.join(errors)}."
    )
    return Chart(SCORE_SECTION, "Calibration", note, layered(rows, layers))


def _average_recall(systems: Sequence[System]) -> Chart:
    names = [system.name for system in systems]
    rows, areas = [], []
    for system in systems:
        curve = system.diagnosis.recalls.proposals
        areas.append(f"{system.name} {100 * curve.auc:.1f}")
        rows += [
            {"run": system.name, "proposals": round(number, 2), "recall": percent(value)}
            for number, value in zip(
                curve.proposals_per_video.tolist(), curve.average_recall.tolist(), strict=True
            )
        ]
    encoding = {
        "x": quantity("proposals", "proposals per video"),
        "y": quantity("recall", "average recall %", domain=[0, 100]),
        "color": by_run(names),
        "strokeDash": by_run(names, "strokeDash"),
        "tooltip": tips(run="run", proposals="proposals per video", recall="average recall %"),
    }
    note = f"AR@AN, labels ignored, mean over the thresholds. Area under it: {'; '.join(areas)}."
    return Chart(
        SCORE_SECTION, "Recall of proposals", note, single_view(rows, {"type": "line"}, encoding)
    )


def _single(diagnosis: Diagnosis, name: str) -> Missed:
    """The misses by one characteristic."""
    return next(g for g in diagnosis.false_negatives.by_bin if g.characteristics == (name,))


def bin_range(item: Characteristic, name: str) -> str:
    """The edges of a bin."""
    number = item.bins.names.index(name)
    low, high = item.bins.edges[number : number + 2]
    return f"> {low:.3g}" if np.isinf(high) else f"{max(low, 0.0):.3g} to {high:.3g}"


def _ranges(item: Characteristic, bins: Sequence[str]) -> str:
    return "; ".join(f"{name} {bin_range(item, name)}" for name in bins) + "."
