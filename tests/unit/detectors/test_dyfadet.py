"""DyFADet: shift, gates, forms of aggregation, heads, padding, sizes, weights, every option."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tadpipe.detectors.dyfadet import (
    DepthPath,
    DfaPath,
    Dyfadet,
    DyfadetConfig,
    DyHeadLayer,
    DyneMixer,
    Shift,
    ShiftedConv,
    gate_values,
    remap_official_keys,
)
from tadpipe.detectors.protocol import Targets
from tadpipe.detectors.tridet import SgpMixer
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.training.optim import decay_names
from tests.unit.detectors.small import DYFADET as SMALL

TARGETS = Targets(
    [torch.tensor([[2.0, 5.0], [10.0, 26.0]]), torch.tensor([[4.0, 11.0]])],
    [torch.tensor([0, 2]), torch.tensor([1])],
)


def small(**changes: Any) -> Dyfadet:
    torch.manual_seed(0)
    return Dyfadet(dataclasses.replace(SMALL, **changes))


def window(lengths: tuple[int, ...], padded: int, channels: int = 6) -> tuple[Tensor, Tensor]:
    """Random features, the same at real steps whatever the padding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(lengths), channels, 512, generator=generator)[..., :padded]
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    return x * mask[:, None], mask


def loosen(model: nn.Module) -> nn.Module:
    """Let every gate, norm bias and scale act as it would after training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drop_path" in name or "scale_weight" in name:
                parameter.fill_(0.5)
            elif parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


# --- dynamic feature aggregation ---------------------------------------------------------------


@pytest.mark.parametrize("taps", [1, 3, 5])
def test_shift_is_the_convolution_with_its_stored_kernels(taps: int) -> None:
    x, _ = window((9, 9), 9, channels=4)
    shift = Shift(4, taps)
    kernels = nn.functional.conv1d(x, shift.weight, padding=taps // 2, groups=4)
    side_by_side = shift(x).permute(0, 3, 2, 1).flatten(1, 2)  # [B, C A, T]
    torch.testing.assert_close(side_by_side, kernels)


@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_a_convolution_of_shifted_features_needs_no_shift(taps: int, steps: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(4 * taps, 6, taps, padding=taps // 2)
    x = torch.randn(2, 4, steps)
    shifted = Shift(4, taps)(x).permute(0, 3, 2, 1).flatten(1, 2)
    torch.testing.assert_close(ShiftedConv.of(conv)(x), conv(shifted))


def test_gates_are_zero_where_they_should_be() -> None:
    x = torch.tensor([-1.0, 0.0, 1e-3, 1.5, 9.0])
    general = gate_values(x, "geretanh", 1.5)
    assert general[:2].tolist() == [0.0, 0.0]
    assert (general[2:] > 0).all()
    top = torch.tensor(1.5).tanh()
    assert float(general[3]) == pytest.approx(float(top / (1 + top)))
    assert gate_values(x, "retanh", 1.5).tolist() == x.tanh().clamp(min=0).tolist()
    assert gate_values(x, "relu", 1.5).tolist() == x.clamp(min=0).tolist()
    assert gate_values(x, "sigmoid", 1.5).tolist() == x.sigmoid().tolist()


def by_hand(path: DfaPath, x: Tensor, dynamic_type: str) -> Tensor:
    """u of one sequence, channel by channel and tap by tap as it is written down."""
    channels, steps, taps = x.shape[0], x.shape[1], 3
    gate = gate_values(path.kernel_conv(x[None])[0], "geretanh", path.tau)
    padded = nn.functional.pad(x, (1, 1))
    shifted = torch.stack([padded[c, i : i + steps] for c in range(channels) for i in range(taps)])
    row_of = {"c": lambda c, i: c, "k": lambda c, i: i, "ck": lambda c, i: c * taps + i}
    pairs = [(c, i) for c in range(channels) for i in range(taps)]
    expanded = torch.stack([gate[row_of[dynamic_type](c, i)] for c, i in pairs])
    gated = shifted * expanded
    if dynamic_type == "k":  # the order of the release: taps before channels
        gated = torch.stack([gated[c * taps + i] for i in range(taps) for c in range(channels)])
    return shifted * gated


@pytest.mark.parametrize("dynamic_type", ["c", "k", "ck"])
def test_every_form_multiplies_twice_as_in_the_release(dynamic_type: Any) -> None:
    torch.manual_seed(0)
    path = DfaPath(4, 3, dynamic_type=dynamic_type, tau=0.5)
    x, mask = window((7,), 10, channels=4)
    u = by_hand(path, x[0], dynamic_type)
    expected = path.norm(path.conv(u[None])) * mask[:, None]
    torch.testing.assert_close(path([x], [mask])[0], expected)


def test_a_closed_gate_leaves_the_norm_of_the_bias() -> None:
    torch.manual_seed(0)
    path = DfaPath(4, 3, dynamic_type="c", tau=1.5)
    nn.init.constant_(path.kernel_conv.gate_conv.bias, -100.0)  # type: ignore[arg-type]  # has one
    x, mask = window((7,), 7, channels=4)
    assert path.conv.bias is not None
    torch.testing.assert_close(
        path([x], [mask])[0], path.norm(path.conv.bias[None, :, None]).expand(1, 4, 7)
    )


def test_depth_path_repeats_one_weight_for_all_taps() -> None:
    torch.manual_seed(0)
    path = DepthPath(4, 6, 3, gate="sigmoid", tau=1.5)
    x, mask = window((7,), 10, channels=4)
    shifted = path.shift_conv(x).permute(0, 3, 2, 1).flatten(1, 2)
    kernel = path.kernel_conv
    weights = kernel.convs(shifted) * kernel.gate.gate_conv(shifted).sigmoid()
    expected = path.conv(shifted * weights.repeat_interleave(3, dim=1))
    torch.testing.assert_close(path([x], [mask])[0], path.norm(expected) * mask[:, None])


def test_windowed_branch_of_the_encoder_can_switch_off() -> None:
    options = dict(window=3, factor=1.5, init_std=0.1)
    torch.manual_seed(0)
    dynamic = DyneMixer(16, **options)  # type: ignore[arg-type]
    plain = SgpMixer(16, **options)  # type: ignore[arg-type]
    plain.load_state_dict(dynamic.state_dict())
    x, _ = window((20,), 20, channels=16)
    assert not torch.allclose(dynamic(x), plain(x))
    for mixer in (dynamic, plain):
        nn.init.constant_(mixer.convw.bias, 100.0)  # type: ignore[arg-type]  # has one
    torch.testing.assert_close(dynamic(x), plain(x))


# --- heads -------------------------------------------------------------------------------------


def test_levels_join_with_their_neighbours() -> None:
    torch.manual_seed(0)
    layer = DyHeadLayer(SMALL, 16, 8, nn.Identity())
    with torch.no_grad():
        layer.scale_weight.fill_(0.3)
        layer.output_weight.fill_(2.0)
    levels = [torch.randn(1, 16, n) for n in (16, 8, 4)]
    masks = [torch.ones(1, n, dtype=torch.bool) for n in (16, 8, 4)]
    coarser, finer = layer.dynamic_convs
    from_finer, from_coarser = coarser(levels, masks), finer(levels, masks)
    middle = from_finer[0][..., ::2] + from_coarser[2].repeat_interleave(2, dim=2)
    joined = [0.3 * middle + 2.0 * levels[1], 0.3 * from_finer[1][..., ::2] + 2.0 * levels[2]]
    expected = layer.depth_module(joined, masks[1:])
    torch.testing.assert_close(layer(levels, masks)[1:], expected)


def test_at_the_start_levels_do_not_see_each_other() -> None:
    layer = DyHeadLayer(SMALL, 16, 8, nn.Identity())
    assert (layer.scale_weight.item(), layer.output_weight.item()) == (0.0, 1.0)


def test_regression_counts_every_class_of_a_point() -> None:
    same = Targets([torch.tensor([[10.0, 26.0]] * 2)], [torch.tensor([0, 1])])
    once = Targets([torch.tensor([[10.0, 26.0]])], [torch.tensor([0])])
    model = small().eval()
    outputs = model(*window((64,), 64))
    single = model.loss_terms(outputs, once)[1]
    model.load_loss_state({"loss_norm": SMALL.init_loss_norm})
    torch.testing.assert_close(model.loss_terms(outputs, same)[1], 2 * single)


# --- padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "changes", "padded"),
    [
        (3, {}, 64),  # always the window
        (64, {}, 64),
        (65, {"dyne_windows": 1}, 68),  # coarsest stride 4
        (65, {}, 72),  # 4 * 3
        (65, {"dyne_windows": (5, 1, 3)}, 72),
        (65, {"dyne_windows": (25, 1, 1)}, 100),  # the stem's window pads too
    ],
)
def test_videos_are_padded_by_the_published_rule(
    length: int, changes: dict[str, Any], padded: int
) -> None:
    assert small(**changes).padded_len(length) == padded


def test_videos_without_actions_run_and_have_no_regression_loss() -> None:
    model = small()
    nothing = Targets([torch.zeros(0, 2)], [torch.zeros(0, dtype=torch.int64)])
    losses = model.loss(model(*window((64,), 64)), nothing)
    assert float(losses["reg"].detach()) == 0
    assert len(model.eval().decode(model(*window((64,), 64)))) == 1


# --- sizes and weights -------------------------------------------------------------------------

WIDE = {"embed_dim": 256, "neck_dim": 256, "mlp_dim": 2048}
HACS = {"head_dim": 1024, "mlp_dim": 1024, "head_kernel": 5, "dyne_windows": 3, "dyne_factor": 1.2}
RANGES7 = ((0.0, 1.0),) * 7
EPIC = {"mlp_dim": 1024}
PUBLISHED: dict[str, tuple[float, int, int, dict[str, Any]]] = {  # millions of parameters
    "THUMOS14 I3D": (28.572, 2048, 20, {}),
    "THUMOS14 VideoMAE": (27.589, 1408, 20, {}),
    "ActivityNet TSP": (20.324, 512, 1, {**WIDE, "dyne_windows": 15, "dyne_factor": 1.2}),
    "HACS SlowFast": (194.413, 2304, 200, {**HACS, "embed_dim": 1024, "neck_dim": 1024}),
    "HACS VideoMAE": (119.292, 1408, 200, HACS),
    "FineAction": (
        22.082, 1408, 1,
        {**WIDE, "branch_layers": 6, "regression_ranges": RANGES7, "dyne_windows": 15,
         "dyne_factor": 1.3},
    ),
    "EPIC noun": (31.226, 2304, 300, {**EPIC, "dyne_factor": 4.0}),
    "EPIC verb": (30.940, 2304, 97, {**EPIC, "dyne_windows": 5, "dyne_factor": 2.0}),
}  # fmt: skip


def size(module: nn.Module, *, trainable: bool = False) -> float:
    kept = [p.numel() for p in module.parameters() if p.requires_grad or not trainable]
    return sum(kept) / 1e6


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_recipes_have_the_published_number_of_parameters(recipe: str) -> None:
    millions, channels, classes, changes = PUBLISHED[recipe]
    with torch.device("meta"):
        model = Dyfadet(DyfadetConfig(channels, classes, **changes))
    assert size(model) == pytest.approx(millions, abs=5e-4)
    assert len(model.state_dict()) == 280 + 23 * (model.config.branch_layers - 5)


def test_parts_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = Dyfadet(DyfadetConfig(2048, 20))
        static = Dyfadet(DyfadetConfig(2048, 20, dynamic_head=False))
    assert model.cls_trunk is not None
    assert model.reg_trunk is not None
    assert size(model, trainable=True) == pytest.approx(28.517, abs=5e-4)
    assert size(model.backbone) == pytest.approx(9.539, abs=5e-4)
    assert size(model.cls_trunk) + size(model.cls_head) == pytest.approx(9.527, abs=5e-4)
    assert size(model.reg_trunk) + size(model.reg_head) == pytest.approx(9.500, abs=5e-4)
    assert size(static) == pytest.approx(12.7, abs=0.05)


def official(model: Dyfadet) -> dict[str, Tensor]:
    """The model's weights under the names of the release."""
    renamed = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (("cls_trunk.", "cls_head.head."), ("reg_trunk.", "reg_head.head.")):
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        renamed[name.replace(".mixer.", ".")] = value
    return renamed


