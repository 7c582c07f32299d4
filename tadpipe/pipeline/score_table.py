"""A detection score as text for a person: percent, and what was and was not counted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tadpipe.evaluation.detection_map import DetectionScore
from tadpipe.pipeline.text_table import aligned
from tadpipe.pipeline.video_files import printable

SHOWN = 10  # names of a list before it is cut; the JSON has all of them


def score_text(
    score: DetectionScore,
    title: str,
    *,
    per_class: bool = False,
    blocked_because: Mapping[str, str] | None = None,
) -> str:
    """The score as a table with the thresholds as columns.

    Args:
        title: what was scored, such as data set and subset.
        blocked_because: video -> why it is not scored.
    """
    head = [f"protocol {score.protocol.name}", *([title] if title else [])]
    table = [("tIoU", *(f"{tiou:.2f}" for tiou in score.tious), "average")]
    table.append(_row("mAP", score.map_at.tolist()))
    for j, k in enumerate(score.top_k):
        table.append(_row(f"recall@{k}x", score.recall_at[:, j].tolist()))
    lines = [", ".join(head), *aligned(table)]
    if per_class:
        lines += ["", *aligned(_class_rows(score))]
    return "\n".join([*lines, *counted_text(score, blocked_because or {})])


def counted_text(score: DetectionScore, blocked_because: Mapping[str, str]) -> list[str]:
    """Lines on what the score is of: videos, and everything that was left out."""
    actions, rows = int(score.num_truth.sum()), int(score.num_detections.sum())
    lines = [
        f"{count_text(score.videos, 'video')} scored with {count_text(actions, 'action')} "
        f"of {count_text(len(score.labels), 'class', 'classes')}; {count_text(rows, 'detection')}",
        f"{count_text(len(score.missing), 'video')} without any detection{_names(score.missing)}",
        f"{count_text(len(score.blocked), 'video')} blocked"
        + _names([_with_reason(video, blocked_because) for video in score.blocked]),
    ]
    if score.foreign:
        lines.append(
            f"{count_text(len(score.foreign), 'video')} not in the subset, their detections count "
            f"as false positives{_names(score.foreign)}"
        )
    if score.unknown_labels:
        fate = "left out"
        if score.protocol.unknown_label == "collide":
            fate = "left out, or counted for the class that has their number"
        listed = [f"{label} ({count})" for label, count in score.unknown_labels.items()]
        lines.append(f"detections of labels without ground truth {fate}{_names(listed)}")
    if score.tied_scores:
        lines.append(
            f"warning: {count_text(score.tied_scores, 'detection')} with equal scores; the later "
            "row is taken first, other evaluators may order them otherwise"
        )
    return lines


def _class_rows(score: DetectionScore) -> list[tuple[str, ...]]:
    thresholds = (f"{tiou:.2f}" for tiou in score.tious)
    rows: list[tuple[str, ...]] = [("class", *thresholds, "average", "actions", "detections")]
    for k, label in enumerate(score.labels):
        counts = (str(int(score.num_truth[k])), str(int(score.num_detections[k])))
        rows.append((*_row(label, score.ap[:, k].tolist()), *counts))
    return rows


def _row(name: str, values: Sequence[float]) -> tuple[str, ...]:
    """Values and their mean in percent."""
    mean = sum(values) / len(values)
    return (name, *(f"{100 * value:.2f}" for value in (*values, mean)))


def _names(names: Collection[str]) -> str:
    """`: a, b, ...` with the names, or nothing."""
    if not names:
        return ""
    shown = ", ".join(printable(name) for name in list(names)[:SHOWN])
    return f": {shown}" + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def _with_reason(video: str, blocked_because: Mapping[str, str]) -> str:
    reason = blocked_because.get(video)
    return f"{video} ({reason})" if reason else video


def count_text(number: int, singular: str, plural: str = "") -> str:
    """`1 video`, `2 videos`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
