"""TriDet: kernels, Trident head against loops, padded length, losses, sizes, every option."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tadpipe.detectors.parts.conv import AffineDropPath
from tadpipe.detectors.parts.losses import offset_iou, sigmoid_focal_loss
from tadpipe.detectors.protocol import Targets
from tadpipe.detectors.tridet import (
    DepthwiseConv1d,
    SgpBlock,
    SgpMixer,
    TriDet,
    TriDetConfig,
    expected_offsets,
    remap_official_keys,
    wide_kernel,
)
from tadpipe.errors import ConfigError
from tadpipe.pipeline.presets import load_preset
from tests.unit.detectors.one_stage import (
    NOTHING,
    TARGETS,
    changed,
    fingerprint,
    loosen,
    window,
)
from tests.unit.detectors.small import TRIDET as SMALL


def small(**changes: Any) -> TriDet:
    return TriDet(changed(SMALL, **changes))


# --- encoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "factor", "kernel"),
    [
        (1, 5, 11), (15, 1.3, 21), (3, 1.2, 5), (1, 4, 9), (5, 2, 13), (15, 1.2, 19),
        (1, 1.75, 5), (5, 1.75, 11), (3, 1.75, 7), (1, 1.25, 3),
    ],
)  # fmt: skip
def test_wide_kernel_rounds_half_to_even_and_then_up_to_odd(
    size: int, factor: float, kernel: int
) -> None:
    assert wide_kernel(size, factor) == kernel


@pytest.mark.parametrize("kernel", [1, 5])
def test_depthwise_convolution_is_torchs_own(kernel: int) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv1d(4, kernel, init_std=1.0)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, 9)
    wanted = F.conv1d(x, conv.weight, conv.bias, padding=kernel // 2, groups=4)
    torch.testing.assert_close(conv(x), wanted)


def test_convolutions_that_start_at_zero_pass_the_input_and_get_no_gradient() -> None:
    mixer = SgpMixer(4, window=3, factor=1.5, init_std=0.0)
    x = torch.randn(2, 4, 16)
    out = mixer(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    for parameter in mixer.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all() or parameter.dim() == 1
    assert (mixer.convw.weight.grad == 0).all()


def test_blocks_of_the_stem_have_window_1_and_no_drop_path() -> None:
    model = small(sgp_windows=(5, 3, 7))
    widths = [block.mixer.convw.weight.shape[2] for block in model.backbone.stem]
    assert widths == [1, 1]
    assert [block.mixer.convw.weight.shape[2] for block in model.backbone.branch] == [3, 7]
    assert not any(isinstance(m, AffineDropPath) for m in model.backbone.stem.modules())
    assert any(isinstance(m, AffineDropPath) for m in model.backbone.branch.modules())


@pytest.mark.parametrize("downsample", ["max", "avg"])
def test_padded_steps_are_not_masked_inside_a_block(downsample: str) -> None:
    block = SgpBlock(
        16,
        8,
        SgpMixer(16, window=3, factor=1.5, init_std=0.3),
        stride=2,
        downsample=downsample,
        drop_path_prob=0.0,
    )
    x, mask = window((11,), 32, channels=16)
    out, strided = block(x + 1.0, mask)
    assert out.shape == (1, 16, 16)
    assert int(strided.sum()) == 6
    assert (out.masked_select(~strided[:, None]) != 0).any()


# --- padded length -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "changes", "padded"),
    [
        (3, {}, 64),  # all of the window, however short
        (64, {}, 64),
        (65, {"sgp_windows": 1}, 68),  # coarsest stride 4
        (65, {"sgp_windows": 5}, 80),  # 4 * 5
        (65, {"sgp_windows": (1, 7, 1)}, 84),  # 2 * 7 = 14, and a multiple of 4: 28
        (65, {"sgp_windows": (40, 1, 3)}, 80),  # the stem's entry counts here and only here
        (81, {"sgp_windows": (40, 1, 3)}, 120),
    ],
)
def test_inference_pads_by_the_published_rule(
    length: int, changes: dict[str, Any], padded: int
) -> None:
    assert small(**changes).padded_len(length) == padded


# --- Trident head ------------------------------------------------------------------------------


def loops(start: Tensor, end: Tensor, bins: Tensor) -> Tensor:
    """Sec. 3.3 point by point in float64; positions outside the sequence have logit 0."""
    batch, classes, steps = start.shape
    far = bins.shape[1] // 2 - 1
    out = torch.zeros(batch, steps, classes, 2, dtype=torch.float64)
    for b, k, t in torch.cartesian_prod(*map(torch.arange, (batch, classes, steps))).tolist():
        for side, logits, sign in ((0, start, -1), (1, end, 1)):
            weights = []
            for distance in range(far + 1):
                where = t + sign * distance
                logit = float(logits[b, k, where]) if 0 <= where < steps else 0.0
                # Left bins run from the farthest to the point, right ones away from it.
                j = far - distance if side == 0 else far + 1 + distance
                weights.append(logit + float(bins[b, j, t]))
            probs = torch.tensor(weights, dtype=torch.float64).softmax(0)
            out[b, t, k, side] = (probs * torch.arange(far + 1)).sum()
    return out


@pytest.mark.parametrize(("steps", "far"), [(7, 1), (7, 3), (3, 5)])
def test_offsets_are_expectations_over_the_neighbourhood(steps: int, far: int) -> None:
    torch.manual_seed(steps)
    start, end = torch.randn(2, 2, 2, steps).unbind()
    bins = torch.randn(2, 2 * (far + 1), steps).relu()
    ours = expected_offsets(start, end, bins)
    torch.testing.assert_close(ours.double(), loops(start, end, bins), atol=1e-5, rtol=1e-5)
    assert ours.min() >= 0
    assert ours.max() <= far


def test_boundary_heads_do_not_train_the_encoder() -> None:
    model = loosen(small()).eval()
    model.reg_head.requires_grad_(False)
    for head in (model.cls_head, model.reg_head):
        head.register_forward_hook(lambda _m, _i, out: [x.detach() for x in out])
    outputs = model(*window((64,), 64))
    sum(x.sum() for x in outputs.offsets).backward()
    assert model.start_head.cls_head.conv.weight.grad is not None
    assert all(p.grad is None for p in model.backbone.parameters())


def test_without_trident_head_offsets_serve_all_classes() -> None:
    model = small(trident=False)
    outputs = model(*window((64,), 64))
    assert [x.shape[2] for x in outputs.offsets] == [1, 1, 1]
    assert not any(name.startswith(("start_head", "end_head")) for name in model.state_dict())


# --- losses ------------------------------------------------------------------------------------


def test_positives_weigh_by_their_tiou() -> None:
    """Both loss terms recomputed pair by pair; a point with two classes counts twice."""
    model = loosen(small(iou_power=0.5, label_smoothing=0.1)).eval()
    x, mask = window((64,), 64)
    targets = Targets([torch.tensor([[20.0, 26.0], [20.0, 26.0]])], [torch.tensor([0, 2])])
    outputs = model(x, mask)
    cls_loss, reg_loss = model.loss_terms(outputs, targets)
    points = torch.cat(outputs.points)
    logits, offsets = torch.cat(outputs.logits, 1)[0], torch.cat(outputs.offsets, 1)[0]
    classes = torch.zeros(len(points), 3)
    factors = torch.ones(len(points), 3)
    positive, total = 0, torch.zeros(())
    for n, (position, low, high, stride) in enumerate(points.tolist()):
        left, right = position - 20, 26 - position
        near = max(23 - 1.5 * stride, 20) < position < min(23 + 1.5 * stride, 26)
        if near and low <= max(left, right) <= high:
            positive += 1
            wanted = torch.tensor([[left, right]]) / stride
            for k in (0, 2):
                classes[n, k] = 1
                iou = offset_iou(offsets[n, k][None], wanted)
                factors[n, k] = iou[0].detach() ** 0.5
                total = total + 1 - iou[0] + _centre_gap(offsets[n, k], wanted[0]) ** 2
    assert positive
    count = 0.9 * 100 + 0.1 * positive
    wanted_cls = (sigmoid_focal_loss(logits, classes * 0.9 + 0.1 / 4) * factors).sum() / count
    torch.testing.assert_close(cls_loss, wanted_cls)
    torch.testing.assert_close(reg_loss, total / count)
    assert model.loss_state()["loss_norm"] == pytest.approx(count)


def _centre_gap(pred: Tensor, wanted: Tensor) -> Tensor:
    """Distance of the centres over the length of the enclosing segment."""
    centres = 0.5 * (pred[1] - pred[0] - wanted[1] + wanted[0])
    return centres / torch.maximum(pred, wanted).sum()


def test_classification_loss_trains_the_boundaries_through_the_tiou() -> None:
    model = loosen(small())
    cls_loss, _ = model.loss_terms(model(*window((64, 64), 64)), TARGETS)
    cls_loss.backward()
    gradient = model.reg_head.offset_head.conv.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_without_positives_the_regression_head_gets_zero_gradients() -> None:
    model = small()
    losses = model.loss(model(*window((64,), 64)), NOTHING)
    assert float(losses["reg"].detach()) == 0
    sum(losses.values()).backward()
    gradient = model.reg_head.offset_head.conv.weight.grad
    assert gradient is not None
    assert (gradient == 0).all()


def test_balanced_losses_are_equal_in_size() -> None:
    model = small(loss_weight=0.0)
    losses = model.loss(model(*window((64, 64), 64)), TARGETS)
    torch.testing.assert_close(losses["reg"], losses["cls"])


def test_noise_reaches_padded_steps_in_training_only() -> None:
    model = small(input_noise=0.5, drop_path=0.0)
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    x, mask = window((20,), 64)
    model.eval()(x, mask)
    model.train()(x, mask)
    assert torch.equal(seen[0], x)
    assert 0.4 < float(seen[1][..., 20:].std()) < 0.6


# --- sizes, options, checkpoints ---------------------------------------------------------------

PUBLISHED = {  # preset -> millions of parameters, classes
    "thumos14_i3d": (15.990, 20),
    "activitynet_tsp": (12.812, 1),
    "epic_slowfast_verb": (18.594, 97),
    "epic_slowfast_noun": (19.504, 300),
    "hacs_slowfast": (51.860, 200),
    "hacs_i3d": (53.412, 200),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_number_of_parameters(name: str) -> None:
    millions, classes = PUBLISHED[name]
    preset = load_preset(f"tridet/{name}")
    assert preset.nms.vote_weight == "score"
    assert preset.windows.margin == "none"
    with torch.device("meta"):
        model = TriDet(preset.model_config(preset.features.channels or 0, classes, name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=6e-4)


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
    "sgp_windows": 5,
    "sgp_factor": 2.5,
    "mlp_dim": 16,
    "downsample": "avg",
    "conv_init_std": 0.2,
    "abs_pos": True,
    "neck": "fpn",
    "neck_dim": {"neck_dim": 12, "neck": "fpn"},
    "neck_norm": False,
    "regression_ranges": ((0.0, 2.0), (2.0, 8.0), (8.0, 10000.0)),
    "head_dim": 16,
    "head_kernel": 5,
    "head_layers": 2,
    "head_norm": False,
    "trident": False,
    "boundary_kernel": 1,
    "num_bins": 5,
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


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TriDetConfig)])
def test_every_field_changes_the_detector(field: str) -> None:
    value = CHANGES[field]
    changes = value if isinstance(value, dict) else {field: value}
    rest = {name: v for name, v in changes.items() if name == "neck" and field != "neck"}
    assert fingerprint(small, changes) != fingerprint(small, rest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 24, "neck_dim": 24}, "multiple of 16"),
        ({"sgp_windows": (3, 3)}, "One window per level"),
        ({"sgp_windows": 4}, "odd"),
        ({"head_kernel": 4}, "odd"),
        ({"boundary_kernel": 2}, "odd"),
        ({"scale_factor": 3, "window_len": 63}, "even scale factor"),
        ({"regression_ranges": ((0.0, 4.0),)}, "One regression range"),
        ({"window_len": 66}, "multiple of the coarsest stride"),
        ({"num_bins": 0}, "needs bins"),
        ({"input_noise": -1.0}, "not negative"),
        ({"neck_dim": 32}, "identity neck"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**changes)


def test_average_pooling_takes_odd_scale_factors() -> None:
    model = small(scale_factor=3, window_len=63, downsample="avg")
    assert [x.shape[1] for x in model(*window((63,), 63)).logits] == [63, 21, 7]


def test_official_checkpoints_are_unwrapped_and_mixers_renamed() -> None:
    own = small().state_dict()
    official = {"module." + name.replace("mixer.", ""): value for name, value in own.items()}
    averaged = {name: value + 1 for name, value in official.items()}
    checkpoint = {"epoch": 39, "state_dict": official, "state_dict_ema": averaged}
    model = small()
    model.load_state_dict(remap_official_keys(checkpoint))
    assert torch.equal(model.reg_head.scale[0].scale, own["reg_head.scale.0.scale"] + 1)
    model.load_state_dict(remap_official_keys(checkpoint, ema=False))
    assert torch.equal(
        model.backbone.stem[0].mixer.psi.weight, own["backbone.stem.0.mixer.psi.weight"]
    )
    assert "module.backbone.branch.1.convkw.bias" in official
