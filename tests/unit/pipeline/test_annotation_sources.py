"""Commands take EPIC-Kitchens' and Ego4D's own files as they take JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tadpipe.annotations import Detection, save_detections
from tadpipe.datasets.epic_kitchens import EPIC_KITCHENS_NOUN, EPIC_KITCHENS_VERB
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.pipeline.evaluate import evaluate
from tadpipe.pipeline.extract import _read_annotations
from tadpipe.pipeline.feature_import import import_features
from tadpipe.pipeline.feature_provenance import state_provenance
from tadpipe.pipeline.feature_tables import open_tables, remembered_annotations
from tadpipe.pipeline.presets import load_preset
from tadpipe.pipeline.train_plan import make_plan
from tadpipe.store.feature_store import FeatureStore
from tests.unit.datasets.epic_folder import make_epic_folder

STATED: dict[str, Any] = {
    "backbone": "slowfast",
    "channels": 4,
    "stride": 16,
    "clip_len": 32,
    "fps": 30.0,
    "offset": 16.0,
}


@pytest.fixture
def epic(tmp_path: Path) -> Path:
    """The challenge's files of three videos."""
    return make_epic_folder(tmp_path / "epic")


@pytest.fixture
def store(tmp_path: Path, epic: Path) -> Path:
    """A store that was imported with the folder as its annotations."""
    folder = tmp_path / "features"
    folder.mkdir()
    for name, rows in (("a", 18), ("b", 35), ("c", 54)):
        np.savez(folder / f"{name}.npz", feats=np.ones((rows, 4), np.float32))
    path = tmp_path / "s.zarr"
    provenance = state_provenance(**STATED)
    import_features(
        [folder], store=path, provenance=provenance, annotations=epic, dataset="epic_kitchens_verb"
    )
    return path


@pytest.mark.parametrize(("spec", "label"), [(EPIC_KITCHENS_VERB, 3), (EPIC_KITCHENS_NOUN, 299)])
def test_a_store_remembers_both_tasks(store: Path, spec: DatasetSpec, label: int) -> None:
    kept = remembered_annotations(FeatureStore.open(store), spec)
    assert kept is not None
    (action,) = kept.videos["a"].actions
    assert kept.labels.index(action.label) == label


def test_a_store_without_its_data_set_named_has_the_task_it_was_made_for(store: Path) -> None:
    kept = remembered_annotations(FeatureStore.open(store), None)
    assert kept is not None
    assert kept.labels == ("id_000", "id_003")


@pytest.mark.parametrize("task", ["verb", "noun"])
def test_training_takes_the_folder_and_holds_absent_classes_down(
    store: Path, epic: Path, task: str
) -> None:
    name = f"actionformer/epic_slowfast_{task}"
    plan = make_plan(
        open_tables([store]),
        name,
        load_preset(name, ["features.channels=4"]),
        annotations=epic,
        dataset=None,
        subset=None,
        test_subset=None,
        val_subset=None,
        seed=0,
    )
    assert plan.subsets[:2] == ("training", "validation")
    present = {"verb": {0, 3}, "noun": {7, 299}}[task]
    classes = {"verb": 97, "noun": 300}[task]
    assert len(plan.recipe.labels) == classes
    assert set(range(classes)) - set(plan.recipe.model["empty_classes"]) == present
    assert len(plan.training_windows()) == 2
    assert plan.truth().videos["c"].actions[0].start_sec == 1.0


def test_detections_of_a_task_are_scored_against_the_folder(epic: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    save_detections(path, {"c": [Detection(1.0, 2.0, "id_003", 0.9)]})
    scored = evaluate(path, annotations=epic, dataset="epic_kitchens_verb", protocol="official")
    assert (scored.average_map, scored.subset) == (1.0, "validation")
    assert scored.score.protocol.name == "epic"


def test_a_submission_is_scored_against_the_folder(epic: Path, tmp_path: Path) -> None:
    row = {"verb": 3, "noun": 7, "action": "3,7", "score": 0.9, "segment": [1.0, 2.0]}
    head = {"version": "0.2", "challenge": "action_detection", "sls_pt": 1, "sls_tl": 1}
    path = tmp_path / "submission.json"
    path.write_text(json.dumps({**head, "sls_td": 1, "results": {"c": [row]}}), encoding="utf-8")
    for dataset in (None, "epic_kitchens"):
        scored = evaluate(path, annotations=epic, dataset=dataset)
        assert {task: score.average_map for task, score in scored.scores.items()} == {
            "verb": 1.0,
            "noun": 1.0,
            "action": 1.0,
        }


def test_detections_of_a_task_are_no_submission(epic: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    save_detections(path, {"c": [Detection(1.0, 2.0, "id_003", 0.9)] * 50})
    with pytest.raises(AnnotationError, match="--dataset epic_kitchens_verb") as caught:
        evaluate(path, annotations=epic)
    assert len(caught.value.defects) == 1


def test_official_rules_are_those_of_the_data_set(tmp_path: Path) -> None:
    found, truth = tmp_path / "found.json", tmp_path / "truth.json"
    save_detections(found, {"v": [Detection(1.0, 2.0, "a", 0.9)]})
    actions = [{"segment": [1, 2], "label": "a", "label_id": 0}]
    document = {"database": {"v": {"subset": "validation", "annotations": actions}}}
    truth.write_text(json.dumps(document), encoding="utf-8")
    for dataset, rules in (("activitynet", "activitynet"), ("thumos14", "actionformer")):
        scored = evaluate(found, annotations=truth, dataset=dataset, protocol="official")
        assert scored.score.protocol.name == rules
    with pytest.raises(ConfigError, match="--dataset"):
        evaluate(found, annotations=truth, protocol="official")


def test_extraction_keeps_a_copy_that_both_tasks_read(epic: Path) -> None:
    annotated = _read_annotations(epic, "epic_kitchens_noun")
    assert annotated.names == ("a", "b", "c")
    assert annotated.raw is not None
    entry = json.loads(annotated.raw)["database"]["a"]["annotations"][0]
    assert (entry["label"], entry["verb"], entry["noun"]) == ("id_299", "id_003", "id_299")
