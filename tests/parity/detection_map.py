"""Parity of kind "map": mAP, Recall@kx, AR@AN, Ego4D retrieval recall, EPIC.

Files: `ground_truth.json`, `prediction.json`; of EPIC cases `annotations.csv`, `submission.json`.
Arrays `*_unstable` show what an unstable sort gave on one machine; they are read, not compared.
"""

from __future__ import annotations

import json
import re

import numpy as np

from tadpipe.annotations import load_detections
from tadpipe.epic_csv import load_epic_csv
from tadpipe.evaluation.detection_map import score_detections
from tadpipe.evaluation.epic import load_submission, score_epic
from tadpipe.evaluation.proposals import average_recall
from tadpipe.evaluation.protocols import EPIC, PROTOCOLS
from tadpipe.evaluation.recall import ego4d_retrieval_recall
from tadpipe.evaluation.tables import DetectionTable, TruthTable, prepare
from tests.parity.case import Case

ATOL = 1e-12  # stated by every case of this kind
CURVE = re.compile(r"(?P<opentad>opentad_)?an(?P<max_an>\d+|none)_(?P<what>\w+)")


def run(case: Case) -> None:
    """Compare every score stored in the case."""
    for name in case.arrays:
        if name.endswith("_unstable"):
            case.read(name)
    if (case.path / "submission.json").exists():
        _epic(case)
        return
    truth = _ground_truth(case)
    found = DetectionTable.from_detections(load_detections(case.path / "prediction.json"))
    for name in ("activitynet", "actionformer", "opentad"):
        if f"{name}_ap" in case:
            _detection_map(case, truth, found, name)
    _proposal_curves(case, truth, found)
    if "ego4d_retrieval_recall" in case:
        # EPIC's rules are the wanted ones: ground truth as it is, unknown labels left out.
        problem = prepare(truth, found, EPIC, case.config.get("blocked", ()))
        recall = ego4d_retrieval_recall(problem)
        case.check("ego4d_retrieval_recall", recall, atol=ATOL)


def _ground_truth(case: Case) -> TruthTable:
    """The subset's rows exactly as they stand in the file."""
    text = (case.path / "ground_truth.json").read_text(encoding="utf-8")
    videos = {
        name: node
        for name, node in json.loads(text)["database"].items()
        if node["subset"] == case.config["subset"]
    }
    rows = [
        (i, action["label"], *action["segment"])
        for i, node in enumerate(videos.values())
        for action in node.get("annotations", ())
    ]
    labels = tuple(dict.fromkeys(row[1] for row in rows))
    code = {label: i for i, label in enumerate(labels)}
    return TruthTable(
        tuple(videos),
        labels,
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([code[row[1]] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.float64),
        np.array([row[3] for row in rows], dtype=np.float64),
        case.config["label_to_id"],
    )


def _detection_map(case: Case, truth: TruthTable, found: DetectionTable, name: str) -> None:
    score = score_detections(
        truth,
        found,
        case.read("tiou_thresholds").tolist(),
        protocol=PROTOCOLS[name],
        blocked=case.config.get("blocked", ()),
        top_k=case.config.get("top_k", (1, 5)),
    )
    case.check(f"{name}_ap", score.ap, atol=ATOL)
    if f"{name}_map" in case:
        case.check(f"{name}_map", score.map_at, atol=ATOL)
    if f"{name}_recall_kx" in case:
        case.check(f"{name}_recall_kx", score.recall, atol=ATOL)
    if f"{name}_labels" in case.config:
        case.compare(f"{name}_labels", score.labels, case.config[f"{name}_labels"])
    if name == "opentad" and "opentad_num_gt_after_cleaning" in case.config:
        case.compare(
            "opentad_num_gt_after_cleaning",
            score.num_truth.sum(),
            case.config["opentad_num_gt_after_cleaning"],
        )


def _proposal_curves(case: Case, truth: TruthTable, found: DetectionTable) -> None:
    for name in case.arrays:
        parts = CURVE.fullmatch(name)
        if parts is None or name.endswith("_unstable"):
            continue
        curve = average_recall(
            truth,
            found,
            case.read("tiou_thresholds").tolist(),
            max_an=None if parts["max_an"] == "none" else int(parts["max_an"]),
            variant="opentad" if parts["opentad"] else "activitynet",
            blocked=case.config.get("blocked", ()),
        )
        ours = {
            "recall": curve.recall,
            "avg_recall": curve.average_recall,
            "proposals_per_video": curve.proposals_per_video,
            "auc": curve.auc,
        }
        case.check(name, ours[parts["what"]], atol=ATOL)


def _epic(case: Case) -> None:
    scores = score_epic(
        load_epic_csv(case.path / "annotations.csv"),
        load_submission(case.path / "submission.json"),
        case.read("tiou_thresholds").tolist(),
    )
    for task, score in scores.items():
        case.check(f"{task}_ap", score.ap, atol=ATOL)
        case.check(f"{task}_map", score.map_at, atol=ATOL)
        case.check(f"{task}_map_avg", score.average_map, atol=ATOL)
        case.compare(
            f"{task}_classes",
            [int(label) for label in score.labels],
            case.config[f"{task}_classes"],
        )
