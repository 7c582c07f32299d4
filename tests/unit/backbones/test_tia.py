"""Adapters: nothing changes at step 0, what they reach, what they store, how many numbers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tadpipe.backbones import BACKBONES, videomae
from tadpipe.backbones.tia import (
    AdapterConfig,
    AdapterSite,
    Ladder,
    TemporalInformativeAdapter,
    adapter_parameters,
    add_adapters,
)
from tadpipe.backbones.tuning import set_tuning
from tadpipe.backbones.videomae import VideoMAE
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError
from tadpipe.registry import resolve

ATTACHED = ("tia", "ladder", "plain")
DIM, MLP, DEPTH = 16, 40, 4


def small(*, drop_path: float = 0.0) -> VideoMAE:
    torch.manual_seed(3)
    return VideoMAE(
        name="small",
        pixels=PixelRecipe(size=16),
        image_size=16,
        patch_size=8,
        dim=DIM,
        depth=DEPTH,
        heads=2,
        mlp_dim=MLP,
        clip_len=4,
        drop_path=drop_path,
    ).eval()


def clips(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def awake(model: VideoMAE, seed: int = 7) -> VideoMAE:
    """Adapters whose second layer is not zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if "up_proj" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def with_adapters(config: AdapterConfig, *, drop_path: float = 0.0) -> VideoMAE:
    model = small(drop_path=drop_path)
    add_adapters(model, config)
    return awake(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ATTACHED)
def test_new_adapters_leave_every_output_bit_for_bit(kind: Any) -> None:
    model = small()
    with torch.no_grad():
        pooled, maps = model(clips()), model.feature_map(clips(), 3)
        assert add_adapters(model, AdapterConfig(kind=kind)) is model
        assert torch.equal(model(clips()), pooled)
        assert torch.equal(model.feature_map(clips(), 3), maps)


@pytest.mark.parametrize("kind", ATTACHED)
def test_gradient_reaches_the_adapters_and_nothing_else(kind: Any) -> None:
    model = with_adapters(AdapterConfig(kind=kind))
    set_tuning(model, "adapter")
    model.feature_map(clips(), 3).square().sum().backward()
    found = gradients(model)
    assert found.keys() == adapter_parameters(model).keys()
    assert all(gradient.abs().sum() > 0 for gradient in found.values())


