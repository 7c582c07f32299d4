"""train_detector: from a store alone to a run folder, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tadpipe.annotations import load_detections
from tadpipe.errors import CheckpointError, ConfigError, StoreError
from tadpipe.pipeline.train_detector import TrainResult, load_detector, train_detector
from tadpipe.training.checkpoint import load_weights
from tadpipe.training.metrics import read_metrics
from tests.unit.pipeline.tiny_store import CHANNELS, SMALL, SPEC, make_store

FILES = {
    "config.json",
    "detections.json",
    "environment.json",
    "eval.json",
    "metrics.jsonl",
    "model.safetensors",
    "model_plain.safetensors",
    "recipe.json",
    "state.pt",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "tiny.zarr")


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("run") / "first"
    return train_detector(
        store, sets=(*SMALL, "training.validate_every=2"), out=out, device="cpu", seed=3
    )


def test_a_store_alone_is_enough(trained: TrainResult) -> None:
    assert trained.subsets == ("training", "testing", "validation")
    assert trained.videos == 6
    assert (trained.epochs, trained.steps) == (4, 12)
    assert set(trained.losses) == {"cls", "reg", "loss"}
    assert trained.evaluation is not None
    assert {path.name for path in trained.run.iterdir()} == FILES


def test_run_folder_says_what_it_was_made_from(trained: TrainResult) -> None:
    config = json.loads((trained.run / "config.json").read_text())
    recipe = json.loads((trained.run / "recipe.json").read_text())
    made_on = json.loads((trained.run / "environment.json").read_text())
    assert config["model"]["in_channels"] == CHANNELS
    assert config["model"]["num_classes"] == 2
    assert config["training"]["learning_rate"] == 0.003
    assert recipe["labels"] == ["class 0", "class 1"]
    assert recipe["fids"] == [SPEC.fid]
    assert (made_on["seed"], made_on["device"]) == (3, "cpu")


def test_detections_are_those_of_the_test_subset_only(trained: TrainResult) -> None:
    detections = load_detections(trained.run / "detections.json")
    assert set(detections) == {"video 8", "video 9"}
    scored = json.loads((trained.run / "eval.json").read_text())
    assert scored["subset"] == "testing"


def test_validation_is_reported_beside_the_losses(trained: TrainResult) -> None:
    reports = [line for line in read_metrics(trained.run) if "validation_map" in line]
    assert [(line["step"], line["epoch"]) for line in reports] == [(5, 2), (11, 4)]


def test_both_sets_of_weights_load_strictly(trained: TrainResult) -> None:
    averaged = load_detector(trained.run)
    plain = load_detector(trained.run, weights="plain")
    assert not averaged.model.training
    for detector, file in ((averaged, "model"), (plain, "model_plain")):
        stored = load_weights(trained.run / f"{file}.safetensors")
        for name, value in detector.model.state_dict().items():
            assert torch.equal(value, stored[name])
    a, b = averaged.model.state_dict(), plain.model.state_dict()
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_resuming_a_finished_run_changes_nothing(trained: TrainResult, store: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained.run.glob("*.json*")}
    again = train_detector(
        store,
        sets=(*SMALL, "training.validate_every=2"),
        out=trained.run,
        device="cpu",
        seed=3,
        resume=True,
    )
    assert again.losses == trained.losses
    assert {path.name: path.read_bytes() for path in trained.run.glob("*.json*")} == before


def test_a_run_is_never_overwritten(trained: TrainResult, store: Path) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        train_detector(store, sets=SMALL, out=trained.run, device="cpu")


def test_resuming_with_other_settings_names_them(trained: TrainResult, store: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs was 3, now 5"):
        train_detector(
            store,
            sets=(*SMALL, "training.validate_every=2", "training.epochs=5"),
            out=trained.run,
            device="cpu",
            seed=3,
            resume=True,
        )


def test_resuming_on_other_features_is_refused(trained: TrainResult, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other.zarr", spec=dataclasses.replace(SPEC, stride=8))
    with pytest.raises(ConfigError) as caught:
        train_detector(other, sets=SMALL, out=trained.run, device="cpu", seed=3, resume=True)
    text = str(caught.value)
    assert "Features do not fit the run." in text
    assert "other.zarr: stride 8 frames (made-up);" in text
    assert f"run {trained.run}: stride 4 frames (made-up)" in text
    assert "--stride 4" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 8}, "stride 8 frames"),
        ({"clip_len": 32}, "clip 32 frames"),
        ({"backbone": "another"}, "backbone another"),
        ({"channels": 6}, "width 6 channels"),
    ],
    ids=["stride", "clip", "backbone", "width"],
)
def test_a_preset_refuses_features_that_are_not_its_own(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    spec = dataclasses.replace(SPEC, **change)  # type: ignore[arg-type]
    store = make_store(tmp_path / "other.zarr", spec=spec)
    checks = [
        "features.stride=4",
        "features.clip_len=16",
        'features.backbone="made-up"',
        "features.channels=4",
    ]
    with pytest.raises(ConfigError) as caught:
        train_detector(store, sets=(*SMALL, *checks), out=tmp_path / "run", device="cpu")
    lines = str(caught.value).splitlines()
    assert lines[0] == "Features do not fit the preset."
    assert words in lines[1]
    assert "preset actionformer/default: " in lines[1]
    assert "--preset" in lines[2] or "another preset" in lines[2]
    assert not (tmp_path / "run").exists()


def test_dry_run_says_what_would_be_done_and_writes_nothing(store: Path, tmp_path: Path) -> None:
    result = train_detector(store, sets=SMALL, out=tmp_path / "run", device="cpu", dry_run=True)
    assert result.dry_run
    assert result.steps == 12
    assert "would train actionformer" in result.text()
    assert not (tmp_path / "run").exists()


def test_two_stores_are_joined_on_channels(store: Path, tmp_path: Path) -> None:
    second = make_store(
        tmp_path / "second.zarr", spec=dataclasses.replace(SPEC, backbone="second", channels=6)
    )
    result = train_detector(
        [store, second],
        sets=(*SMALL, "training.epochs=1", "training.stop_after_epochs=1"),
        out=tmp_path / "run",
        device="cpu",
    )
    config = json.loads((result.run / "config.json").read_text())
    assert config["model"]["in_channels"] == 10
    assert [spec["backbone"] for spec in config["features"]] == ["made-up", "second"]


def test_a_multiple_of_the_stride_is_read_and_recorded_as_such(store: Path, tmp_path: Path) -> None:
    result = train_detector(
        store,
        stride=8,
        sets=(*SMALL, "training.stop_after_epochs=1"),
        out=tmp_path / "run",
        device="cpu",
    )
    recipe = json.loads((result.run / "recipe.json").read_text())
    assert recipe["features"][0]["stride"] == 8
    assert recipe["fids"] == [dataclasses.replace(SPEC, stride=8).fid]


def test_videos_on_one_side_only_are_named(store: Path, tmp_path: Path) -> None:
    from tadpipe.store.feature_store import FeatureStore

    document = json.loads(FeatureStore.open(store).annotations() or b"")
    gone = document["database"].pop("video 1")
    document["database"]["not extracted"] = gone
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    result = train_detector(
        store, annotations=path, sets=SMALL, out=tmp_path / "run", device="cpu", dry_run=True
    )
    assert result.without_features == ("not extracted",)
    assert result.without_annotations == ("video 1",)
    assert "1 annotated videos have no features: not extracted" in result.text()


def test_a_subset_without_any_features_is_an_error(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    action = {"segment": [1.0, 2.0], "label": "a"}
    document = {"database": {"x": {"subset": "train", "duration": 9.0, "annotations": [action]}}}
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="No video of the training subset has features"):
        train_detector(store, annotations=path, sets=SMALL, out=tmp_path / "run", device="cpu")


def test_a_store_without_annotations_asks_for_them(tmp_path: Path) -> None:
    from tadpipe.store.feature_store import FeatureStore

    filled = make_store(tmp_path / "filled.zarr")
    (filled / "annotations.json").unlink()
    if FeatureStore.open(filled).annotations() is not None:
        pytest.skip("this store keeps annotations elsewhere")
    with pytest.raises(ConfigError, match="--annotations"):
        train_detector(filled, sets=SMALL, out=tmp_path / "run", device="cpu")


def test_a_class_agnostic_detector_has_one_label_and_is_scored_on_it(
    store: Path, tmp_path: Path
) -> None:
    result = train_detector(
        store,
        sets=(*SMALL, "windows.class_agnostic=true", "training.stop_after_epochs=1"),
        out=tmp_path / "run",
        device="cpu",
    )
    assert json.loads((result.run / "recipe.json").read_text())["labels"] == ["action"]
    assert result.evaluation is not None
    assert list(result.evaluation.score.labels) == ["action"]


def test_classes_without_training_actions_are_held_down(store: Path, tmp_path: Path) -> None:
    from tadpipe.store.feature_store import FeatureStore

    document = json.loads(FeatureStore.open(store).annotations() or b"")
    document["database"]["video 9"]["annotations"][0]["label"] = "class 9"
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    result = train_detector(
        store,
        annotations=path,
        sets=(*SMALL, "training.stop_after_epochs=1"),
        out=tmp_path / "run",
        device="cpu",
    )
    config = json.loads((result.run / "config.json").read_text())
    assert config["labels"] == ["class 0", "class 1", "class 9"]
    assert config["model"]["empty_classes"] == [2]


def test_the_validation_subset_is_never_the_test_subset(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation subset is the test subset"):
        train_detector(store, sets=SMALL, val_subset="Testing", out=tmp_path / "run", device="cpu")


def test_an_unfinished_run_has_no_model(trained: TrainResult, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_bytes((trained.run / "recipe.json").read_bytes())
    with pytest.raises(CheckpointError, match="no trained model yet"):
        load_detector(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Not the folder of a training run"):
        load_detector(tmp_path)


def test_a_changed_recipe_is_noticed(trained: TrainResult, tmp_path: Path) -> None:
    recipe = json.loads((trained.run / "recipe.json").read_text())
    recipe["features"][0]["stride"] = 8
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match="feature specs were changed"):
        load_detector(tmp_path)


def test_weights_of_another_model_are_refused(trained: TrainResult, tmp_path: Path) -> None:
    recipe = json.loads((trained.run / "recipe.json").read_text())
    recipe["model"]["embed_layers"] = 3
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "model.safetensors").write_bytes((trained.run / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="missing"):
        load_detector(tmp_path)
