"""Parity of NMS, soft-NMS, voting and external score fusion; told apart by the arrays of a case."""

from __future__ import annotations

import numpy as np

from tadpipe.annotations import Detection
from tadpipe.class_scores import ClassFusionConfig, fuse_class_scores
from tadpipe.detectors.parts.nms import NmsConfig, batched_nms, hard_nms, soft_nms
from tadpipe.detectors.protocol import GridDetections
from tests.parity.case import Case

# "hard" here is the hard weighting of soft-NMS, a factor of 0 from the threshold on.
DECAY_OF_METHOD = {"gaussian": "gaussian", "linear": "linear", "hard": "step"}


def run(case: Case) -> None:
    if "cls_scores" in case:
        run_fusion(case)
    elif "inds" in case:
        run_primitive(case)
    else:
        run_wrapper(case)


def run_primitive(case: Case) -> None:
    """One group without a cap: indices exact, decayed scores within 1e-5."""
    segments, scores = case.read("segs"), case.read("scores")
    params = case.config["params"]
    kept = soft_nms(
        segments,
        scores,
        decay=DECAY_OF_METHOD[params["method"]],  # type: ignore[arg-type]  # one of the literals
        sigma=params["sigma"],
        iou_threshold=params["iou_threshold"],
        min_score=params["min_score"],
    )
    case.check("inds", kept.rows)
    case.check("dets", np.column_stack([segments[kept.rows], kept.scores]), atol=1e-5)
    if "hard_inds" in case:
        hard = hard_nms(segments, scores, iou_threshold=params["iou_threshold"])
        case.check("hard_inds", hard.rows)


def run_wrapper(case: Case) -> None:
    """Class-aware or class-agnostic NMS with cap and votes."""
    params = case.config["params"]
    tridet = "tridet" in case.config["source"].lower()
    config = NmsConfig(
        method="soft" if params["use_soft_nms"] else "hard",
        sigma=params["sigma"],
        iou_threshold=params["iou_threshold"],
        min_score=params["min_score"],
        max_segments=params["max_seg_num"],
        multiclass=params["multiclass"],
        vote_threshold=params["voting_thresh"],
        vote_weight="score" if tridet else "score*tiou",
    )
    found = batched_nms(
        GridDetections(case.tensor("segs"), case.tensor("scores"), case.tensor("labels")), config
    )
    case.check("out_segs", found.segments, atol=1e-4)
    case.check("out_scores", found.scores, atol=1e-4)
    case.check("out_labels", found.labels)


def run_fusion(case: Case) -> None:
    """Predictions of several videos, each with the scores of a video classifier."""
    params = case.config["params"]
    config = ClassFusionConfig(top_k=params["topk"], max_segments=params["num_pred"])
    rows = zip(*(case.read(f"in_{c}") for c in ("video", "start", "end", "score")), strict=True)
    videos: dict[str, list[Detection]] = {}
    for video, start, end, score in rows:
        detection = Detection(float(start), float(end), "", float(score))
        videos.setdefault(str(video), []).append(detection)
    fused = [
        (video, *detection)
        for (video, detections), vector in zip(videos.items(), case.read("cls_scores"), strict=True)
        for detection in fuse_class_scores(
            detections,
            {str(label): float(score) for label, score in enumerate(vector)},
            config,
        )
    ]
    video, start, end, label, score = (np.array(column) for column in zip(*fused, strict=True))
    case.check("out_video", video)
    case.check("out_start", start, atol=1e-6)
    case.check("out_end", end, atol=1e-6)
    case.check("out_label", label.astype(np.int64))
    case.check("out_score", score, atol=1e-6)
