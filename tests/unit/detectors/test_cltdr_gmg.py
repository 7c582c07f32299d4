"""CLTDR-GMG: the mixer in float64, cross-layer modules, refinement, both groups of losses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tadpipe.detectors.cltdr_gmg import (
    CltdrGmg,
    CltdrGmgConfig,
    CrossLayerAttention,
    CrossLayerFusion,
    GmgMixer,
    refine_offsets,
    remap_official_keys,
    varifocal_loss,
)
from tadpipe.detectors.parts.losses import sigmoid_focal_loss
from tadpipe.errors import ConfigError
from tadpipe.pipeline.presets import load_preset
from tadpipe.training.optim import decay_names
from tests.unit.detectors.one_stage import (
    NOTHING,
    TARGETS,
    changed,
    fingerprint,
    loosen,
    window,
)
from tests.unit.detectors.small import CLTDR_GMG as SMALL


def small(**changes: Any) -> CltdrGmg:
    return CltdrGmg(changed(SMALL, **changes))


# --- encoder -----------------------------------------------------------------------------------


def mixed(mixer: GmgMixer, x: np.ndarray) -> np.ndarray:
    """The mixer of one sequence [C, T] in complex128, channel by channel."""
    values = {name: p.detach().double().numpy() for name, p in mixer.named_parameters()}
    out = np.empty_like(x)
    for c, row in enumerate(x):
        spectrum = np.fft.rfft(row, norm="ortho")
        w1, w2, b1, b2 = (complex(*values[name][:, c].ravel()) for name in ("w1", "w2", "b1", "b2"))
        z = spectrum * w1 + b1
        z = np.maximum(z.real, 0) + 1j * np.maximum(z.imag, 0)
        z = z * w2 + b2
        z = _soft(z.real) + 1j * _soft(z.imag)
        everywhere = np.fft.irfft(z * spectrum, n=len(row), norm="ortho")
        kernel = values["convw.weight"][c, 0]
        local = np.convolve(row, kernel[::-1], mode="same") + values["convw.bias"][c]
        local = local * everywhere
        instant = (row * values["fc.weight"][c, 0, 0] + values["fc.bias"][c]) * local
        out[c] = instant + local + everywhere + row
    return out


def _soft(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - 1e-3, 0)


@pytest.mark.parametrize("steps", [8, 13])
def test_mixer_equals_its_formula(steps: int) -> None:
    torch.manual_seed(0)
    mixer = GmgMixer(4, window=3, init_std=0.5)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.5 * torch.randn(parameter.shape)
    x = torch.randn(1, 4, steps)
    wanted = mixed(mixer, x[0].double().numpy())
    torch.testing.assert_close(mixer(x)[0].double(), torch.from_numpy(wanted), atol=1e-5, rtol=1e-5)


def test_mixer_stays_in_float32_under_autocast() -> None:
    mixer = GmgMixer(4, window=3, init_std=0.0)
    x = torch.randn(1, 4, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixer._global(x).dtype == torch.float32


def test_filter_weights_decay_and_its_biases_do_not() -> None:
    decay, rest = decay_names(small())
    assert {"backbone.stem.0.mixer.w1", "backbone.branch.1.mixer.w2"} <= decay
    assert {"cls_decoupling.resample.weight", "fusion.up.weight", "fusion.down.weight"} <= decay
    assert {"backbone.stem.0.mixer.b1", "backbone.stem.0.mixer.b2"} <= rest


def test_blocks_of_the_stem_have_window_1() -> None:
    model = small(local_windows=(5, 3, 7))
    blocks = [*model.backbone.stem, *model.backbone.branch]
    assert [block.mixer.convw.weight.shape[2] for block in blocks] == [1, 1, 3, 7]


# --- decoder -----------------------------------------------------------------------------------


def pyramid(channels: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.randn(2, channels, steps) for steps in (12, 6, 3)]


def test_levels_without_the_neighbour_pass() -> None:
    levels = pyramid()
    coarser, finer = CrossLayerAttention(4, "coarser"), CrossLayerAttention(4, "finer")
    merged = coarser(levels)
    assert torch.equal(merged[2], levels[2])
    assert not torch.equal(merged[1], levels[1])
    merged = finer(levels)
    assert torch.equal(merged[0], levels[0])
    assert not torch.equal(merged[1], levels[1])


def test_neighbours_are_weighted_per_channel() -> None:
    levels = pyramid()
    attention = CrossLayerAttention(4, "finer")
    other = attention.resample(levels[0])
    pooled = (other + attention.conv_l(levels[1])).relu().mean(2)
    weight = (pooled @ attention.attn.weight[:, :, 0].T + attention.attn.bias).sigmoid()
    wanted = levels[1] + other * weight[:, :, None]
    torch.testing.assert_close(attention(levels)[1], wanted)


def test_fusion_adds_both_neighbours() -> None:
    levels = pyramid()
    fusion = CrossLayerFusion(4)
    fused = fusion(levels)
    wanted = levels[1] + fusion.up(levels[2]) + fusion.down(levels[0])
    torch.testing.assert_close(fused[1], wanted)
    torch.testing.assert_close(fused[0], levels[0] + fusion.up(levels[1]))
    torch.testing.assert_close(fused[2], levels[2] + fusion.down(levels[1]))


def test_refined_boundaries_move_in_grid_steps_and_stop_at_their_point() -> None:
    coarse = torch.tensor([2.0, 3.0]).expand(1, 1, 1, 2)
    later = torch.full((1, 1, 1), 4.0)
    assert refine_offsets(coarse, later, later, 8).tolist() == [[[[1.5, 3.5]]]]
    assert refine_offsets(coarse, later, -later, 1).tolist() == [[[[0.0, 0.0]]]]


def test_refined_scores_are_products_of_logits() -> None:
    model = loosen(small()).eval()
    seen: list[Any] = []
    model.refine_head.register_forward_hook(lambda _m, _i, out: seen.append(out))
    outputs = model(*window((64,), 64))
    factor = seen[0].factors[0].transpose(1, 2)
    torch.testing.assert_close(outputs.logits[0], outputs.coarse_logits[0] * factor)


def test_detections_come_from_the_refined_outputs() -> None:
    model = loosen(small()).eval()
    outputs = model(*window((64,), 64))
    other = outputs._replace(coarse_logits=[x + 9 for x in outputs.coarse_logits])
    for ours, theirs in zip(model.decode(outputs)[0], model.decode(other)[0], strict=True):
        assert torch.equal(ours, theirs)


# --- padded length -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "windows", "padded"),
    [(3, 3, 64), (65, 1, 68), (65, 5, 80), (65, (40, 1, 3), 80), (81, (40, 1, 3), 120)],
)
def test_inference_pads_by_the_published_rule(
    length: int, windows: int | tuple[int, ...], padded: int
) -> None:
    assert small(local_windows=windows).padded_len(length) == padded


def test_top_level_may_have_an_odd_length() -> None:
    outputs = small()(*window((60,), 76))
    assert [x.shape[1] for x in outputs.logits] == [76, 38, 19]


# --- losses ------------------------------------------------------------------------------------


def test_varifocal_loss_weighs_positives_by_their_target() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0])
    targets = torch.tensor([1.0, 0.0, 0.02])
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none"
    )
    weights = torch.tensor([1.0, 0.25 * float(logits[1].sigmoid()) ** 2, 0.02])
    torch.testing.assert_close(varifocal_loss(logits, targets), weights * cross_entropy)


def test_the_normaliser_moves_twice_refined_first() -> None:
    model = small(init_loss_norm=40.0)
    outputs = model(*window((64, 64), 64))
    refined, coarse = model.loss_groups(outputs, TARGETS)
    positives = (refined.norm - 0.9 * 40) / 0.1
    assert positives == pytest.approx(round(positives))
    assert coarse.norm == pytest.approx(0.9 * refined.norm + 0.1 * positives)
    assert model.loss_state()["loss_norm"] == coarse.norm


@pytest.mark.parametrize("weight", [2.0, 0.0])
def test_losses_mix_refined_and_coarse_seven_to_three(weight: float) -> None:
    model = loosen(small(loss_weight=weight)).eval()
    outputs = model(*window((64, 64), 64))
    refined, coarse = model.loss_groups(outputs, TARGETS)
    model.load_loss_state(small().loss_state())
    terms = model.loss(outputs, TARGETS)
    torch.testing.assert_close(terms["cls"], 0.7 * refined.cls + 0.3 * coarse.cls)
    wanted = 0.7 * (2 * refined.reg) + 0.3 * (2 * coarse.reg) if weight else terms["cls"]
    torch.testing.assert_close(terms["reg"], wanted)


def test_only_refined_scores_are_weighted_by_tiou() -> None:
    plain, strong = (loosen(small(iou_power=power)).eval() for power in (0.0, 2.0))
    groups = [model.loss_groups(model(*window((64, 64), 64)), TARGETS) for model in (plain, strong)]
    assert groups[0][0].cls > groups[1][0].cls
    assert torch.equal(groups[0][1].cls, groups[1][1].cls)


def test_boundaries_clamped_to_their_point_give_finite_gradients() -> None:
    """tIoU 0 to the power 0.2 has infinite slope; the clamp lets none of it through."""
    model = small(drop_path=0.0, conv_init_std=0.1)
    with torch.no_grad():
        model.refine_head.start_shift.conv.bias.fill_(1000.0)
        model.refine_head.end_shift.conv.bias.fill_(-1000.0)
    outputs = model(*window((64, 64), 64))
    assert all((x == 0).all() for x in (y[:, :16] for y in outputs.offsets))
    total = torch.stack(list(model.loss(outputs, TARGETS).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_without_trident_head_boundaries_are_not_refined() -> None:
    model = loosen(small(trident=False))
    outputs = model(*window((64, 64), 64))
    assert outputs.offsets is outputs.coarse_offsets
    assert outputs.offsets[0].shape[2] == 1
    torch.stack(list(model.loss(outputs, TARGETS).values())).sum().backward()
    assert model.refine_head.start_shift.conv.weight.grad is None
    assert model.refine_head.factor.conv.weight.grad is not None


def test_without_positives_the_regression_head_gets_zero_gradients() -> None:
    model = small()
    losses = model.loss(model(*window((64,), 64)), NOTHING)
    assert float(losses["reg"].detach()) == 0
    sum(losses.values()).backward()
    gradient = model.reg_head.offset_head.conv.weight.grad
    assert gradient is not None
    assert (gradient == 0).all()


def test_class_loss_is_a_switch_of_the_refined_group_only() -> None:
    outcomes = {}
    for name in ("focal", "varifocal"):
        model = loosen(small(cls_loss=name)).eval()
        outputs = model(*window((64, 64), 64))
        outcomes[name] = model.loss_groups(outputs, TARGETS)
    assert not torch.equal(outcomes["focal"][0].cls, outcomes["varifocal"][0].cls)
    assert torch.equal(outcomes["focal"][1].cls, outcomes["varifocal"][1].cls)


def test_coarse_classification_is_plain_focal_loss() -> None:
    model = loosen(small(cls_loss="varifocal")).eval()
    outputs = model(*window((64,), 64))
    _, coarse = model.loss_groups(outputs, NOTHING)
    logits = torch.cat(outputs.coarse_logits, dim=1)
    wanted = sigmoid_focal_loss(logits, torch.zeros_like(logits)).sum() / coarse.norm
    torch.testing.assert_close(coarse.cls, wanted)


# --- sizes, options, checkpoints ---------------------------------------------------------------

PUBLISHED = {  # preset -> millions of parameters with the dead ones of the release, classes
    "thumos14_i3d": (21.908, 20),
    "thumos14_videomaev2": (20.925, 20),
    "thumos14_internvideo2": (23.678, 20),
    "multithumos_i3d_rgb": (20.935, 65),
    "multithumos_i3d": (24.345, 65),
    "multithumos_videomaev2": (23.361, 65),
    "epic_slowfast_noun": (27.878, 300),
    "epic_slowfast_verb": (23.337, 97),
    "activitynet_tsp": (15.012, 1),
    "hacs_i3d": (84.395, 200),
    "hacs_slowfast": (85.128, 200),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_number_of_parameters(name: str) -> None:
    millions, classes = PUBLISHED[name]
    preset = load_preset(f"cltdr-gmg/{name}")
    assert preset.nms.vote_weight == "score"
    assert preset.windows.margin == "none"
    with torch.device("meta"):
        model = CltdrGmg(preset.model_config(preset.features.channels or 0, classes, name))
    dead = len(model.config.strides)  # scales of the refinement head
    assert len(model.state_dict()) + dead == (212 if dead == 6 else 234)
    total = sum(p.numel() for p in model.parameters()) + dead
    assert total / 1e6 == pytest.approx(millions, abs=6e-4)


CHANGES: dict[str, Any] = {
    "in_channels": 7,
    "num_classes": 4,
    "window_len": 128,
    "backbone": "conv",
    "embed_layers": 1,
    "stem_layers": 1,
    "branch_layers": {"branch_layers": 3, "regression_ranges": ((0.0, 4.0),) * 4},
    "embed_dim": 32,
    "embed_kernel": 5,
    "embed_norm": False,
    "local_windows": 5,
    "mlp_dim": 16,
    "downsample": "avg",
    "conv_init_std": 0.2,
    "abs_pos": True,
    "neck": "fpn",
    "neck_norm": False,
    "regression_ranges": ((0.0, 2.0), (2.0, 8.0), (8.0, 10000.0)),
    "head_dim": 16,
    "head_kernel": 5,
    "head_layers": 2,
    "head_norm": False,
    "trident": False,
    "boundary_kernel": 1,
    "num_bins": 5,
    "cls_loss": "varifocal",
    "iou_power": 1.0,
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


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CltdrGmgConfig)])
def test_every_field_changes_the_detector(field: str) -> None:
    value = CHANGES[field]
    changes = value if isinstance(value, dict) else {field: value}
    assert fingerprint(small, changes) != fingerprint(small, {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 24}, "multiple of 16"),
        ({"local_windows": (3, 3)}, "One window per level"),
        ({"local_windows": 4}, "odd"),
        ({"boundary_kernel": 2}, "odd"),
        ({"regression_ranges": ((0.0, 4.0),)}, "One regression range"),
        ({"window_len": 66}, "multiple of the coarsest stride"),
        ({"num_bins": 0}, "needs bins"),
        ({"input_noise": -1.0}, "not negative"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**changes)


def test_official_names_become_ours_and_dead_scales_are_left_out() -> None:
    official = {
        "module.backbone.stem.0.w1": "backbone.stem.0.mixer.w1",
        "module.backbone.branch.1.fc.bias": "backbone.branch.1.mixer.fc.bias",
        "module.backbone.branch.1.gn.bias": "backbone.branch.1.gn.bias",
        "module.decls.contrans.weight": "cls_decoupling.resample.weight",
        "module.decls.attn.1.bias": "cls_decoupling.attn.bias",
        "module.dereg.down.weight": "reg_decoupling.resample.weight",
        "module.dereg.conv_l.weight": "reg_decoupling.conv_l.weight",
        "module.cross_level.conv.weight": "fusion.down.weight",
        "module.cross_level.convtrans.bias": "fusion.up.bias",
        "module.refineHead.prob_head.conv.bias": "refine_head.factor.conv.bias",
        "module.refineHead.s_offset_head.conv.bias": "refine_head.start_shift.conv.bias",
        "module.refineHead.norm.1.weight": "refine_head.norm.1.weight",
        "module.refineHead.scale.0.scale": None,
        "module.reg_head.scale.0.scale": "reg_head.scale.0.scale",
    }
    weights = {name: torch.full((), float(i)) for i, name in enumerate(official)}
    renamed = remap_official_keys({"state_dict": {}, "state_dict_ema": weights})
    assert list(renamed) == [name for name in official.values() if name]
    assert set(renamed) <= set(small().state_dict())
    assert float(renamed["reg_head.scale.0.scale"]) == len(official) - 1
