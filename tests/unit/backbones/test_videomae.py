"""VideoMAE against float64 numpy arithmetic written out here, and its published sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.videomae import VideoMAE, videomae_tiny
from tadpipe.backbones.videomae_blocks import Attention, Block, PatchEmbed, sinusoid_table
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError
from tadpipe.registry import resolve

PARAMETERS = {  # without a head
    "videomae-tiny": 371_232,
    "videomae-s": 21_879_936,
    "videomae-b": 86_227_200,
    "videomae-l": 303_860_736,
    "videomae-h": 631_607_040,
    "videomae-g": 1_011_610_752,
}


def small(
    *,
    image_size: int | tuple[int, int] = (16, 24),
    patch_size: int = 8,
    num_classes: int = 0,
    qkv_bias: bool = True,
    init_values: float = 0.0,
    drop_path: float = 0.0,
    head_scale: float = 1.0,
) -> VideoMAE:
    torch.manual_seed(3)
    model = VideoMAE(
        name="small",
        pixels=PixelRecipe(size=16),
        image_size=image_size,
        patch_size=patch_size,
        dim=12,
        depth=3,
        heads=2,
        mlp_dim=20,
        clip_len=6,
        num_classes=num_classes,
        qkv_bias=qkv_bias,
        init_values=init_values,
        drop_path=drop_path,
        head_scale=head_scale,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def clips(count: int = 2, frames: int = 6, height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(count, 3, frames, height, width, generator=torch.Generator().manual_seed(5))


def as64(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().double().numpy()


def norm64(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps)
    return scaled * as64(layer.weight) + as64(layer.bias)


def attention64(x: np.ndarray, layer: Attention) -> np.ndarray:
    dim = x.shape[2]
    width = dim // layer.heads
    bias = np.zeros(3 * dim)
    if layer.q_bias is not None:
        bias = np.concatenate([as64(layer.q_bias), np.zeros(dim), as64(layer.v_bias)])
    q, k, v = np.split(x @ as64(layer.qkv.weight).T + bias, 3, axis=-1)
    out = np.zeros_like(x)
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(0, 2, 1) / math.sqrt(width)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[..., part] = weights @ v[..., part]
    return out @ as64(layer.proj.weight).T + as64(layer.proj.bias)


def block64(x: np.ndarray, block: Block) -> np.ndarray:
    gamma_1 = 1.0 if block.gamma_1 is None else as64(block.gamma_1)
    gamma_2 = 1.0 if block.gamma_2 is None else as64(block.gamma_2)
    x = x + gamma_1 * attention64(norm64(x, block.norm1), block.attn)
    hidden = norm64(x, block.norm2) @ as64(block.mlp.fc1.weight).T + as64(block.mlp.fc1.bias)
    erf = np.vectorize(math.erf)(hidden / math.sqrt(2))
    hidden = 0.5 * hidden * (1 + erf)
    return x + gamma_2 * (hidden @ as64(block.mlp.fc2.weight).T + as64(block.mlp.fc2.bias))


def tokens64(model: VideoMAE, pixels: Tensor) -> np.ndarray:
    """Tokens after the last block, in loops and float64."""
    x = as64(pixels)
    weight, bias = as64(model.patch_embed.proj.weight), as64(model.patch_embed.proj.bias)
    _, _, s, p, _ = weight.shape
    t, h, w = x.shape[2] // s, x.shape[3] // p, x.shape[4] // p
    out = np.zeros((len(x), t * h * w, len(weight)))
    for n, (i, j, k) in enumerate(np.ndindex(t, h, w)):
        tube = x[:, :, i * s : (i + 1) * s, j * p : (j + 1) * p, k * p : (k + 1) * p]
        out[:, n] = np.einsum("bcsyx,dcsyx->bd", tube, weight) + bias
    out = out + as64(model.pos_table)
    for block in model.blocks:
        assert isinstance(block, Block)
        out = block64(out, block)
    return out


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        model = resolve("backbone", BACKBONES, name)()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.name == name


def test_giant_has_patches_of_14_pixels_and_a_float_mlp_ratio() -> None:
    with torch.device("meta"):
        model = resolve("backbone", BACKBONES, "videomae-g")()
    assert model.table_grid == (8, 16, 16)
    assert model.blocks[0].mlp.fc1.weight.shape == (6144, 1408)


def test_position_table_is_a_flat_sinusoid() -> None:
    table = sinusoid_table(7, 6)
    expected = np.zeros((7, 6))
    for position in range(7):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            expected[position, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    assert table.shape == (1, 7, 6)
    assert table.dtype == torch.float32
    assert np.array_equal(table[0].numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("init_values", [0.0, 0.1])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_tokens_equal_float64_arithmetic(qkv_bias: bool, init_values: float) -> None:
    model = small(qkv_bias=qkv_bias, init_values=init_values)
    pixels = clips()
    expected = tokens64(model, pixels)
    with torch.inference_mode():
        ours = model.tokens(pixels)
    assert np.allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-4)  # values up to about 20


def test_feature_is_the_normed_mean_of_all_tokens() -> None:
    model = small(num_classes=4)
    pixels = clips()
    pooled = norm64(tokens64(model, pixels).mean(axis=1), model.fc_norm)
    logits = pooled @ as64(model.head.weight).T + as64(model.head.bias)
    with torch.inference_mode():
        assert np.allclose(model(pixels).numpy(), pooled, rtol=1e-4, atol=1e-4)
        assert np.allclose(model.classify(pixels).numpy(), logits, rtol=1e-4, atol=1e-4)


def test_feature_map_holds_raw_tokens_with_time_slowest_and_width_fastest() -> None:
    model = small()
    with torch.inference_mode():
        tokens = model.tokens(clips())
        maps = model.feature_map(clips())
    assert maps.shape == (2, 12, 3, 2, 3)
    assert torch.equal(maps[:, :, 2, 1, 0], tokens[:, 2 * 6 + 1 * 3 + 0])


def test_patch_embedding_is_the_strided_convolution_without_incomplete_patches() -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(patch_size=14, tubelet_len=2, dim=8)
    pixels = clips(1, frames=4, height=20, width=34)
    expected = embed.proj(pixels).flatten(2).transpose(1, 2)  # [1, 2*1*2, 8]
    assert torch.allclose(embed(pixels), expected, rtol=1e-5, atol=1e-6)
    changed = pixels.clone()
    changed[..., 14:, :] = 9.0
    changed[..., 28:] = 9.0
    assert torch.equal(embed(changed), embed(pixels))


def test_other_picture_sizes_interpolate_the_table_bicubically_per_time_step() -> None:
    model = small()
    t, h, w = model.table_grid
    ours = model.position_table((t, 3, 2)).reshape(t, 3, 2, -1)
    base = model.pos_table.reshape(t, h, w, -1)
    for step in range(t):
        channels = base[step].permute(2, 0, 1)[None]
        expected = nnf.interpolate(channels, size=(3, 2), mode="bicubic", align_corners=False)
        assert torch.equal(ours[step], expected[0].permute(1, 2, 0))
    assert not torch.allclose(ours.reshape(1, -1, 12), sinusoid_table(t * 6, 12), atol=0.1)
    with torch.inference_mode():
        assert model.feature_map(clips(1, height=24, width=16)).shape == (1, 12, 3, 3, 2)


@pytest.mark.parametrize("name", ["small", "videomae-tiny"])
def test_feature_bits_do_not_depend_on_the_batch(name: str) -> None:
    if name == "small":
        model, pixels = small(), clips(6)
    else:
        torch.manual_seed(0)
        model = resolve("backbone", BACKBONES, name)().eval()
        pixels = clips(6, 16, 32, 32)
    with torch.inference_mode():
        together = model(pixels)
        for count in range(1, 7):
            assert torch.equal(model(pixels[:count]), together[:count])
        assert torch.equal(model(pixels[3:4]), together[3:4])


def test_gradients_reach_every_parameter() -> None:
    model = small(num_classes=3, init_values=0.1)
    model.classify(clips()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_keys_have_no_bias() -> None:
    names = dict(small().named_parameters())
    assert "blocks.0.attn.q_bias" in names
    assert "blocks.0.attn.v_bias" in names
    assert "blocks.0.attn.qkv.bias" not in names
    assert not any("k_bias" in name for name in names)


def test_drop_path_acts_in_training_only_and_grows_with_depth() -> None:
    model = small(drop_path=0.5)
    assert [block.drop_path for block in model.blocks] == [0.0, 0.25, 0.5]
    pixels = clips(1)
    assert torch.equal(model(pixels), model(pixels))
    model.train()
    torch.manual_seed(0)
    runs = torch.stack([model(pixels)[0] for _ in range(20)])
    assert len(torch.unique(runs, dim=0)) > 1


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = VideoMAE(
        name="small",
        pixels=PixelRecipe(),
        dim=96,
        depth=2,
        heads=2,
        mlp_dim=384,
        num_classes=50,
        init_values=0.1,
        head_scale=0.001,
    )
    block = model.blocks[0]
    assert isinstance(block, Block)
    assert as64(block.mlp.fc1.weight).std() == pytest.approx(0.02, rel=0.05)
    assert not as64(block.mlp.fc1.bias).any()
    assert as64(model.head.weight).std() == pytest.approx(2e-5, rel=0.05)
    assert block.gamma_1 is not None
    assert torch.equal(block.gamma_1, torch.full((96,), 0.1))
    assert block.norm1.eps == model.fc_norm.eps == 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_float32_and_close(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = resolve("backbone", BACKBONES, "videomae-tiny")().eval()
    pixels = clips(1, 16, 32, 32)
    with torch.inference_mode():
        exact = model(pixels)
        model.set_matmul_dtype(dtype)
        rounded, maps = model(pixels), model.feature_map(pixels)
    assert rounded.dtype == maps.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.05  # features are about 1
    assert model.blocks[0].norm1.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 3, 8, 16, 24), "takes clips"),
        ((1, 1, 6, 16, 24), "takes clips"),
        ((3, 6, 16, 24), "takes clips"),
        ((1, 3, 6, 4, 24), "smaller than one patch"),
    ],
)
def test_clips_of_another_shape_are_refused(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        small()(torch.zeros(shape))


def test_widths_and_frames_that_do_not_divide_are_refused() -> None:
    pixels = PixelRecipe()
    with pytest.raises(ConfigError, match="multiple of the heads"):
        VideoMAE(name="x", pixels=pixels, dim=10, depth=1, heads=3, mlp_dim=8)
    with pytest.raises(ConfigError, match="multiple of frames per token"):
        VideoMAE(name="x", pixels=pixels, dim=6, depth=1, heads=3, mlp_dim=8, clip_len=5)


def test_clip_length_can_be_changed_without_other_weights() -> None:
    torch.manual_seed(0)
    model = videomae_tiny().eval()
    fresh = VideoMAE(
        name="videomae-tiny",
        pixels=model.pixels,
        image_size=32,
        patch_size=8,
        tubelet_len=8,
        dim=96,
        depth=2,
        heads=6,
        mlp_dim=384,
        clip_len=8,
    ).eval()
    fresh.load_state_dict(model.state_dict())
    model.set_clip_len(8)
    clips = torch.rand(2, 3, 8, 32, 32)
    assert model.clip_len == 8
    assert torch.equal(model(clips), fresh(clips))
    with pytest.raises(ConfigError, match="multiple"):
        model.set_clip_len(7)


def test_tiny_starts_with_weights_wide_enough_to_learn_from_scratch() -> None:
    torch.manual_seed(0)
    block = videomae_tiny().blocks[0]
    assert isinstance(block, Block)
    assert as64(block.mlp.fc1.weight).std() == pytest.approx(0.1, rel=0.05)
