"""A diagnosis as tables for a person: percent, "-" where there is nothing to measure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tadpipe.evaluation.characteristics import Characteristic
from tadpipe.evaluation.curves import CURVE_TIOUS
from tadpipe.evaluation.diagnosis import Diagnosis
from tadpipe.evaluation.false_positives import KINDS, TRUE_POSITIVE
from tadpipe.evaluation.recall import EGO4D_TIOUS, EGO4D_TOP_K
from tadpipe.evaluation.sensitivity import Missed, Sensitivity
from tadpipe.pipeline.score_table import count_text
from tadpipe.pipeline.text_table import Row, fitted, prose
from tadpipe.pipeline.video_files import printable

SHOWN = 10  # rows of a list before it is cut; the JSON has all of them


def errors_text(diagnosis: Diagnosis, *, width: int, per_class: bool = False) -> str:
    """All tables of a diagnosis, each in at most `width` characters.

    Args:
        per_class: list every class, not only the worst.
    """
    head = _head(diagnosis, width)
    if not diagnosis.problem.found.score.size:
        actions = count_text(diagnosis.problem.truth.video.size, "action")
        return "\n".join([*head, *prose(f"no detections: missed {actions}, all there are", width)])
    blocks = [
        head,
        _kinds(diagnosis, width),
        _by_characteristic(diagnosis, width),
        *_pairs(diagnosis, width),
        _classes(diagnosis, width, None if per_class else SHOWN),
        _confusion(diagnosis, width),
        _calibration(diagnosis, width),
        _recalls(diagnosis, width),
        _tiou_curve(diagnosis, width),
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def _head(diagnosis: Diagnosis, width: int) -> list[str]:
    tious = diagnosis.tious
    span = f"{min(tious):.2f}" + (f" to {max(tious):.2f}" if len(tious) > 1 else "")
    lines = [
        f"ERRORS (DETAD) at tIoU {span}",
        *prose(
            f"average mAP_N {_percent(diagnosis.average_map_n)}: mAP with normalised precision, as "
            f"if every class had {diagnosis.mean_truth:.1f} actions",
            width,
        ),
    ]
    if diagnosis.dropped:
        text = f"{count_text(diagnosis.dropped, 'action')} of no length or longer than the video"
        lines += prose(f"{text} left out of everything with mAP_N", width)
    return lines


def _kinds(diagnosis: Diagnosis, width: int) -> list[str]:
    errors = diagnosis.false_positives
    head = ("kind", "mAP_N gain", *(f"{m}G" for m in range(1, len(errors.profile) + 1)))
    gains = ["", *(f"{100 * gain:+.2f}" for gain in errors.gain)]
    rows = [head] + [
        (kind, gain, *map(_percent, share))
        for kind, gain, share in zip(KINDS, gains, errors.profile.T, strict=True)
    ]
    sizes = errors.profile_counts[:, 0].sum(axis=1)
    rows.append(("detections", "", *(str(size) for size in sizes)))
    return [
        *prose(
            "Kinds of detections, %: column 1G holds the G best of every class (G = its number of "
            "actions), 2G the next G, ...; gain: what average mAP_N rises by when all errors of "
            "the kind are taken out",
            width,
        ),
        *fitted(rows, width),
    ]


def _by_characteristic(diagnosis: Diagnosis, width: int) -> list[str]:
    missed = {
        group.characteristics[0]: group
        for group in diagnosis.false_negatives.by_bin
        if len(group.characteristics) == 1
    }
    lines = prose(
        "Sensitivity: average mAP_N on the actions of one bin, and relative to all "
        f"({_percent(diagnosis.average_map_n)}); missed: actions without a match, mean over tIoU "
        f"(of all actions {_percent(diagnosis.false_negatives.unmatched.mean())} %)",
        width,
    )
    for item, part in zip(diagnosis.characteristics, diagnosis.sensitivity, strict=True):
        lines += ["", *_sensitivity(item, part, missed[item.name], diagnosis, width)]
    return lines


def _sensitivity(
    item: Characteristic, part: Sensitivity, missed: Missed, diagnosis: Diagnosis, width: int
) -> list[str]:
    base = diagnosis.average_map_n
    ranges = {name: _range(item, i) for i, name in enumerate(item.bins.names)}
    source = "from the file" if item.from_file else "computed"
    rows: list[Row] = [
        (item.name, *part.bins),
        ("range", *(ranges[name] for name in part.bins)),
        ("% of actions", *map(_percent, missed.share)),
        ("mAP_N", *map(_percent, part.average_map_n)),
        ("relative", *(f"{v / base:.2f}x" if base else "-" for v in part.average_map_n)),
        ("missed %", *map(_percent, missed.unmatched_rate)),
    ]
    lines = fitted(rows, width)
    without = int((item.bin_of < 0).sum())
    note = f"({source}" + (f"; {count_text(without, 'action')} in no bin)" if without else ")")
    return [f"{lines[0]}  {note}" if len(lines[0]) + len(note) + 2 <= width else lines[0],
            *lines[1:]]  # fmt: skip


def _range(item: Characteristic, number: int) -> str:
    low, high = item.bins.edges[number : number + 2]
    if math.isinf(high):
        return f"> {_short(low)}"
    if low == high or item.name in ("context-size", "context-distance"):
        return _short(high)
    return f"{_short(max(low, 0.0))}-{_short(high)}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _pairs(diagnosis: Diagnosis, width: int) -> list[list[str]]:
    """One block for each pair of characteristics."""
    bins = {item.name: item.bins.names for item in diagnosis.characteristics}
    blocks = []
    for group in diagnosis.false_negatives.by_bin:
        if len(group.characteristics) < 2:
            continue
        first, second = group.characteristics
        cells = {
            names: f"{_percent(rate)} ({count})"
            for names, rate, count in zip(
                group.bins, group.unmatched_rate, group.num_truth, strict=True
            )
        }
        columns = [b for b in bins[second] if any(names[1] == b for names in cells)]
        rows: list[Row] = [(f"{first} \\ {second}", *columns)]
        for a in bins[first]:
            if any(names[0] == a for names in cells):
                rows.append((a, *(cells.get((a, b), "-") for b in columns)))
        title = f"Missed actions by {first} and {second}, % (of so many)"
        blocks.append([*prose(title, width), *fitted(rows, width)])
    return blocks


def _classes(diagnosis: Diagnosis, width: int, limit: int | None) -> list[str]:
    errors = diagnosis.false_positives
    counts = errors.class_counts().mean(axis=0)  # [K, 6]
    average = diagnosis.ap.mean(axis=0)
    order = np.argsort(average, kind="stable")[:limit].tolist()
    rows: list[Row] = [("class", "AP", "actions", "right", "most frequent error", "share")]
    for k in order:
        total = counts[k].sum()
        worst = 1 + int(counts[k, 1:].argmax())
        has_error = total > 0 and counts[k, worst] > 0
        rows.append(
            (
                printable(diagnosis.labels[k]),
                _percent(average[k]),
                str(int(errors.ranking.num_truth[k])),
                _share(counts[k, TRUE_POSITIVE], total),
                KINDS[worst] if has_error else "-",
                _share(counts[k, worst], total) if has_error else "-",
            )
        )
    which = "" if len(order) == len(diagnosis.labels) else f", the {len(order)} worst"
    title = f"Classes by AP{which}: right and errors in % of the class's G best, mean over tIoU"
    return [*prose(title, width), *fitted(rows, width)]


def _confusion(diagnosis: Diagnosis, width: int) -> list[str]:
    matrix = diagnosis.confusion()
    classes = len(diagnosis.labels)
    wrong = matrix[:classes] * ~np.eye(classes, dtype=bool)
    true, found = np.nonzero(wrong)
    order = np.argsort(-wrong[true, found], kind="stable")[:SHOWN]
    tiou = diagnosis.tious[diagnosis.reference]
    summary = prose(
        f"Classes taken for another, of the G best of each class, true positives at {tiou:.2f}: "
        f"{matrix[:classes].trace()} of {matrix.sum()} lie on an action of their class, "
        f"{wrong.sum()} on one of another, {matrix[classes].sum()} on background",
        width,
    )
    if not order.size:
        return summary
    rows: list[Row] = [("action", "detected as", "count", "% of those detected so")]
    for i in order.tolist():
        a, b = int(true[i]), int(found[i])
        names = (printable(diagnosis.labels[a]), printable(diagnosis.labels[b]))
        rows.append((*names, str(wrong[a, b]), _share(wrong[a, b], matrix[:, b].sum())))
    return [*summary, *fitted(rows, width)]


def _calibration(diagnosis: Diagnosis, width: int) -> list[str]:
    scores = diagnosis.calibration
    if scores is None:
        text = "Calibration: not measured, some scores lie outside 0..1 and are no probabilities"
        return prose(text, width)
    at = diagnosis.reference
    filled = np.flatnonzero(scores.count).tolist()
    error = f"expected calibration error {_percent(scores.error[at])} %"
    rows: list[Row] = [
        ("score", *(f"{i / 10:.1f}-{(i + 1) / 10:.1f}" for i in filled)),
        ("detections", *(str(scores.count[i]) for i in filled)),
        ("mean score %", *(_percent(scores.score[i]) for i in filled)),
        ("right %", *(_percent(scores.precision[at, i]) for i in filled)),
    ]
    head = f"Calibration of scores at tIoU {diagnosis.tious[at]:.2f}: {error}"
    return [*prose(head, width), *fitted(rows, width)]


def _recalls(diagnosis: Diagnosis, width: int) -> list[str]:
    head = ("tIoU", *(f"{k}x" for k in EGO4D_TOP_K))
    at_kx = diagnosis.recalls.at_kx.mean(axis=2)
    curve = diagnosis.recalls.proposals
    last = float(curve.proposals_per_video[-1]) if curve.proposals_per_video.size else 0.0
    points = [n for n in (1, 5, 10, 50, 100) if n <= last + 0.5]
    proposals = "  ".join(f"AR@{n} {_percent(curve.at(n))}" for n in points)
    return [
        *prose("Recall@kx, % (ActionFormer, OpenTAD: the best by score, mean over classes)", width),
        *fitted([head, *_recall_rows(diagnosis.tious, at_kx)], width),
        "",
        *prose(
            "Retrieval recall, % (Ego4D Moment Queries: the first rows of the file, hull overlap, "
            "mean over actions)",
            width,
        ),
        *fitted([head, *_recall_rows(EGO4D_TIOUS, diagnosis.recalls.ego4d)], width),
        "",
        *prose(f"Proposals, labels ignored, %: {proposals}  AUC {_percent(curve.auc)}", width),
    ]


def _recall_rows(tious: Sequence[float], table: np.ndarray) -> list[Row]:
    return [(f"{t:.2f}", *map(_percent, row)) for t, row in zip(tious, table, strict=True)]


def _tiou_curve(diagnosis: Diagnosis, width: int) -> list[str]:
    rows: list[Row] = [
        ("tIoU", *(f"{tiou:.2f}" for tiou in CURVE_TIOUS)),
        ("mAP", *map(_percent, diagnosis.tiou_map)),
    ]
    return ["mAP at every tIoU, %", *fitted(rows, width)]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _share(part: float, whole: float) -> str:
    return _percent(part / whole) if whole else "-"
