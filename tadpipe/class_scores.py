"""External video-level class scores, fused with class-less or one-class detections after NMS.

Source: the ActivityNet protocol of ActionFormer (Zhang et al., ECCV 2022), where a video classifier
names the two likeliest classes and the detector says where they happen.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from tadpipe.annotations import Detection
from tadpipe.errors import ConfigError


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
            "Turn logits into probabilities first.",
        )
    labels = heapq.nlargest(topk, class_scores, key=class_scores.__getitem__)
    taken = heapq.nlargest(num_pred, detections, key=lambda detection: detection.score)
    return [
        detection._replace(label=label, score=math.sqrt(class_scores[label] * detection.score))
        for label in labels
        for detection in taken
    ]
