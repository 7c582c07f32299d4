"""Backbones by name: strict files, asked-for random weights, precision, and our own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tadpipe.backbones.checkpoints import file_sha256
from tadpipe.backbones.loading import load_backbone, require_compiler, save_backbone
from tadpipe.backbones.tia import AdapterConfig, adapter_parameters, add_adapters
from tadpipe.backbones.videomae import VideoMAE, videomae_s, videomae_tiny
from tadpipe.config import PixelRecipe
from tadpipe.errors import CheckpointError, ConfigError

TINY = "videomae-tiny"


def clips(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A tiny backbone with a head, in our own format."""
    torch.manual_seed(4)
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, videomae_tiny(num_classes=6, drop_path=0.1, init_values=0.1))
    return path


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    one, same, other = (load_backbone(TINY, "random", seed=seed) for seed in (1, 1, 2))
    assert one.weights_sha256 == same.weights_sha256 != other.weights_sha256
    with torch.inference_mode():
        assert torch.equal(one(clips()), same(clips()))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_weights_are_never_the_default() -> None:
    with pytest.raises(CheckpointError, match="No weights are published"):
        load_backbone(TINY)


def test_backbone_comes_ready_for_features() -> None:
    backbone = load_backbone(TINY, "random")
    assert isinstance(backbone, nn.Module)
    assert not backbone.training
    assert (backbone.name, backbone.clip_len, backbone.out_channels) == (TINY, 16, 96)
    assert backbone.pixels.size == 32
    with torch.inference_mode():
        assert backbone(clips()).shape == (2, 96)
        assert backbone.feature_map(clips()).shape == (2, 96, 2, 4, 4)


def test_own_file_loads_strictly_and_drops_the_head(trained: Path) -> None:
    backbone = load_backbone(TINY, trained)
    assert backbone.weights_sha256 == file_sha256(trained)
    torch.manual_seed(4)
    original = videomae_tiny(num_classes=6, drop_path=0.1, init_values=0.1).eval()
    with torch.inference_mode():
        assert torch.equal(backbone(clips()), original(clips()))
    assert backbone.builder_arguments() == {**original.builder_arguments(), "num_classes": 0}


def test_own_file_keeps_the_pixel_recipe(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    backbone = videomae_tiny()
    backbone.pixels = PixelRecipe(size=48, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0))
    save_backbone(path, backbone)
    assert load_backbone(TINY, path).pixels == backbone.pixels
    other = PixelRecipe(size=32)
    assert load_backbone(TINY, path, pixels=other).pixels == other


def test_own_file_of_another_backbone_is_refused(trained: Path) -> None:
    with pytest.raises(CheckpointError, match="another backbone") as caught:
        load_backbone("videomae-s", trained)
    assert "--backbone videomae-tiny" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"arguments": "{"}, "damaged"),
        ({"arguments": json.dumps({"depth": 99})}, "cannot be built"),
    ],
)
def test_own_file_with_a_damaged_description_is_refused(
    trained: Path, change: dict[str, str], text: str
) -> None:
    metadata = {"format": "tadpipe-backbone-1", "backbone": TINY, "pixels": "{}", **change}
    save_file(load_file(trained), trained, metadata=metadata)
    with pytest.raises(CheckpointError, match=text):
        load_backbone(TINY, trained)


def test_official_file_of_another_size_names_the_size_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save({"model": videomae_tiny(num_classes=3).state_dict()}, path)
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        load_backbone("videomae-s", path)
    assert "misshapen" in str(caught.value)
    assert "use --backbone videomae-tiny" in str(caught.value)


def test_official_file_loads_with_its_head_left_out(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    model = videomae_tiny(num_classes=3).eval()
    torch.save({"module": model.state_dict()}, path)
    backbone = load_backbone(TINY, path)
    with torch.inference_mode():
        assert torch.equal(backbone(clips()), model(clips()))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_keeps_float32_features(dtype: str) -> None:
    exact = load_backbone(TINY, "random")
    half = load_backbone(TINY, "random", dtype=dtype)
    assert half.weights_sha256 == exact.weights_sha256
    with torch.inference_mode():
        features = half(clips())
        assert features.dtype == torch.float32
        assert torch.allclose(features, exact(clips()), rtol=0, atol=0.05)


def test_small_published_size_has_the_published_pixels() -> None:
    with torch.device("meta"):
        recipe = videomae_s().pixels
    assert (recipe.resize, recipe.interpolation) == ("short-side", "uint8-bilinear")
    assert recipe.mean == (0.485, 0.456, 0.406)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="Unknown backbone") as caught:
        load_backbone("videomae-tiney", "random")
    assert "videomae-tiny" in str(caught.value)
    with pytest.raises(ConfigError, match="Unknown dtype"):
        load_backbone(TINY, "random", dtype="fp8")  # type: ignore[arg-type]  # the point
    with pytest.raises(ConfigError, match="Unknown device"):
        load_backbone(TINY, "random", device="toaster")
    with pytest.raises(ConfigError, match="No such GPU"):
        load_backbone(TINY, "random", device=f"cuda:{torch.cuda.device_count()}")


