"""train_e2e: from videos to a run folder that detection, extraction and training use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tadpipe.annotations import load_detections
from tadpipe.backbones.loading import load_backbone
from tadpipe.errors import ConfigError
from tadpipe.pipeline.detect_videos import detect
from tadpipe.pipeline.e2e_result import E2EResult
from tadpipe.pipeline.evaluate import evaluate
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.recipe import load_recipe
from tadpipe.pipeline.train_detector import train_detector
from tadpipe.store.feature_store import FeatureStore
from tests.unit.pipeline.small_project import (
    FRAMES_TIA,
    SETTINGS,
    STEPS,
    SmallProject,
    make_project,
    run,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def trained(project: SmallProject, tmp_path_factory: pytest.TempPathFactory) -> E2EResult:
    return run(project, tmp_path_factory.mktemp("run") / "first", egs=0.3)


@pytest.fixture(scope="module")
def with_frames(project: SmallProject, tmp_path_factory: pytest.TempPathFactory) -> E2EResult:
    out = tmp_path_factory.mktemp("run") / "frames"
    return run(project, out, *FRAMES_TIA, tune="adapter", adapter="tia")


def weights_of(backbone: object) -> dict[str, torch.Tensor]:
    assert isinstance(backbone, nn.Module)
    return dict(backbone.state_dict())


def test_both_parts_are_trained_and_kept(trained: E2EResult) -> None:
    assert (trained.videos, trained.epochs, trained.steps) == (4, 2, STEPS)
    assert set(trained.trained_parameters) == {"detector", "backbone"}
    assert {"backbone.safetensors", "model.safetensors", "recipe.json", "eval.json"} <= {
        path.name for path in trained.run.iterdir()
    }
    start = weights_of(load_backbone("videomae-tiny", "random", seed=3))
    tuned = weights_of(load_backbone("videomae-tiny", trained.run / "backbone.safetensors"))
    assert not torch.equal(start["blocks.0.mlp.fc1.weight"], tuned["blocks.0.mlp.fc1.weight"])
    assert set(load_detections(trained.run / "detections.json")) == {"video 5"}


def test_the_detections_of_a_run_can_be_evaluated(
    trained: E2EResult, project: SmallProject
) -> None:
    again = evaluate(
        trained.run / "detections.json", annotations=project.annotations, subset="testing"
    )
    assert trained.evaluation is not None
    assert again.average_map == trained.evaluation.average_map


def test_a_dry_run_writes_nothing(project: SmallProject, tmp_path: Path) -> None:
    result = run(project, tmp_path / "run", dry_run=True)
    assert result.steps == STEPS
    assert "would train" in result.text()
    assert not (tmp_path / "run").exists()


def test_stored_features_of_a_run_train_a_detector_that_detects(
    trained: E2EResult, project: SmallProject, tmp_path: Path
) -> None:
    store = tmp_path / "tuned.zarr"
    extract(
        [project.videos],
        store=store,
        weights=trained.run,
        annotations=project.annotations,
        device="cpu",
        feature_dtype="float32",
    )
    (spec,) = FeatureStore.open(store).specs().values()
    (expected,) = load_recipe(trained.run).features
    assert spec.weights_sha256 == expected.weights_sha256
    assert spec.pixels.size == 32
    settings = [item for item in SETTINGS if not item.startswith("e2e.")]
    on_tuned = train_detector(store, sets=settings, out=tmp_path / "on_tuned", device="cpu")
    assert on_tuned.evaluation is not None
    found = detect(
        [project.videos / "video 5.mp4"],
        model=tmp_path / "on_tuned",
        store=tmp_path / "cache.zarr",
        device="cpu",
    )
    assert found.exit_code == 0


@pytest.mark.parametrize("fixture", ["trained", "with_frames"])
def test_detect_works_with_the_run_alone(
    fixture: str, project: SmallProject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    result: E2EResult = request.getfixturevalue(fixture)
    report = detect(
        [project.videos / "video 5.mp4"], model=result.run, store=tmp_path / "s.zarr", device="cpu"
    )
    wanted = load_detections(result.run / "detections.json")["video 5"]
    ours = report.detections["video 5"]
    assert len(ours) > 0
    # The store rounds features to float16.
    assert abs(ours[0].score - wanted[0].score) < 0.01


def test_frame_features_carry_windows_and_adapters_in_their_spec(with_frames: E2EResult) -> None:
    (spec,) = load_recipe(with_frames.run).features
    assert (spec.representation, spec.window_len, spec.overlap) == ("frame", 32, 16)
    assert spec.adapter_sha256
    assert with_frames.trained_parameters["adapter"] == 10_850


def test_adapters_leave_the_blocks_they_stand_in(with_frames: E2EResult) -> None:
    start = weights_of(load_backbone("videomae-tiny", "random", seed=3))
    tuned = weights_of(load_backbone("videomae-tiny", with_frames.run / "backbone.safetensors"))
    for name, value in start.items():
        assert torch.equal(tuned[name], value), name


def test_resized_windows_are_detected_without_a_store(
    project: SmallProject, tmp_path: Path
) -> None:
    result = run(project, tmp_path / "run", "windows.fit=resize", "training.epochs=1", egs=0.5)
    report = detect(
        [project.videos / "video 5.mp4"],
        model=result.run,
        store=tmp_path / "none.zarr",
        device="cpu",
    )
    assert not (tmp_path / "none.zarr").exists()
    assert report.detections == load_detections(result.run / "detections.json")


def test_a_second_run_starts_from_the_tuned_backbone(
    with_frames: E2EResult, project: SmallProject, tmp_path: Path
) -> None:
    frozen = ("e2e.tune=frozen", "training.epochs=1")
    second = run(project, tmp_path / "second", *FRAMES_TIA, *frozen, weights=with_frames.run)
    assert set(second.trained_parameters) == {"detector"}
    assert load_recipe(second.run).features[0].adapter_sha256
    assert not (second.run / "backbone.safetensors").exists()


def test_what_the_run_decides_cannot_be_asked_of_extract(
    trained: E2EResult, project: SmallProject, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="clip_len 16, asked for 8"):
        extract([project.videos], store=tmp_path / "s.zarr", weights=trained.run, clip_len=8)
    report = extract(
        [project.videos / "video 5.mp4"],
        store=tmp_path / "s.zarr",
        weights=trained.run,
        stride=8,
        device="cpu",
    )
    assert np.asarray(FeatureStore.open(report.store)["video 5"]).shape == (12, 96)


def test_another_configuration_is_not_resumed(trained: E2EResult, project: SmallProject) -> None:
    with pytest.raises(ConfigError, match=r"e2e\.egs\.ratio was 0\.3, now 0\.5"):
        run(project, trained.run, egs=0.5, resume=True)
