"""End to end with backbones that see a whole window: adapters train, clips are never split off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.representation import frame_features
from tadpipe.errors import ConfigError
from tadpipe.pipeline.detect_videos import detect
from tadpipe.pipeline.e2e import train_e2e
from tadpipe.pipeline.e2e_result import E2EResult
from tadpipe.pipeline.recipe import load_recipe
from tadpipe.training.e2e import E2EConfig
from tests.unit.backbones.narrow import narrow_slowfast
from tests.unit.pipeline.small_project import FRAMES_TIA, SETTINGS, SmallProject, make_project

NAME = "narrow-slowfast"


@pytest.fixture(autouse=True)
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(BACKBONES, NAME, "tests.unit.pipeline.test_e2e_windows:builder")


def builder() -> nn.Module:
    model = narrow_slowfast()
    model.arguments = {}  # the builder takes none
    return model


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return make_project(tmp_path_factory.mktemp("project"), training=2)


def run(project: SmallProject, out: Path, *sets: str) -> E2EResult:
    settings = (*SETTINGS, *FRAMES_TIA, "training.epochs=1", "e2e.adapter.stages=[3, 4]", *sets)
    return train_e2e([project.videos], annotations=project.annotations, backbone=NAME,
                     weights="random", sets=settings, out=out, device="cpu", seed=3)  # fmt: skip


def test_adapters_of_slowfast_train_and_detect(project: SmallProject, tmp_path: Path) -> None:
    done = run(project, tmp_path / "run", "e2e.tune=adapter")
    assert set(done.trained_parameters) == {"adapter", "detector"}
    start = state(load_backbone(NAME, "random", seed=3))
    tuned = state(load_backbone(NAME, done.run / "backbone.safetensors"))
    assert all(torch.equal(tuned[name], value) for name, value in start.items())
    (spec,) = load_recipe(done.run).features
    assert spec.adapter_sha256
    found = detect([project.videos / "video 3.mp4"], model=done.run, store=tmp_path / "s.zarr",
                   device="cpu")  # fmt: skip
    assert found.exit_code == 0


def state(backbone: object) -> dict[str, Tensor]:
    assert isinstance(backbone, nn.Module)
    return dict(backbone.state_dict())


def test_some_clips_of_a_whole_window_have_no_gradient_of_their_own(
    project: SmallProject, tmp_path: Path
) -> None:
    sets = ("e2e.tune=full", "e2e.adapter.kind=none", "e2e.adapter.stages=[]", "e2e.egs.ratio=0.5")
    with pytest.raises(ConfigError, match="sees a window as a whole"):
        run(project, tmp_path / "run", *sets)
    assert not (tmp_path / "run").exists()


def test_window_is_one_pass_although_no_adapter_couples_its_clips() -> None:
    config = E2EConfig(tune="full", representation="frame")
    model = narrow_slowfast()
    assert config.couples(model)
    assert not config.coupled
    assert not E2EConfig(tune="full").couples(model)
    clips = torch.randn(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = frame_features(model, clips, 16)
        halves = [frame_features(model, half, 8) for half in clips.split(16, dim=2)]
    assert not torch.allclose(whole, torch.cat(halves, dim=2))
