"""Official checkpoints of stored cases: imported by the command line, run on a store, in seconds.

The stored official cases are used where they are; `own/imported` does the same everywhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tadpipe.detectors.etad import mean_over_stages
from tadpipe.pipeline.recipe import load_detector
from tests.parity.anchor_free import SCORE_ATOL, SECONDS_ATOL, pair_up
from tests.parity.case import Case
from tests.parity.official_checkpoints import (
    import_class_agnostic,
    imported_detections,
    official_yaml,
    one_stage_clips,
    training_state,
)

SHARED = Path(__file__).parents[3] / "shared" / "parity"
ONE_STAGE = {
    "actionformer": "actionformer",
    "tridet": "tridet",
    "dyfadet": "dyfadet",
    "cltdr_gmg": "cltdr-gmg",
}
CASES = [
    path.parent
    for folder in ONE_STAGE
    for path in sorted((SHARED / folder).glob("*/weights.safetensors"))
    if not path.parent.name.startswith("train_step")  # without detections
]
ETAD_CASES = [SHARED / "etad" / name for name in ("proposals_cascade", "variant_b")]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_official_detections_come_out_of_the_imported_run(path: Path, tmp_path: Path) -> None:
    case = Case.open(path)
    clips = one_stage_clips(case)
    tables = {"model": (case.config.get("config") or case.config)["model"]}
    found = imported_detections(
        tmp_path,
        ONE_STAGE[path.parent.name],
        training_state(case.weights()),
        official_yaml(tables, clips[0]),
        clips,
    )
    for number, rows in enumerate(found):
        name = "infer_{0}_{1}" if "inference_inputs" in case.config else "c_{1}_{0}"
        stored = [case.read(name.format(number, kind)) for kind in ("segments", "scores", "labels")]
        ours = [
            np.array([[row.start_sec, row.end_sec] for row in rows]).reshape(-1, 2),
            np.array([row.score for row in rows]),
            np.array([int(row.label) for row in rows]),
        ]
        assert len(ours[1]) == len(stored[1])
        order = pair_up(stored, ours)
        np.testing.assert_allclose(ours[1][order], stored[1], rtol=0, atol=SCORE_ATOL)
        # at the cap the release's unstable sort decides which of equal scores is kept
        clear = stored[1] > stored[1].min(initial=1.0) + SCORE_ATOL
        segments = ours[0][order]
        np.testing.assert_allclose(segments[clear], stored[0][clear], rtol=0, atol=SECONDS_ATOL)
        np.testing.assert_array_equal(ours[2][order][clear], stored[2][clear])


@pytest.mark.parametrize(
    "path", [path for path in ETAD_CASES if path.exists()], ids=lambda path: path.name
)
def test_official_proposals_of_etad_come_out_of_the_imported_run(
    path: Path, tmp_path: Path
) -> None:
    case = Case.open(path)
    import_class_agnostic(tmp_path, case)
    model = load_detector(tmp_path / "run").model
    feats = case.tensor("features")
    mask = torch.ones(feats.shape[0], feats.shape[2], dtype=torch.bool)
    is_release = "final_anchors" in case
    with torch.no_grad():
        outputs = model(feats, mask if is_release else case.tensor("masks"))
    segments, iou = mean_over_stages(outputs.stages)
    names = (
        ("final_anchors", "final_iou") if is_release else ("test_proposals_mean", "test_iou_mean")
    )
    close = {"rtol": case.config["rtol"], "atol": case.config["atol"]}
    np.testing.assert_allclose(segments, case.read(names[0]), **close)
    np.testing.assert_allclose(iou, case.read(names[1]), **close)