@pytest.mark.parametrize("dynamic", [True, False])
def test_official_keys_load_strictly(dynamic: bool) -> None:
    first, second = small(dynamic_head=dynamic), small(dynamic_head=dynamic)
    averaged = {f"module.{name}": value + 0 for name, value in official(first).items()}
    second.load_state_dict(remap_official_keys({"state_dict_ema": averaged}))
    if dynamic:
        assert "cls_head.head.0.depth_module.kernel_conv.gate.gate_conv.weight" in official(first)
        assert "reg_head.head.1.dynamic_convs.1.kernel_conv.gate_conv.bias" in official(first)


def test_shift_kernels_are_saved_do_not_train_and_are_checked() -> None:
    model = small()
    state = model.state_dict()
    name = "cls_trunk.0.dynamic_convs.0.shift_conv.weight"
    assert state[name].shape == (48, 1, 3)
    assert not model.get_parameter(name).requires_grad
    state[name] = state[name] * 0.9999  # rounding of an average
    model.load_state_dict(state)
    state[name] = state[name].flip(2)
    with pytest.raises(CheckpointError, match="one-hot"):
        model.load_state_dict(state)


def test_neighbour_weights_do_not_decay() -> None:
    decay, rest = decay_names(small())
    assert {"cls_trunk.0.scale_weight", "reg_trunk.1.output_weight"} <= rest
    assert "cls_trunk.0.depth_module.conv.weight" in decay


