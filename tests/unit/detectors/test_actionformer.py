"""ActionFormer: attention against a dense float64 form, padding, memory, sizes, every option."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tadpipe.detectors.actionformer import (
    ActionFormer,
    ActionFormerConfig,
    MaskedAttention,
    TransformerBlock,
    local_attention,
    remap_official_keys,
)
from tadpipe.detectors.protocol import Targets
from tadpipe.errors import ConfigError
from tests.unit.detectors.small import ACTIONFORMER as SMALL

TARGETS = Targets(
    [torch.tensor([[2.0, 5.0], [10.0, 26.0]]), torch.tensor([[4.0, 11.0]])],
    [torch.tensor([0, 2]), torch.tensor([1])],
)


def small(**changes: Any) -> ActionFormer:
    torch.manual_seed(0)
    return ActionFormer(dataclasses.replace(SMALL, **changes))


def window(lengths: tuple[int, ...], padded: int, channels: int = 6) -> tuple[Tensor, Tensor]:
    """Random features, the same at real steps whatever the padding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(lengths), channels, 512, generator=generator)[..., :padded]
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    return x * mask[:, None], mask


def loosen(model: ActionFormer) -> ActionFormer:
    """Let every norm bias and residual scale act as it would after training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drop_path" in name:
                parameter.fill_(0.5)
            elif parameter.dim() != 3 or "norm" in name or "ln" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


# --- attention ---------------------------------------------------------------------------------


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, reach: int, bias: Tensor | None) -> Tensor:
    """All pairs in float64, the band and the padding struck out."""
    steps = q.shape[2]
    logits = q.double() @ k.double().transpose(2, 3) / q.shape[3] ** 0.5  # [B, H, T, T]
    lag = torch.arange(steps) - torch.arange(steps)[:, None]
    if bias is not None:
        logits = logits + bias.double()[:, lag.clamp(-reach, reach) + reach]
    # A padded query may see itself, so that its row is finite; nobody reads it.
    hidden = ((lag.abs() > reach) | ~mask[:, None, None]) & (lag != 0)
    return logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v.double()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("steps", "reach"), [(1, 1), (31, 1), (32, 2), (33, 9), (70, 9), (40, 50)])
def test_local_attention_equals_the_dense_band(steps: int, reach: int, with_bias: bool) -> None:
    torch.manual_seed(steps)
    q, k, v = torch.randn(3, 2, 2, steps, 4)
    mask = torch.arange(steps) < torch.tensor([steps, (steps + 1) // 2])[:, None]
    bias = torch.randn(2, 2 * reach + 1) if with_bias else None
    ours = local_attention(q, k, v, mask, reach, bias)
    wanted = dense(q, k, v, mask, reach, bias)
    real = mask[:, None, :, None].expand_as(ours)
    torch.testing.assert_close(ours.double()[real], wanted[real], atol=1e-5, rtol=1e-5)
    assert torch.isfinite(ours).all()


def test_local_attention_has_the_gradients_of_the_dense_band() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 50, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 7, requires_grad=True)
    mask = torch.arange(50) < torch.tensor([50, 20])[:, None]
    weight = torch.randn(2, 2, 50, 4) * mask[:, None, :, None]
    wanted = dense(q, k, v, mask, 3, bias).masked_fill(~mask[:, None, :, None], 0.0)
    inputs = (q, k, v, bias)
    theirs = torch.autograd.grad((wanted * weight).sum(), inputs)
    ours = torch.autograd.grad((local_attention(q, k, v, mask, 3, bias) * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_global_attention_does_not_see_padded_keys() -> None:
    torch.manual_seed(0)
    attention = MaskedAttention(8, 2, window=-1, stride=1, rel_pos=False, dropout=0.0).eval()
    x, mask = window((20,), 40, channels=8)
    other = x.clone()
    other[..., 25:] = 9.0  # beyond the reach of the depth-wise kernels
    torch.testing.assert_close(attention(x, mask)[0], attention(other, mask)[0])
    assert (attention(x, mask)[0][..., 20:] == 0).all()


def saved_bytes(model: ActionFormer, steps: int) -> int:
    """Bytes that autograd keeps between forward and backward, parameters left out."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    x, mask = window((steps,), steps)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = model.train()(x, mask)
        del outputs
    return sum(kept.values())


@pytest.mark.parametrize("rel_pos", [False, True])
def test_memory_of_local_attention_grows_linearly(rel_pos: bool) -> None:
    model = small(rel_pos=rel_pos, max_buffer_len_factor=100.0)
    assert saved_bytes(model, 512) <= 4.2 * saved_bytes(model, 128)


