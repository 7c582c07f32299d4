"""External video-level class scores, fused with class-less or one-class detections after NMS.

Order: name_class_scores (an entry of a score file) -> class_probabilities -> fuse_class_scores.
Source: the ActivityNet protocol of ActionFormer (Zhang et al., ECCV 2022), where a video classifier
names the two likeliest classes and the detector says where they happen. Nested entries and raw
scores are read as in DyFADet (Yang et al., ECCV 2024).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from tadpipe.annotations import Detection
from tadpipe.errors import ConfigError


def name_class_scores(
    entry: Sequence[float] | Sequence[Sequence[float]], labels: Sequence[str]
) -> dict[str, float]:
    """Scores by label, from one video's entry of a score file.

    Args:
        entry: one score per label, or a list that holds that list and nothing else.
        labels: names in the order of the scores.
    Raises:
        ConfigError: more or fewer scores than labels, or a score that is no number.
    """
    scores = entry[0] if len(entry) == 1 and isinstance(entry[0], Sequence) else entry
    if len(scores) != len(labels) or any(isinstance(score, Sequence) for score in scores):
        raise ConfigError(
            "A video needs one class score per label.",
            f"{len(scores)} scores, {len(labels)} labels",
            "Use the score file of this data set.",
        )
    return {
        label: float(score)  # type: ignore[arg-type]  # no sequence, checked above
        for label, score in zip(labels, scores, strict=True)
    }


def class_probabilities(class_scores: Mapping[str, float]) -> dict[str, float]:
    """Softmax over the classes if any score lies outside [0, 1], else the scores as they are."""
    if all(0 <= score <= 1 for score in class_scores.values()):
        return dict(class_scores)
    highest = max(class_scores.values())
    powers = {label: math.exp(score - highest) for label, score in class_scores.items()}
    total = sum(powers.values())
    return {label: power / total for label, power in powers.items()}


def fuse_class_scores(
    detections: Sequence[Detection],
    class_scores: Mapping[str, float],
    *,
    num_pred: int = 200,
    topk: int = 2,
) -> list[Detection]:
    """Give the best detections of one video each of the video's likeliest classes.

    Args:
        detections: in any order; their own labels are not read.
        class_scores: label -> score of the whole video, 0 or more.
        num_pred: how many detections are taken, best first.
        topk: how many classes are taken, best first.
    Returns:
        Every taken detection once per taken class, scored sqrt(class score x own score): best
        class first, by falling score within a class.
    Raises:
        ConfigError: a class score below 0.
    """
    negative = [label for label, score in class_scores.items() if score < 0]
    if negative:
        raise ConfigError(
            "Class scores must not be negative.",
            f"{negative[0]}: {class_scores[negative[0]]}",
            "Turn logits into probabilities first, with class_probabilities.",
        )
    labels = heapq.nlargest(topk, class_scores, key=class_scores.__getitem__)
    taken = heapq.nlargest(num_pred, detections, key=lambda detection: detection.score)
    return [
        detection._replace(label=label, score=math.sqrt(class_scores[label] * detection.score))
        for label in labels
        for detection in taken
    ]