def test_encoder_starts_with_the_stated_deviation_and_without_biases() -> None:
    for name, parameter in small(conv_init_std=0.0).backbone.named_parameters():
        if ".mixer." in name or (name.endswith(".bias") and ".mlp." in name):
            assert (parameter == 0).all()


def test_trunks_of_the_heads_start_small_and_without_biases() -> None:
    torch.manual_seed(0)
    model = small()
    for trunk in (model.cls_trunk, model.reg_trunk):
        assert trunk is not None
        convs = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv1d)]
        weights = torch.cat([conv.weight.flatten() for conv in convs])
        assert 0.009 < float(weights.detach().std()) < 0.011
        assert not any(conv.bias.any() for conv in convs if conv.bias is not None)


# --- options -----------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "in_channels": 7,
    "num_classes": 4,
    "window_len": 128,
    "backbone": "conv",
    "embed_layers": 1,
    "stem_layers": 1,
    "branch_layers": {"branch_layers": 3, "regression_ranges": ((0.0, 4.0),) * 4},
    "scale_factor": 4,
    "embed_dim": {"embed_dim": 32, "neck": "fpn"},
    "embed_kernel": 5,
    "embed_norm": False,
    "dyne_windows": 5,
    "dyne_factor": 3.0,
    "mlp_dim": 32,
    "conv_init_std": 0.2,
    "abs_pos": True,
    "neck": "fpn",
    "neck_dim": {"neck_dim": 12, "neck": "fpn"},
    "neck_norm": False,
    "regression_ranges": ((0.0, 2.0), (2.0, 8.0), (8.0, 10000.0)),
    "dynamic_head": False,
    "dynamic_type": "ck",
    "gate": "sigmoid",
    "gate_tau": 2.0,
    "head_activation": "gelu",
    "head_dim": 16,
    "head_kernel": 5,
    "head_layers": 2,
    "max_buffer_len_factor": 1.0,
    "centre_radius": 0.0,
    "loss_weight": 2.0,
    "prior_prob": 0.1,
    "empty_classes": (1,),
    "label_smoothing": 0.1,
    "input_noise": 0.5,
    "drop_path": 0.0,
    "init_loss_norm": 50.0,
}