@pytest.mark.parametrize("stride", [1, 2])
def test_padded_steps_are_zero_after_a_block(stride: int) -> None:
    attention = MaskedAttention(8, 2, window=5, stride=stride, rel_pos=False, dropout=0.0)
    block = TransformerBlock(8, attention, stride=stride, dropout=0.0, drop_path_prob=0.1)
    x, mask = window((11,), 32, channels=8)
    out, strided = block(x + 1.0, mask)
    assert int(strided.sum()) == -(-11 // stride)
    assert (out.masked_select(~strided[:, None]) == 0).all()


# --- padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 29, 30, 32, 41])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_windows": -1, "abs_pos": True},
        {"neck": "fpn", "head_kernel": 5},
        {"head_kernel": 7, "rel_pos": True},
        {"backbone": "conv", "embed_kernel": 5},
        {"scale_factor": 4, "head_kernel": 1},
        {"start_level": 1, "regression_ranges": ((0.0, 8.0), (8.0, 1e4))},
    ],
)  # fmt: skip
def test_shorter_padding_gives_the_outputs_of_the_full_window(
    changes: dict[str, Any], length: int
) -> None:
    model = loosen(small(**changes)).eval()
    short = model.padded_len(length)
    cut, full = (model(*window((length,), padded)) for padded in (short, 64))
    for level, mask in enumerate(cut.masks):
        real = mask[0].nonzero().flatten()
        assert int(full.masks[level].sum()) == len(real)
        for ours, theirs in ((cut.logits, full.logits), (cut.offsets, full.offsets)):
            torch.testing.assert_close(
                ours[level][:, real], theirs[level][:, real], atol=1e-5, rtol=1e-4
            )
    if length < 20 and "scale_factor" not in changes:
        assert short < 64


def test_without_a_padded_tail_the_last_outputs_differ() -> None:
    model = loosen(small()).eval()
    bare, full = (model(*window((32,), padded)) for padded in (32, 64))
    assert (bare.logits[2][0, -1] - full.logits[2][0, 7]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("length", "changes", "padded"),
    [
        (65, {"attention_windows": -1}, 68),  # coarsest stride 4
        (65, {"attention_windows": 5}, 80),  # 4 * 2 * (5 // 2) = 16
        (65, {"attention_windows": (5, 5, -1)}, 72),  # 2 * 2 * (5 // 2) = 8
        (61, {"attention_windows": 5}, 64),  # never beyond the window
    ],
)
def test_longer_videos_are_padded_by_the_published_rule(
    length: int, changes: dict[str, Any], padded: int
) -> None:
    assert small(**changes).padded_len(length) == padded


# --- sizes, options, losses --------------------------------------------------------------------