def test_missing_compiler_is_an_error_before_any_video(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> object:
        def call(_x: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler found\nlong trace")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"torch\.compile does not work") as caught:
        require_compiler(torch.device("cpu"))
    assert "no C++ compiler found" in str(caught.value)
    assert "--compile" in str(caught.value)
    with pytest.raises(ConfigError):
        load_backbone(TINY, "random", compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_backbone_gives_the_same_features() -> None:
    try:
        require_compiler(torch.device("cpu"))
    except ConfigError:
        pytest.skip("no compiler here")
    compiled = load_backbone(TINY, "random", compile=True)
    plain = load_backbone(TINY, "random")
    with torch.inference_mode():
        assert torch.allclose(compiled(clips()), plain(clips()), rtol=1e-4, atol=1e-5)
        maps = compiled.feature_map(clips())
        assert torch.allclose(maps, plain.feature_map(clips()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["tia", "ladder", "plain", "longlora"])
def test_own_file_carries_adapters_and_their_settings(tmp_path: Path, kind: Any) -> None:
    config = AdapterConfig(kind=kind, kernel=5, dilation=2, residual=False, checkpoint=True)
    model = tuned(config)
    path = tmp_path / "tuned.safetensors"
    save_backbone(path, model)
    loaded = load_backbone(TINY, path)
    assert isinstance(loaded, VideoMAE)
    assert loaded.adapters == config
    with torch.inference_mode():
        assert torch.equal(loaded.feature_map(clips(), 2), model.feature_map(clips(), 2))


def tuned(config: AdapterConfig) -> VideoMAE:
    """A tiny backbone whose adapters do something."""
    torch.manual_seed(4)
    model = videomae_tiny().eval()
    add_adapters(model, config)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_adapters_have_an_identity_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "tuned.safetensors"
    found = []
    for config in (
        AdapterConfig(),
        AdapterConfig(checkpoint=True),  # the same numbers
        AdapterConfig(residual=False),
    ):
        save_backbone(path, tuned(config))
        found.append(load_backbone(TINY, path).adapter_sha256)
        assert load_backbone(TINY, path, dtype="bf16").adapter_sha256 == found[-1]
    assert found[0] == found[1] != found[2]
    save_backbone(path, videomae_tiny())
    assert load_backbone(TINY, path).adapter_sha256 == ""
    assert len(found[0]) == 64


def release_state(model: VideoMAE) -> dict[str, Tensor]:
    """A whole detector's state as AdaTAD's release names it; a ladder has no fc_norm there."""
    state: dict[str, Tensor] = {"module.rpn_head.cls_head.weight": torch.zeros(3)}
    for key, value in model.state_dict().items():
        if model.ladders is None or not key.startswith("fc_norm."):
            name = key.replace("patch_embed.proj.", "patch_embed.projection.")
            name = name.replace("mlp.fc1.", "mlp.layers.0.0.").replace("mlp.fc2.", "mlp.layers.1.")
            state[f"module.backbone.model.backbone.{name}"] = value
    state["module.backbone.model.backbone.pos_embed"] = model.pos_table
    return state


@pytest.mark.parametrize("kind", ["tia", "ladder", "plain"])
def test_released_adapters_load_averaged_weights_first(tmp_path: Path, kind: Any) -> None:
    model = tuned(AdapterConfig(kind=kind))
    averaged = release_state(model)
    raw = {name: torch.zeros_like(value) for name, value in averaged.items()}
    path = tmp_path / "epoch_59.pth"
    torch.save({"epoch": 59, "state_dict": raw, "state_dict_ema": averaged}, path)
    loaded = load_backbone(TINY, path)
    assert isinstance(loaded, VideoMAE)
    assert loaded.adapters.kind == kind
    with torch.inference_mode():
        assert torch.equal(loaded.feature_map(clips(), 2), model.feature_map(clips(), 2))


def test_ladder_without_a_final_norm_pools_the_bare_tokens(tmp_path: Path) -> None:
    model = tuned(AdapterConfig(kind="ladder"))
    path = tmp_path / "ladder.pth"
    torch.save({"state_dict": release_state(model)}, path)
    loaded = load_backbone(TINY, path)
    with torch.inference_mode():
        assert torch.equal(loaded(clips()), model.tokens(clips()).mean(dim=1))
    own = tmp_path / "own.safetensors"
    save_backbone(own, loaded)
    with torch.inference_mode():
        assert torch.equal(load_backbone(TINY, own)(clips()), loaded(clips()))


def test_missing_adapter_weights_are_named(tmp_path: Path) -> None:
    state = release_state(tuned(AdapterConfig()))
    del state["module.backbone.model.backbone.blocks.1.adapter.conv.bias"]
    state["module.backbone.model.backbone.blocks.1.adapter.scale"] = torch.ones(1)
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointError) as caught:
        load_backbone(TINY, path)
    assert "missing (1): blocks.1.adapter.conv.bias" in str(caught.value)
    assert "unexpected (1): blocks.1.adapter.scale" in str(caught.value)