def saved_by(model: VideoMAE) -> list[Tensor]:
    """Tensors that autograd keeps for the backward pass, parameters and views of them left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.feature_map(clips(), 3)
    return kept


def test_ladder_stores_nothing_from_inside_the_backbone() -> None:
    model = with_adapters(AdapterConfig(kind="ladder"))
    set_tuning(model, "adapter")
    outputs: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(
            lambda _m, _i, out: outputs.append(out.untyped_storage().data_ptr())
        )
    kept = saved_by(model)
    tokens = [x for x in kept if x.numel() >= 3 * 8 * DIM // 4]
    wide = [x for x in tokens if x.shape[-1] == DIM]  # inputs of the ladder's adapters
    assert {x.untyped_storage().data_ptr() for x in wide} == set(outputs[-2:])
    assert all(DIM // 4 in x.shape for x in tokens if x.shape[-1] != DIM)


def test_recomputing_stores_one_tensor_per_adapter() -> None:
    model = with_adapters(AdapterConfig(checkpoint=True))
    set_tuning(model, "adapter")
    kept = [x for x in saved_by(model) if x.shape[-1] == DIM and x.numel() >= 3 * 8 * DIM]
    assert len({x.untyped_storage().data_ptr() for x in kept}) == DEPTH


def test_recomputing_runs_no_frozen_block_in_front_of_the_first_adapter_again() -> None:
    model = with_adapters(AdapterConfig(blocks=(2, 3), checkpoint=True))
    set_tuning(model, "adapter")
    calls: list[int] = []
    for index, block in enumerate(model.blocks):
        block.norm1.register_forward_hook(lambda _m, _i, _o, index=index: calls.append(index))
    model.feature_map(clips(), 3).square().sum().backward()
    assert calls == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("kind", "tune"),
    [
        ("tia", "adapter"),
        ("plain", "adapter"),
        ("longlora", "adapter"),
        ("ladder", "adapter"),
        ("tia", "full"),
        ("none", "full"),
    ],
)
def test_recomputing_gives_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch, kind: Any, tune: Any
) -> None:
    monkeypatch.setattr(videomae, "RECOMPUTED_CLIPS", 2)
    found = []
    for checkpoint in (False, True):
        model = with_adapters(AdapterConfig(kind=kind, checkpoint=checkpoint)).double()
        set_tuning(model, tune, representation="frame")
        maps = model.feature_map(clips(6).double(), 3)
        maps.square().sum().backward()
        found.append({**gradients(model), "output": maps.detach()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("tune", ["adapter", "full"])
def test_what_recomputing_stores_may_wait_in_other_memory(tune: Any) -> None:
    found, moved = [], []

    def pack(tensor: Tensor) -> Tensor:
        moved.append(tensor.untyped_storage().data_ptr())
        return tensor.clone()

    offload = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    for keeping in (nullcontext(), offload):
        model = with_adapters(AdapterConfig(checkpoint=True)).double()
        set_tuning(model, tune, representation="frame")
        with keeping:
            maps = model.feature_map(clips().double(), 3)
        maps.square().sum().backward()
        found.append(gradients(model))
    assert moved
    assert not {p.untyped_storage().data_ptr() for p in model.parameters()} & set(moved)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


def test_recomputing_repeats_the_drawn_drop_path_and_leaves_the_generator_alone() -> None:
    found = []
    for checkpoint in (False, True):
        model = with_adapters(AdapterConfig(checkpoint=checkpoint), drop_path=0.5)
        set_tuning(model, "adapter")
        model.train()
        torch.manual_seed(5)
        loss = model.feature_map(clips(), 3).square().sum()
        state = torch.random.get_rng_state()
        loss.backward()
        assert torch.equal(torch.random.get_rng_state(), state)
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-5, atol=1e-6), name


def test_recomputing_repeats_the_automatic_precision() -> None:
    found = []
    for checkpoint in (False, True):
        model = with_adapters(AdapterConfig(checkpoint=checkpoint))
        set_tuning(model, "adapter")
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.feature_map(clips(), 3).float().square().sum()
        loss.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-5, atol=1e-5), name


def reach(config: AdapterConfig, clips_per_window: int, changed: int) -> list[bool]:
    """Which of six clips answer differently when clip `changed` changes."""
    model = with_adapters(config)
    before = clips(6)
    after = before.clone()
    after[changed] += 1
    with torch.no_grad():
        gap = model.feature_map(after, clips_per_window) - model.feature_map(
            before, clips_per_window
        )
    return [bool(one.any()) for one in gap]


@pytest.mark.parametrize("kind", ["tia", "ladder", "longlora"])
def test_time_crosses_the_borders_of_clips_but_never_of_windows(kind: Any) -> None:
    assert reach(AdapterConfig(kind=kind), 3, 1) == [True, True, True, False, False, False]
    assert reach(AdapterConfig(kind=kind), 1, 1) == [False, True, False, False, False, False]


def test_ladder_reaches_only_as_far_as_its_kernel() -> None:
    model = with_adapters(AdapterConfig(kind="ladder"))
    before = clips(2)
    after = before.clone()
    after[0, :, 2:] += 1  # the last time step of the first clip
    with torch.no_grad():
        gap = model.feature_map(after, 2) - model.feature_map(before, 2)
    assert gap[1, :, 0].any()
    assert not gap[1, :, 1].any()


def test_plain_adapters_see_single_tokens() -> None:
    assert reach(AdapterConfig(kind="plain"), 3, 1) == [False, True, False, False, False, False]


def test_longlora_equals_the_frozen_backbone_on_single_clips_only() -> None:
    frozen, tuned = small(), small()
    add_adapters(tuned, AdapterConfig(kind="longlora"))
    with torch.no_grad():
        assert torch.equal(tuned(clips()), frozen(clips()))
        assert not torch.equal(tuned.feature_map(clips(), 3), frozen.feature_map(clips(), 3))
    set_tuning(tuned, "adapter")
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    parts = ("qkv.weight", "q_bias", "v_bias", "proj.weight", "proj.bias")
    assert trained == {f"blocks.{i}.attn.{part}" for i in range(DEPTH) for part in parts}


def test_shifted_heads_mix_half_clips_in_a_ring() -> None:
    """With uniform attention the shifted half of the channels averages two half clips."""
    model = small()
    add_adapters(model, AdapterConfig(kind="longlora"))
    attention = model.blocks[0].attn
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.weight[2 * DIM :] = torch.eye(DIM)
        attention.q_bias.zero_()
        attention.v_bias.zero_()
        attention.proj.weight.copy_(torch.eye(DIM))
        attention.proj.bias.zero_()
        x = torch.randn(3, 8, DIM)  # 2 time steps of 4 positions
        mixed = attention(x, 3, 2)
    half = DIM // 2
    line = x.reshape(24, DIM)
    assert torch.allclose(mixed[..., :half], x.mean(1, keepdim=True)[..., :half], atol=1e-6)
    first_group = line[4:12, half:].mean(0)
    last_group = torch.cat((line[20:], line[:4]))[:, half:].mean(0)
    assert torch.allclose(mixed[0, 4:, half:], first_group.expand(4, -1), atol=1e-6)
    assert torch.allclose(mixed[2, 4:, half:], last_group.expand(4, -1), atol=1e-6)
    assert torch.allclose(mixed[0, :4, half:], last_group.expand(4, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "tia", "plain", "ladder"),
    [
        ("videomae-s", 1_006_860, 890_508, 503_430),
        ("videomae-b", 4_004_364, 3_550_476, 2_002_182),
        ("videomae-l", 14_217_240, 12_613_656, 7_108_620),
        ("videomae-h", 29_593_632, 26_265_632, 14_796_816),
        ("videomae-g", 44_746_280, 39_719_720, 22_373_140),
    ],
)
def test_published_sizes_have_the_published_parameter_counts(
    name: str, tia: int, plain: int, ladder: int
) -> None:
    """1.01, 4.00, 14.2, 29.6, 44.8 M for TIA; 0.89 .. 39.7 M plain; a ladder has half of TIA's."""
    found = [count(name, AdapterConfig(kind=kind)) for kind in ATTACHED]
    assert found == [tia, ladder, plain]