RANGES8 = ((0.0, 1.0),) * 8
EGO = {"attention_windows": 9, "branch_layers": 7, "regression_ranges": RANGES8}
PUBLISHED = {  # millions of parameters
    "THUMOS14": (29.252, 2048, 20, {}),
    "ActivityNet TSP": (6.943, 512, 1, {"embed_dim": 256, "neck_dim": 256, "head_dim": 256}),
    "ActivityNet I3D": (8.123, 2048, 1, {"embed_dim": 256, "neck_dim": 256, "head_dim": 256}),
    "EPIC verb": (29.763, 2304, 97, {}),
    "EPIC noun": (30.075, 2304, 300, {}),
    "Ego4D S": (32.945, 2304, 110, {**EGO, "branch_layers": 6, "regression_ranges": RANGES8[1:]}),
    "Ego4D O": (34.928, 1536, 110, EGO),
    "Ego4D E": (18.676, 256, 110, {**EGO, "embed_dim": 384, "neck_dim": 384, "head_dim": 384}),
    "Ego4D S+E": (
        78.934, 2560, 110,
        {**EGO, "embed_dim": 768, "neck_dim": 768, "head_dim": 768, "num_heads": 12},
    ),
    "Ego4D O+E": (
        77.164, 1792, 110,
        {**EGO, "embed_dim": 768, "neck_dim": 768, "head_dim": 768, "num_heads": 12},
    ),
    "Ego4D S+O+E": (
        134.049, (2304, 1536, 256), 110,
        {**EGO, "embed_dim": (256, 384, 384), "neck_dim": 1024, "head_dim": 1024, "num_heads": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_recipes_have_the_published_number_of_parameters(recipe: str) -> None:
    millions, channels, classes, changes = PUBLISHED[recipe]
    with torch.device("meta"):
        config = ActionFormerConfig(channels, classes, **{"attention_windows": 9, **changes})
        model = ActionFormer(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


CHANGES: dict[str, Any] = {
    "in_channels": 7,
    "num_classes": 4,
    "window_len": 128,
    "backbone": "conv",
    "embed_layers": 1,
    "stem_layers": 1,
    "branch_layers": {"branch_layers": 3, "regression_ranges": ((0.0, 4.0),) * 4},
    "scale_factor": 4,
    "embed_dim": {"embed_dim": 16, "neck": "fpn"},
    "embed_kernel": 5,
    "embed_norm": False,
    "num_heads": 4,
    "attention_windows": 9,
    "abs_pos": True,
    "rel_pos": True,
    "neck": "fpn",
    "neck_dim": {"neck_dim": 12, "neck": "fpn"},
    "neck_norm": False,
    "start_level": {"start_level": 1, "regression_ranges": ((0.0, 8.0), (8.0, 1e4))},
    "regression_ranges": ((0.0, 2.0), (2.0, 8.0), (8.0, 10000.0)),
    "head_dim": 16,
    "head_kernel": 5,
    "head_layers": 2,
    "head_norm": False,
    "max_buffer_len_factor": 1.0,
    "centre_radius": 0.0,
    "loss_weight": 2.0,
    "prior_prob": 0.1,
    "empty_classes": (1,),
    "label_smoothing": 0.1,
    "dropout": 0.5,
    "drop_path": 0.0,
    "init_loss_norm": 50.0,
}


def fingerprint(changes: dict[str, Any]) -> dict[str, Any]:
    """What a user can see of a configuration."""
    model = small(**changes)
    x, mask = window((20, 64), 64, channels=model.config.in_channels)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    outputs = model.eval()(x, mask)
    model.train()
    losses = model.loss(model(x, mask), TARGETS)
    try:
        model(*window((128,), 128, channels=model.config.in_channels))
        longest = 128
    except ConfigError:
        longest = 64
    return {
        "shapes": shapes,
        "logits": [x.tolist() for x in outputs.logits],
        "losses": {name: float(loss.detach()) for name, loss in losses.items()},
        "padded": [model.padded_len(length) for length in (10, 65, 120)],
        "longest": longest,
    }


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ActionFormerConfig)])
def test_every_field_changes_the_detector(field: str) -> None:
    value = CHANGES[field]
    changes = value if isinstance(value, dict) else {field: value}
    assert fingerprint(changes) != fingerprint({})
    rest = {name: v for name, v in changes.items() if name != field}
    if field in ("embed_dim", "neck_dim"):  # these need another neck: change it alone as well
        assert fingerprint(changes) != fingerprint(rest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": (3, 3)}, "Several sources"),
        ({"num_heads": 3}, "divide the width"),
        ({"attention_windows": (5, 5)}, "One attention window per level"),
        ({"attention_windows": 4, "rel_pos": True}, "odd attention windows"),
        ({"scale_factor": 3, "window_len": 63}, "even scale factor"),
        ({"start_level": 3}, "start level"),
        ({"regression_ranges": ((0.0, 4.0),)}, "One regression range"),
        ({"head_kernel": 4}, "Kernels are odd"),
        ({"window_len": 66}, "multiple of the coarsest stride"),
        ({"neck_dim": 16}, "identity neck"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**changes)


def test_without_positives_the_regression_head_gets_zero_gradients() -> None:
    model = small()
    nothing = Targets([torch.zeros(0, 2)], [torch.zeros(0, dtype=torch.int64)])
    losses = model.loss(model(*window((64,), 64)), nothing)
    assert float(losses["reg"].detach()) == 0
    sum(losses.values()).backward()
    gradient = model.reg_head.offset_head.conv.weight.grad
    assert gradient is not None
    assert (gradient == 0).all()


def test_balanced_losses_are_equal_in_size() -> None:
    model = small(loss_weight=0.0)
    losses = model.loss(model(*window((64, 64), 64)), TARGETS)
    torch.testing.assert_close(losses["reg"], losses["cls"])


def test_mixed_precision_keeps_targets_and_losses_in_float32() -> None:
    model = small(label_smoothing=0.1, rel_pos=True).eval()
    x, mask = window((40, 64), 64)
    exact = model.loss(model(x, mask), TARGETS)
    model.load_loss_state({"loss_norm": SMALL.init_loss_norm})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.loss(model(x, mask), TARGETS)
    for name, loss in exact.items():
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], loss, rtol=0.03, atol=0.0)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_checkpoints_are_unwrapped_to_the_averaged_weights(prefix: str) -> None:
    own = small().state_dict()
    raw = {prefix + name: value for name, value in own.items()}
    averaged = {prefix + name: value + 1 for name, value in own.items()}
    checkpoint = {"epoch": 3, "state_dict": raw, "state_dict_ema": averaged}
    model = small()
    model.load_state_dict(remap_official_keys(checkpoint))
    assert torch.equal(model.reg_head.scale[0].scale, own["reg_head.scale.0.scale"] + 1)
    model.load_state_dict(remap_official_keys(checkpoint, ema=False))
    assert torch.equal(model.reg_head.scale[0].scale, own["reg_head.scale.0.scale"])
    assert remap_official_keys(raw).keys() == own.keys()


def test_backbone_starts_without_convolution_biases() -> None:
    for name, parameter in small(embed_norm=False).backbone.named_parameters():
        if name.endswith(".bias") and parameter.dim() == 1:
            assert (parameter == 0).all()
