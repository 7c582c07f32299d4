"""Parity of kind "detad": false positives, false negatives and sensitivity of DETAD.

Files: `ground_truth.json` with the characteristics of every action, `prediction.json`. Bins come
from `case.json`; bins without actions are absent in the stored arrays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tadpipe.annotations import load_annotations, load_detections
from tadpipe.evaluation.characteristics import bins_from_mapping, load_given
from tadpipe.evaluation.diagnosis import DetadRules, Diagnosis, diagnose
from tadpipe.evaluation.normalised_precision import class_ends
from tadpipe.evaluation.protocols import ACTIVITYNET
from tadpipe.evaluation.tables import DetectionTable, TruthTable
from tests.parity.case import Case

ATOL = 1e-12  # stated by every case of this kind
PAIR = re.compile(r"fn_pair_(?P<first>[a-z-]+)_(?P<second>[a-z-]+)_share")


def run(case: Case) -> None:
    """Compare every figure stored in the case."""
    path = case.path / "ground_truth.json"
    videos = load_annotations(path, for_evaluation=True).subset(case.config["subset"])
    result = diagnose(
        TruthTable.from_videos(videos),
        DetectionTable.from_detections(load_detections(case.path / "prediction.json")),
        case.read("tiou_thresholds").tolist(),
        protocol=replace(ACTIVITYNET, unknown_label="ignore"),
        blocked=case.config.get("blocked", ()),
        durations={name: video.duration_sec or np.nan for name, video in videos.items()},
        given=load_given(path),
        bins=bins_from_mapping(case.config["bins"]),
        rules=_rules(case),
    )
    case.compare("labels", result.labels, case.config["labels"])
    ours = {**_false_positives(result), **_characteristics(case, result)}
    for name, array in ours.items():
        if name in case:
            case.check(name, array, atol=ATOL)


def _rules(case: Case) -> DetadRules:
    """The constants of the case; what our three runs fix is stated to be so."""
    settings = case.config["settings"]
    for name, expected in (
        ("fp", {"normalize": True, "min_norm_precision": 0.0}),
        ("fn", {"normalize": True, "limit_factor": None}),
        ("sensitivity", {"normalize": True, "limit_factor": None, "min_norm_precision": 0.0}),
    ):
        case.claim(f"settings {name}", expected.items() <= settings[name].items())
    pairs = [PAIR.fullmatch(name) for name in case.arrays]
    return DetadRules(
        settings["min_tiou"],
        settings["fp"]["limit_factor"],
        settings["fn"]["min_norm_precision"],
        tuple((found["first"], found["second"]) for found in pairs if found),
    )


def _false_positives(result: Diagnosis) -> Mapping[str, object]:
    errors = result.false_positives
    recall, precision = class_ends(errors.ranking)
    return {
        "plain_ap": result.ap,
        "num_gt": result.problem.truth.video.size,
        "avg_instances_per_class": result.mean_truth,
        "fp_ap_n": errors.ap,
        "fp_recall": recall,
        "fp_precision_n": precision,
        "fp_num_predictions_kept": errors.ranking.rows.size,
        "fp_error_counts": errors.counts,
        "fp_profile_counts": errors.profile_counts,
        "fp_profile_fraction": errors.profile,
        "fp_ap_gain_ap": errors.ap_without,
        "fp_average_map_n_gain": errors.gain,
        "fn_ap_n": result.false_negatives.ap,
        "sens_ap_n": result.ap_n,
        "sens_base_average_map_n": result.average_map_n,
    }


def _characteristics(case: Case, result: Diagnosis) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for group in result.false_negatives.by_bin:
        is_pair = len(group.characteristics) > 1
        name = "_".join(["fn", *["pair"] * is_pair, *group.characteristics])
        found[f"{name}_unmatched_rate"] = group.unmatched_rate
        found[f"{name}_share"] = group.share
        if f"{name}_bins" in case.config:
            bins = [list(names) if is_pair else names[0] for names in group.bins]
            case.compare(f"{name}_bins", bins, case.config[f"{name}_bins"])
    for item in result.sensitivity:
        name = f"sens_{item.characteristic}"
        found[name] = item.average_map_n
        if f"{name}_bins" in case.config:
            case.compare(f"{name}_bins", item.bins, case.config[f"{name}_bins"])
    return found