def fingerprint(changes: dict[str, Any]) -> dict[str, Any]:
    """What a user can see of a configuration."""
    model = small(**changes)
    x, mask = window((20, 64), 64, channels=model.config.in_channels)
    outputs = model.eval()(x, mask)
    model.train()
    torch.manual_seed(5)
    losses = model.loss(model(x, mask), TARGETS)
    try:
        model(*window((128,), 128, channels=model.config.in_channels))
        longest = 128
    except ConfigError:
        longest = 64
    return {
        "shapes": {name: tuple(value.shape) for name, value in model.state_dict().items()},
        "logits": [x.tolist() for x in outputs.logits],
        "losses": {name: float(loss.detach()) for name, loss in losses.items()},
        "padded": [model.padded_len(length) for length in (10, 65, 120)],
        "longest": longest,
    }


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(DyfadetConfig)])
def test_every_field_changes_the_detector(field: str) -> None:
    value = CHANGES[field]
    changes = value if isinstance(value, dict) else {field: value}
    rest = {name: v for name, v in changes.items() if name != field}
    if field == "branch_layers":
        rest = {}
    assert fingerprint(changes) != fingerprint(rest)


@pytest.mark.parametrize("kind", ["relu", "retanh", "sigmoid"])
def test_gate_kinds_act_in_the_depth_path_only(kind: Any) -> None:
    ours, other = loosen(small()), loosen(small(gate=kind))
    x, mask = window((16,), 16, channels=16)
    for trunk in ("cls_trunk", "reg_trunk"):
        first, second = (m.get_submodule(f"{trunk}.0") for m in (ours, other))
        paths = [layer.dynamic_convs[0]([x], [mask])[0] for layer in (first, second)]
        torch.testing.assert_close(*paths)
        depth = [layer.depth_module([x], [mask])[0] for layer in (first, second)]
        assert not torch.allclose(*depth)


@pytest.mark.parametrize("kind", ["lrelu", "gelu"])
def test_head_activation_is_that_of_the_class_head(kind: Any) -> None:
    ours, other = (loosen(small(**c)).eval() for c in ({}, {"head_activation": kind}))
    first, second = (model(*window((64,), 64)) for model in (ours, other))
    assert not torch.allclose(first.logits[0], second.logits[0])
    torch.testing.assert_close(first.offsets, second.offsets)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 24}, "multiple of 16"),
        ({"dyne_windows": (1, 3)}, "One window per level"),
        ({"dyne_windows": 4}, "odd"),
        ({"head_kernel": 4}, "odd"),
        ({"scale_factor": 3, "window_len": 63}, "even scale factor"),
        ({"regression_ranges": ((0.0, 4.0),)}, "One regression range"),
        ({"window_len": 66}, "multiple of the coarsest stride"),
        ({"input_noise": -1.0}, "not negative"),
        ({"head_layers": 1}, "at least one layer"),
        ({"head_dim": 5, "head_kernel": 5}, "must differ from the width"),
        ({"neck_dim": 32}, "identity neck"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**changes)
