"""What holds for every convolutional backbone: sizes, kept statistics, batches, files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.conv_parts import FixedBatchNorm
from tadpipe.backbones.i3d import I3d
from tadpipe.backbones.loading import load_backbone, save_backbone
from tadpipe.backbones.r2plus1d import R2Plus1d
from tadpipe.backbones.tsm import R101_BLOCKS, Tsm
from tadpipe.config import PixelRecipe
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.registry import resolve

PARAMETERS = {  # without a head
    "i3d-rgb": 12_287_264,
    "i3d-flow": 12_265_312,
    "r2plus1d-34": 63_491_975,
    "tsm-r50": 23_508_032,
}
SMALL = ("i3d", "r2plus1d", "tsm")
MAPS = {"i3d": (1024, 2, 1, 2), "r2plus1d": (512, 2, 2, 3), "tsm": (256, 16, 1, 2)}


@cache
def small(name: str) -> I3d | R2Plus1d | Tsm:
    """The family's network, shortened or narrowed where it can be, statistics not at rest."""
    torch.manual_seed(5)
    model: I3d | R2Plus1d | Tsm
    if name == "i3d":
        model = I3d(name="small", pixels=PixelRecipe())
    elif name == "r2plus1d":
        model = R2Plus1d(name="small", pixels=PixelRecipe(), blocks=(1, 1, 1, 1))
    else:
        model = Tsm(name="small", pixels=PixelRecipe(), blocks=(1, 2, 1, 1), base_width=8)
    for module in model.modules():
        if isinstance(module, FixedBatchNorm):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def clips(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 32, 48, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        model = resolve("backbone", BACKBONES, name)()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.name == name


def test_deeper_tsm_has_its_published_parameter_count() -> None:
    with torch.device("meta"):
        model = Tsm(name="r101", pixels=PixelRecipe(), blocks=R101_BLOCKS)
    assert sum(p.numel() for p in model.parameters()) == 42_500_160


@pytest.mark.parametrize("name", SMALL)
def test_feature_is_the_mean_of_the_map(name: str) -> None:
    model = small(name)
    with torch.inference_mode():
        cells, features = model.feature_map(clips()), model(clips())
    assert cells.shape == (2, *MAPS[name])
    assert features.shape == (2, model.out_channels)
    if name != "i3d":  # I3D pools by 2 x 7 x 7 first
        torch.testing.assert_close(cells.mean(dim=(2, 3, 4)), features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_clips_of_a_window_are_seen_as_one_and_windows_apart(name: str) -> None:
    model = small(name)
    windows = torch.cat([clips(2), clips(2, seed=7)], dim=2)  # [2, 3, 32, H, W]
    rows = torch.stack([windows[:, :, :16], windows[:, :, 16:]], dim=1).flatten(0, 1)
    with torch.inference_mode():
        whole, parts = model.feature_map(windows), model.feature_map(rows, clips_per_window=2)
        apart = model.feature_map(rows)
    joined = torch.cat([parts[0::2], parts[1::2]], dim=2)
    assert torch.equal(joined, whole)
    assert not torch.allclose(parts, apart)


def test_map_that_does_not_fall_to_whole_clips_is_refused() -> None:
    with pytest.raises(ConfigError, match="whole clips"):
        small("r2plus1d").feature_map(clips(2)[:, :, :4], clips_per_window=2)


@pytest.mark.parametrize("name", SMALL)
def test_training_mode_neither_uses_nor_moves_the_statistics_of_a_batch(name: str) -> None:
    model = small(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(clips()).detach()
    model.train()
    features = model(clips())
    model.eval()
    assert torch.equal(features, expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert features.requires_grad


@pytest.mark.parametrize("name", SMALL)
def test_bits_of_a_row_do_not_depend_on_place_and_neighbours_in_equal_batches(name: str) -> None:
    model, full = small(name), clips(3)
    padded = torch.cat([full[2:], full[2:].expand(2, -1, -1, -1, -1)])
    other = torch.cat([clips(1, seed=9), full[2:], clips(1, seed=8)])
    with torch.inference_mode():
        rows = model(full)[2], model(padded)[0], model(other)[1]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_convolutions_give_float32_features_that_are_close(name: str) -> None:
    torch.manual_seed(0)
    model = small(name)
    with torch.inference_mode():
        expected = model(clips())
        model.set_matmul_dtype(torch.bfloat16)
        features = model(clips())
        model.set_matmul_dtype(torch.float32)
    small.cache_clear()  # the weights are rounded now
    assert features.dtype == torch.float32
    assert not torch.equal(features, expected)
    assert (features - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(2, 2, 16, 32, 32), (3, 16, 32, 32)])
def test_clips_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"takes clips \[N, 3, F, H, W\]"):
        small(name)(torch.zeros(shape))


@pytest.mark.parametrize(("name", "shortest"), [("i3d", 16), ("r2plus1d", 1), ("tsm", 1)])
def test_clip_length_has_a_lower_limit_only(name: str, shortest: int) -> None:
    model = small(name)
    model.set_clip_len(shortest)
    assert model.clip_len == shortest
    model.set_clip_len(33)
    with pytest.raises(ConfigError, match="at least"):
        model.set_clip_len(shortest - 1)


@pytest.mark.parametrize("name", ["i3d-flow", "tsm-r50"])
def test_own_file_gives_the_same_backbone_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    original = load_backbone(name, "random", seed=3)
    save_backbone(path, original)
    loaded = load_backbone(name, path)
    assert loaded.builder_arguments() == original.builder_arguments()
    assert loaded.pixels == original.pixels
    pixels = torch.randn(1, loaded.pixels.channels, 16, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(pixels), original(pixels))


def test_random_weights_keep_signals_within_half_precision() -> None:
    model = load_backbone("tsm-r50", "random")
    with torch.inference_mode():
        features = model(torch.randn(1, 3, 2, 64, 64))
    assert 1e-3 < features.abs().max() < 6e4


@pytest.mark.parametrize("name", PARAMETERS)
def test_missing_weights_name_the_file_to_fetch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TADPIPE_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="are not here") as caught:
        load_backbone(name)
    assert str(tmp_path / f"{name}.pth") in str(caught.value)
    assert "https://" in str(caught.value)