def count(name: str, config: AdapterConfig) -> int:
    with torch.device("meta"):
        model = add_adapters(resolve("backbone", BACKBONES, name)(), config)
    return sum(p.numel() for p in adapter_parameters(model).values())


def test_narrow_adapters_of_the_giant_have_10_6_million_parameters() -> None:
    config = AdapterConfig(ratio=0.125, blocks=tuple(range(20, 40)))
    assert count("videomae-g", config) == 10_581_140


def test_longlora_of_the_base_size_tunes_28_million_parameters() -> None:
    assert count("videomae-b", AdapterConfig(kind="longlora")) == 28_339_200


class Convolutions(nn.Module):
    """A backbone that is no transformer: two pathways of convolutions, adapters behind blocks."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, channels, 3, padding=1)
            self.adapter: nn.Module | None = None

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).relu()  # [N, C, t, h, w]
            if self.adapter is None:
                return y
            line = y.permute(0, 2, 3, 4, 1).flatten(2, 3)
            y = self.adapter(line).unflatten(2, y.shape[3:]).permute(0, 4, 1, 2, 3)
            return y.contiguous()

    name = "convolutions"
    snippet_only: tuple[str, ...] = ()
    weights_sha256 = adapter_sha256 = ""
    clip_len = 4
    out_channels = 20

    def __init__(self) -> None:
        super().__init__()
        self.pixels = PixelRecipe()
        self.adapters = AdapterConfig(kind="none")
        self.ladders: Ladder | None = None
        self.slow, self.fast = self.Block(16), self.Block(4)

    def adapter_sites(self) -> list[AdapterSite]:
        return [AdapterSite(self.slow, 16), AdapterSite(self.fast, 4)]

    def forward(self, clips: Tensor) -> Tensor:
        return torch.cat((self.slow(clips), self.fast(clips)), dim=1).mean((2, 3, 4))


def test_a_convolutional_backbone_takes_the_same_adapters() -> None:
    model: Any = Convolutions()
    before = model(clips())
    add_adapters(model, AdapterConfig())
    assert torch.equal(model(clips()), before)
    assert {name.split(".")[0] for name in adapter_parameters(model)} == {"slow", "fast"}
    assert model.slow.adapter.down_proj.weight.shape == (4, 16)
    set_tuning(model, "adapter")
    model(clips()).sum().backward()
    assert gradients(model).keys() <= adapter_parameters(model).keys()
    assert model.slow.conv.weight.grad is None


def test_what_does_not_fit_a_convolutional_backbone_is_refused() -> None:
    model: Any = Convolutions()
    with pytest.raises(ConfigError, match="same channels"):
        add_adapters(model, AdapterConfig(kind="ladder", blocks=(0, 1)))
    with pytest.raises(ConfigError, match="attention"):
        add_adapters(Convolutions(), AdapterConfig(kind="longlora"))  # type: ignore[arg-type]  # stub


def test_without_the_residual_only_the_mixed_form_remains() -> None:
    torch.manual_seed(0)
    tia = TemporalInformativeAdapter(8, residual=False)
    nn.init.ones_(tia.up_proj.weight)
    x = torch.randn(1, 5, 2, 8)
    nn.init.zeros_(tia.conv.weight)
    assert torch.equal(tia(x), x)
    tia.residual = True
    assert not torch.equal(tia(x), x)


def test_adapters_follow_the_precision_of_the_matrix_products() -> None:
    model = with_adapters(AdapterConfig())
    with torch.inference_mode():
        exact = model.feature_map(clips(), 3)
        model.set_matmul_dtype(torch.bfloat16)
        half = model.feature_map(clips(), 3)
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).abs().max()) < 0.3  # features are about 10


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"kind": "lora"}, "Unknown adapter"),
        ({"ratio": 0.0}, "share"),
        ({"kernel": 4}, "odd"),
        ({"dilation": 0}, "dilation"),
        ({"blocks": (2, 1)}, "in order"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        AdapterConfig(**wrong)


def test_blocks_and_windows_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        add_adapters(small(), AdapterConfig(blocks=(1, 4)))
    with pytest.raises(ConfigError, match="last one is 3"):
        add_adapters(small(), AdapterConfig(kind="ladder", blocks=(1, 2)))
    with pytest.raises(ConfigError, match="already"):
        add_adapters(with_adapters(AdapterConfig()), AdapterConfig(kind="plain"))
    with pytest.raises(ConfigError, match="whole windows"):
        small().feature_map(clips(3), 2)


def test_only_listed_blocks_get_adapters() -> None:
    model = with_adapters(AdapterConfig(blocks=(1, 3)))
    assert {name.split(".")[1] for name in adapter_parameters(model)} == {"1", "3"}
