"""I3D: padding like TensorFlow's, and the two key layouts with what belongs to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from tadpipe.backbones.i3d import I3d, SamePool, i3d_rgb, remap_official_keys, same_padding
from tadpipe.backbones.loading import load_backbone
from tadpipe.config import PixelRecipe
from tadpipe.errors import CheckpointError


def official(key: str) -> str:
    return key.removeprefix("stages.").replace("head.", "logits.conv3d.")


def batch3d(key: str) -> str:
    key = key.removeprefix("stages.").replace("head.", "conv3d_0c_1x1.conv3d.")
    for ours, theirs in (
        ("Conv3d_", "conv3d_"),
        ("Mixed_", "mixed_"),
        (".bn.", ".batch3d."),
        (".b0.", ".branch_0."),
        (".b1a.", ".branch_1.0."),
        (".b1b.", ".branch_1.1."),
        (".b2a.", ".branch_2.0."),
        (".b2b.", ".branch_2.1."),
        (".b3b.", ".branch_3.1."),
    ):
        key = key.replace(ours, theirs)
    return key


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return I3d(name="with head", pixels=PixelRecipe(), num_classes=7).state_dict()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "static", "expected"),
    [
        (224, 7, 2, False, (2, 3)),
        (17, 7, 2, False, (3, 3)),
        (17, 7, 2, True, (2, 3)),
        (28, 3, 2, False, (0, 1)),
        (25, 3, 2, False, (1, 1)),
        (14, 2, 2, False, (0, 0)),
        (7, 2, 2, False, (0, 1)),
        (7, 3, 1, False, (1, 1)),
        (5, 1, 1, False, (0, 0)),
    ],
)
def test_padding_is_that_of_tensorflow(
    size: int, kernel: int, stride: int, static: bool, expected: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride, static=static) == expected


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("size", [6, 7])
def test_pool_takes_the_largest_value_of_every_window(size: int, static: bool) -> None:
    x = torch.rand(1, 1, 1, size, size, generator=torch.Generator().manual_seed(0))
    pooled = SamePool((1, 3, 3), (1, 2, 2), static_padding=static)(x)
    before = 1 if size % 2 and not static else 0
    padded = nnf.pad(x, (before, 3, before, 3))
    for i in range(pooled.shape[3]):
        for j in range(pooled.shape[4]):
            window = padded[..., 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            assert pooled[0, 0, 0, i, j] == window.max()
    assert pooled.shape[3:] == (-(-size // 2), -(-size // 2))


@pytest.mark.parametrize(
    ("rename", "layout", "arguments"),
    [
        (official, "official", {"norm_eps": 1e-3, "static_padding": False}),
        (batch3d, "batch3d", {"norm_eps": 1e-5, "static_padding": True}),
    ],
)
def test_layout_brings_its_eps_and_its_padding(
    weights: dict[str, Tensor], rename, layout: str, arguments: dict[str, object]
) -> None:
    state = {f"module.{rename(key)}": value for key, value in weights.items()}
    state["module.any.num_batches_tracked"] = torch.zeros(())
    remapped = remap_official_keys(state)
    assert remapped.layout == layout
    assert remapped.arguments == arguments
    assert {key: value.data_ptr() for key, value in remapped.state.items()} == {
        key: value.data_ptr() for key, value in weights.items()
    }


def test_official_file_loads_without_its_head(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "rgb_imagenet.pt"
    torch.save({batch3d(key): value for key, value in weights.items()}, path)
    backbone = load_backbone("i3d-rgb", path)
    assert isinstance(backbone, I3d)
    assert (backbone.norm_eps, backbone.static_padding, backbone.num_classes) == (1e-5, True, 0)


def test_weights_of_the_other_stream_name_it(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    torch.save({official(key): value for key, value in weights.items()}, path)
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        load_backbone("i3d-flow", path)
    assert "use --backbone i3d-rgb" in str(caught.value)


def test_other_networks_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not an I3D"):
        remap_official_keys({"conv1.weight": torch.zeros(1)})


def test_layouts_agree_on_even_sizes_and_differ_on_odd_ones() -> None:
    torch.manual_seed(1)
    model = i3d_rgb().eval()
    dynamic = {size: _map(model, size) for size in (32, 33)}
    for module in model.modules():
        if hasattr(module, "static_padding"):
            module.static_padding = True
    assert torch.equal(_map(model, 32), dynamic[32])
    assert not torch.allclose(_map(model, 33), dynamic[33])


def _map(model: I3d, size: int) -> Tensor:
    pixels = torch.randn(1, 3, 16, size, size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return model.feature_map(pixels)


def test_pooled_map_has_one_cell_for_a_published_clip_and_logits_per_step() -> None:
    torch.manual_seed(0)
    model = I3d(name="with head", pixels=PixelRecipe(), num_classes=3).eval()
    cells = torch.rand(2, 1024, 4, 7, 7, generator=torch.Generator().manual_seed(1))
    model.trunk = lambda _clips: cells  # type: ignore[method-assign]
    clips = torch.zeros(2, 3, 32, 224, 224)
    pooled = model.pooled(clips)
    assert pooled.shape == (2, 1024, 3, 1, 1)
    torch.testing.assert_close(pooled[:, :, 0, 0, 0], cells[:, :, :2].mean(dim=(2, 3, 4)))
    assert model.classify(clips).shape == (2, 3, 3)
    torch.testing.assert_close(model(clips), pooled.mean(dim=(2, 3, 4)))
