"""External video-level class scores, fused with class-less or one-class detections after NMS.

Order: ClassFusionConfig -> name_class_scores (an entry of a score file) -> scaled_class_scores ->
fuse_class_scores. A video classifier names the likeliest classes of a video, the detector says
where they happen. Rules: ActionFormer (Zhang et al., ECCV 2022), "sqrt"; BMN (Lin et al.,
ICCV 2019) and ETAD (Liu et al., 2022), "product"; raw scores as in DyFADet (Yang et al., ECCV
2024), logits of HACS as in TCANet (Qing et al., CVPR 2021).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tadpipe.annotations import Detection
from tadpipe.errors import ConfigError
from tadpipe.json_text import finite, shown


@dataclass(frozen=True)
class ClassFusionConfig:
    """How detections get their labels; the `[class_scores]` table of a preset."""

    rule: Literal["sqrt", "product"] = "sqrt"  # sqrt(score x class score), or without the root
    top_k: int = 2  # classes of a video that every segment is copied for, likeliest first
    # What the file's scores are turned into first. "softmax-if-raw": a softmax over the classes
    # of a video that has any score outside [0, 1].
    scale: Literal["none", "softmax", "2*softmax", "softmax-if-raw"] = "none"
    max_segments: int = 200  # of a video, taken best first before copying

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.max_segments < 1:
            raise ConfigError(
                "At least one class and one segment.",
                f"top_k = {self.top_k}, max_segments = {self.max_segments}",
            )


def name_class_scores(
    entry: Sequence[float] | Sequence[Sequence[float]], labels: Sequence[str]
) -> dict[str, float]:
    """Scores by label, from one video's entry of a score file.

    Args:
        entry: one score per label, or a list that holds that list and nothing else.
        labels: names in the order of the scores.
    Raises:
        ConfigError: more or fewer scores than labels, or a score that is no finite number.
    """
    scores: Sequence[Any] = entry
    if len(entry) == 1 and isinstance(entry[0], Sequence):
        scores = entry[0]
    if len(scores) != len(labels) or any(isinstance(score, (list, tuple)) for score in scores):
        raise ConfigError(
            "A video needs one class score per label.",
            f"{len(scores)} scores, {len(labels)} labels",
            "Use the score file of this data set.",
        )
    if all(type(score) is float and math.isfinite(score) for score in scores):  # the usual case
        return dict(zip(labels, scores, strict=True))
    named = {}
    for label, score in zip(labels, scores, strict=True):
        value = finite(score)
        if value is None:
            raise ConfigError(
                "A class score is no finite number.",
                f"{label}: {shown(score)} is no finite number",
                "Make the score file anew.",
            )
        named[label] = value
    return named


def scaled_class_scores(class_scores: Mapping[str, float], scale: str) -> dict[str, float]:
    """The scores of a video as they are fused; `scale` as in ClassFusionConfig."""
    in_range = all(0 <= score <= 1 for score in class_scores.values())
    if scale == "none" or not class_scores or (scale == "softmax-if-raw" and in_range):
        return dict(class_scores)
    factor = 2.0 if scale == "2*softmax" else 1.0
    highest = max(class_scores.values())
    powers = {label: math.exp(score - highest) for label, score in class_scores.items()}
    total = sum(powers.values())
    return {label: factor * power / total for label, power in powers.items()}


def fuse_class_scores(
    detections: Sequence[Detection], class_scores: Mapping[str, float], config: ClassFusionConfig
) -> list[Detection]:
    """Give the best detections of one video each of the video's likeliest classes.

    Args:
        detections: in any order, after NMS; their own labels are not read.
        class_scores: label -> score of the whole video; 0 or more once it is scaled.
    Returns:
        Every taken detection once per taken class: best class first, by falling score within a
        class. Of equals, detections and classes alike, the earlier one is first.
    Raises:
        ConfigError: a class score, or the score of a detection, below 0.
    """
    scores = scaled_class_scores(class_scores, config.scale)
    negative = [label for label, score in scores.items() if score < 0]
    if negative:
        raise ConfigError(
            "Class scores must not be negative.",
            f"{negative[0]}: {scores[negative[0]]}",
            "Turn logits into probabilities: --set class_scores.scale=softmax",
        )
    if any(detection.score < 0 for detection in detections):
        raise ConfigError(
            "Detections are fused with class scores by scores of 0 or more.",
            f"lowest score: {min(detection.score for detection in detections)}",
            "Write their probabilities, not logits.",
        )
    labels = heapq.nlargest(config.top_k, scores, key=scores.__getitem__)
    taken = heapq.nlargest(config.max_segments, detections, key=lambda each: each.score)
    fused = []
    for label in labels:
        for detection in taken:
            score = scores[label] * detection.score
            score = math.sqrt(score) if config.rule == "sqrt" else score
            fused.append(detection._replace(label=label, score=score))
    return fused
