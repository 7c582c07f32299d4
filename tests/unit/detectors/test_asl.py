"""ASL: both attentions, the Gaussians, the weighted losses, the contrast, padding, every option."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from tadpipe.detectors.asl import Asl, AslConfig, TimeChannelAttention, channel_attention
from tadpipe.detectors.asl_losses import (
    REPORT_EVERY,
    AslCriterion,
    AslLossConfig,
    SensitivityEvaluator,
    contrast,
    index_position,
    match,
    sensitive_ranges,
    time_position,
)
from tadpipe.detectors.parts.losses import sigmoid_focal_loss
from tadpipe.detectors.protocol import AnchorFreeOutputs, Targets
from tadpipe.errors import ConfigError
from tadpipe.training.optim import decay_names
from tests.unit.detectors.small import ASL as SMALL

TARGETS = Targets(
    [torch.tensor([[2.0, 5.0], [10.0, 26.5], [12.0, 18.0]]), torch.tensor([[4.0, 11.0]])],
    [torch.tensor([0, 2, 1]), torch.tensor([1])],
)
NOTHING = Targets([torch.zeros(0, 2)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)


def small(**changes: Any) -> Asl:
    torch.manual_seed(0)
    return Asl(dataclasses.replace(SMALL, **changes))


def window(lengths: tuple[int, ...], padded: int, channels: int = 6) -> tuple[Tensor, Tensor]:
    """Random features, the same at real steps whatever the padding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(lengths), channels, 512, generator=generator)[..., :padded]
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    return x * mask[:, None], mask


def loosen(model: Asl) -> Asl:
    """Let every norm bias, residual scale and evaluator act as it would after training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drop_path" in name:
                parameter.fill_(0.5)
            elif parameter.dim() != 3 or "norm" in name or "ln" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def losses_of(model: Asl, targets: Targets = TARGETS) -> dict[str, float]:
    model.eval()
    terms = model.loss(model(*window((64, 30), 64)), targets)
    return {name: float(loss.detach()) for name, loss in terms.items()}


# --- attention ---------------------------------------------------------------------------------


def attention(**changes: Any) -> TimeChannelAttention:
    torch.manual_seed(0)
    options = dict(
        window=-1,
        stride=1,
        convs=True,
        channel_share=0.2,
        channel_heads=1,
        dropout=0.0,
    )
    return TimeChannelAttention(8, 2, **(options | changes)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("heads", [1, 2])
def test_channel_attention_is_attention_over_transposed_features(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 12, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(12)[None] < 9
    q, k, v = (x * mask[..., None] for x in (q, k, v))
    width = 6 // heads
    groups = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        weights = (q[0, :, part].T @ k[0, :, part] / 9**0.5).softmax(-1)
        groups.append((weights @ v[0, :, part].T).T)
    torch.testing.assert_close(channel_attention(q, k, v, mask, heads)[0], torch.cat(groups, 1))


@pytest.mark.parametrize("changes", [{}, {"window": 5}, {"convs": False}, {"stride": 2}])
def test_both_attentions_leave_padded_steps_out(changes: dict[str, Any]) -> None:
    layer = attention(**changes)
    x, mask = window((20,), 40, channels=8)
    other = x.clone()
    other[..., 24:] = 9.0  # beyond the reach of the depth-wise kernels
    ours, strided = layer(x, mask)
    torch.testing.assert_close(ours, layer(other, mask)[0])
    assert (ours.masked_select(~strided[:, None]) == 0).all()
    torch.testing.assert_close(ours[..., :5], layer(x[..., :32], mask[:, :32])[0][..., :5])


def test_share_mixes_the_two_attentions() -> None:
    x, mask = window((16,), 16, channels=8)
    temporal, channel = attention().branches(x, mask)
    for share in (0.0, 0.2, 1.0):
        layer = attention(channel_share=share)
        mixed = (1 - share) * temporal + share * channel
        torch.testing.assert_close(layer(x, mask)[0], layer.proj(mixed.transpose(1, 2)))


# --- class-level sensitivity -------------------------------------------------------------------


def evaluator(**changes: Any) -> SensitivityEvaluator:
    torch.manual_seed(0)
    return SensitivityEvaluator(8, 3, AslLossConfig(**changes))


def test_gaussians_start_at_centre_start_and_end() -> None:
    place = torch.tensor([-0.5, 0.0, 0.5])
    p = evaluator().class_sensitivity(place, torch.zeros(3, dtype=torch.int64))
    assert [int(x.argmax()) for x in (p.sot, p.cls, p.eot)] == [0, 1, 2]
    assert float(p.cls[1].detach()) == 1.0
    torch.testing.assert_close(p.loc, p.sot + p.eot)


def test_literal_eq4_divides_by_sigma_for_boundaries_only() -> None:
    squared, literal = evaluator(), evaluator(eq4_literal=True)
    place, labels = torch.tensor([0.3]), torch.tensor([1])
    for model in (squared, literal):
        for name in ("cls", "sot", "eot"):
            model.get_parameter(f"sigma_{name}").data.fill_(0.5)
    ours, printed = (m.class_sensitivity(place, labels) for m in (squared, literal))
    torch.testing.assert_close(ours.cls, printed.cls)
    torch.testing.assert_close(printed.sot, torch.exp(torch.tensor([-(0.8**2) / (2 * 0.5)])))
    torch.testing.assert_close(ours.sot, torch.exp(torch.tensor([-(0.8**2) / (2 * 0.25)])))


def test_sigma_is_projected_so_that_it_keeps_a_gradient() -> None:
    model = small()
    model.ase.get_parameter("sigma_cls").data[:] = torch.tensor([9.0, 0.001, 1.0])
    model.loss(model(*window((64, 30), 64)), TARGETS)
    assert model.ase.get_parameter("sigma_cls").tolist() == pytest.approx([5.0, 0.05, 1.0])
    loss = model.loss(model(*window((64, 30), 64)), TARGETS)["cls"]
    loss.backward()
    gradient = model.ase.get_parameter("sigma_cls").grad
    assert gradient is not None
    assert float(gradient[0]) != 0.0


def test_gaussians_do_not_decay() -> None:
    decay, rest = decay_names(small())
    assert {f"ase.{kind}_{part}" for kind in ("mu", "sigma") for part in ("cls", "sot", "eot")} <= (
        rest
    )
    assert "ase.eval_cls.conv.weight" in decay


def test_positions_run_from_start_to_end() -> None:
    segments = torch.tensor([[10.0, 20.0]])
    assert time_position(torch.tensor([10.0, 15.0, 20.0]), segments).tolist() == [-0.5, 0.0, 0.5]
    assert index_position(torch.arange(3), torch.tensor(3)).tolist() == [-0.5, 0.0, 0.5]
    assert index_position(torch.arange(1), torch.tensor(1)).tolist() == [0.0]


# --- matching and weighted losses --------------------------------------------------------------


def plain_outputs(steps: int = 32, classes: int = 3) -> tuple[AnchorFreeOutputs, list[Tensor]]:
    """Two levels of strides 1 and 2, two videos, the second with 20 real steps."""
    generator = torch.Generator().manual_seed(3)
    masks, points, logits, offsets, features = [], [], [], [], []
    for stride in (1, 2):
        count = steps // stride
        masks.append(torch.arange(count) < torch.tensor([count, 20 // stride])[:, None])
        level = torch.zeros(count, 4)
        level[:, 0] = torch.arange(count) * stride
        level[:, 1:] = torch.tensor([(0.0, 6.0), (6.0, 1e4)][stride - 1] + (float(stride),))
        points.append(level)
        logits.append(torch.randn(2, count, classes, generator=generator))
        offsets.append(torch.rand(2, count, 1, 2, generator=generator) * 5)
        features.append(torch.randn(2, 8, count, generator=generator))
    return AnchorFreeOutputs(masks, points, logits, offsets), features


def criterion(**changes: Any) -> AslCriterion:
    config = AslLossConfig(**changes)
    torch.manual_seed(0)
    return AslCriterion(SensitivityEvaluator(8, 3, config).eval(), config)


def test_a_point_has_the_class_of_the_shortest_action_only() -> None:
    outputs, _ = plain_outputs()
    matched = match(outputs, TARGETS, AslLossConfig())
    at = {(int(b), int(n)): int(label) for b, n, label in zip(*matched.pairs, strict=True)}
    assert at[0, 14] == 1  # inside both the long and the short action
    assert at[0, 32 + 13] == 2  # the coarse level: too long for the short one
    assert (1, 25) not in at  # padded
    assert matched.position.abs().max() <= 0.5


@pytest.mark.parametrize("start", [-3.0, 9.0])
def test_index_positions_count_the_real_points_of_the_level(start: float) -> None:
    outputs, _ = plain_outputs()
    targets = Targets([torch.tensor([[start, 15.5]]), *NOTHING.segments[:1]],
                      [torch.tensor([0]), *NOTHING.labels[:1]])  # fmt: skip
    config = AslLossConfig(position="index")
    matched = match(outputs, targets, config)
    ranges = sensitive_ranges(
        SensitivityEvaluator(8, 3, config),
        outputs.points[0],
        outputs.masks[0][0],
        *(values[0] for values in targets),
        torch.tensor([0]),
    )
    inside = torch.nonzero(ranges.inside[0]).squeeze(1)
    fine = matched.pairs.point < 32
    expected = index_position(torch.arange(len(inside)), torch.tensor(len(inside)))
    by_frame = dict(zip(inside.tolist(), expected.tolist(), strict=True))
    for point, place in zip(matched.pairs.point[fine], matched.position[fine], strict=True):
        assert float(place) == pytest.approx(by_frame[int(point)])
    assert expected[0] == -0.5
    assert expected[-1] == 0.5


def test_without_sensitivity_the_class_loss_is_the_plain_focal_loss() -> None:
    outputs, features = plain_outputs()
    plain = criterion(class_level="off", instance_level=False, contrast_weight=0.0)
    terms = plain(outputs, features, TARGETS)
    matched = match(outputs, TARGETS, plain.config)
    logits, mask = torch.cat(outputs.logits, 1), torch.cat(outputs.masks, 1)
    wanted = torch.zeros_like(logits)
    wanted[matched.pairs] = 1.0
    expected = sigmoid_focal_loss(logits, wanted)[mask].sum() / len(matched.instance)
    torch.testing.assert_close(terms["cls"], expected)
    assert terms.keys() == {"cls", "reg"}


def test_weights_are_positive_and_within_their_bounds() -> None:
    outputs, features = plain_outputs()
    ours = criterion()
    s = ours.sensitivity(outputs, features, match(outputs, TARGETS, ours.config))
    assert ((s.h_cls > 0) & (s.h_cls < 2)).all()
    assert ((s.h_loc > 0) & (s.h_loc < 3)).all()


def test_swapping_the_videos_changes_no_loss() -> None:
    outputs, features = plain_outputs()
    masks, points, logits, offsets = outputs
    swapped = AnchorFreeOutputs(
        [x.flip(0) for x in masks],
        points,
        [x.flip(0) for x in logits],
        [x.flip(0) for x in offsets],
    )
    targets = Targets(TARGETS.segments[::-1], TARGETS.labels[::-1])
    for level in ("finest", "assigned"):
        ours = criterion(contrast_level=level)
        first = ours(outputs, features, TARGETS)
        second = ours(swapped, [x.flip(0) for x in features], targets)
        for name, loss in first.items():
            torch.testing.assert_close(second[name], loss)


@pytest.mark.parametrize("loss_norm", ["count", "ema"])
def test_without_any_action_only_the_class_loss_is_left(loss_norm: str) -> None:
    model = small(loss_norm=loss_norm).train()
    terms = model.loss(model(*window((64, 30), 64)), NOTHING)
    assert float(terms["cls"].detach()) > 0
    assert [float(terms[name].detach()) for name in ("reg", "quality", "contrast")] == [0, 0, 0]
    torch.stack(list(terms.values())).sum().backward()
    gradient = model.reg_head.offset_head.conv.weight.grad
    assert gradient is not None
    assert (gradient == 0).all()


def test_padded_steps_change_no_loss() -> None:
    model = loosen(small()).eval()
    short, long = (model.loss(model(*window((30, 24), n)), TARGETS) for n in (48, 64))
    for name, loss in short.items():
        torch.testing.assert_close(long[name], loss, atol=1e-5, rtol=1e-4)


def test_evaluators_learn_from_quality_only_unless_asked() -> None:
    for asked in (False, True):
        model = small(q_grad_in_h=asked).eval()
        model.loss(model(*window((64, 30), 64)), TARGETS)["cls"].backward()
        assert (model.ase.eval_cls.fc.weight.grad is not None) == asked


def test_detached_p_learns_from_the_contrast_only() -> None:
    model = small(detach_p_in_weights=True).eval()
    terms = model.loss(model(*window((64, 30), 64)), TARGETS)
    parameter = model.ase.get_parameter("mu_sot")
    (terms["cls"] + terms["reg"]).backward(retain_graph=True)
    assert parameter.grad is None
    terms["contrast"].backward()
    assert parameter.grad is not None


def test_detached_input_keeps_the_evaluators_off_the_features() -> None:
    for detached in (False, True):
        model = small(detach_evaluator_input=detached).eval()
        model.loss(model(*window((64, 30), 64)), TARGETS)["quality"].backward()
        assert (model.encoder.embd[0].conv.weight.grad is None) == detached


def test_mean_sensitivity_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    outputs, features = plain_outputs(steps=8)
    ours = criterion(contrast_weight=0.0)
    ours.evaluator.train()
    targets = Targets([torch.tensor([[1.0, 5.0]])] * 2, [torch.tensor([0])] * 2)
    with caplog.at_level(logging.INFO):
        for _ in range(REPORT_EVERY):
            ours(outputs, features, targets)
    assert [record.getMessage()[:16] for record in caplog.records] == ["mean sensitivity"]


# --- contrast ----------------------------------------------------------------------------------


def test_one_action_has_its_sibling_as_positive() -> None:
    outputs, features = plain_outputs()
    one = Targets([TARGETS.segments[1], TARGETS.segments[1][:0]],
                  [TARGETS.labels[1], TARGETS.labels[1][:0]])  # fmt: skip
    loss = criterion().contrastive_loss(outputs, features, one)
    assert torch.isfinite(loss)
    assert float(loss.detach()) > 0


def test_contrast_is_the_printed_ratio() -> None:
    outputs, features = plain_outputs()
    ours = criterion()
    vectors = ours.instance_vectors(outputs, features, TARGETS)
    every = torch.nn.functional.normalize(torch.cat((vectors.actions, vectors.background)), dim=1)
    sim = (every @ every.T / 0.1).exp()
    for i, per_anchor in enumerate(contrast(vectors, 0.1)):
        same = [j for j, c in enumerate(vectors.labels) if c == vectors.labels[i] and j != i]
        rest = [j for j in range(len(every)) if j != i]
        torch.testing.assert_close(per_anchor, -(sim[i, same].sum() / sim[i, rest].sum()).log())


def ranges(labels: Tensor, segments: Tensor, **changes: Any) -> Any:
    points = plain_outputs()[0].points[0]
    config = AslLossConfig(**changes)
    mask = torch.arange(32) < 24
    model = SensitivityEvaluator(8, 3, config)
    return sensitive_ranges(model, points, mask, segments, labels, torch.arange(len(labels)))


def frames(row: Tensor) -> list[int]:
    return torch.nonzero(row).squeeze(1).tolist()


def test_ranges_lie_inside_the_action_and_the_background_beside_it() -> None:
    found = ranges(torch.tensor([0]), torch.tensor([[4.5, 14.5]]))  # frames 5 to 14
    assert int(found.reach[0]) == 2
    assert found.peaks[0, 1:].tolist() == [5, 14]
    assert frames(found.loc[0]) == [5, 6, 7, 12, 13, 14]
    assert frames(found.background[0]) == [3, 4, 15, 16]


def test_background_ends_with_the_video_and_actions_without_frames_are_left_out() -> None:
    segments = torch.tensor([[-1.0, 24.0], [26.0, 30.0], [3.2, 3.8]])
    found = ranges(torch.tensor([0, 1, 2]), segments)
    assert found.rows.tolist() == [0]
    assert not found.background.any()


def test_background_can_leave_other_actions_out() -> None:
    segments = torch.tensor([[4.5, 14.5], [14.8, 20.0]])
    labels = torch.tensor([0, 1])
    assert frames(ranges(labels, segments).background[0]) == [3, 4, 15, 16]
    assert frames(ranges(labels, segments, bg_exclude_actions=True).background[0]) == [3, 4]


def test_without_gaussians_the_ranges_lie_around_the_centre() -> None:
    found = ranges(torch.tensor([0]), torch.tensor([[4.5, 14.5]]), class_level="off")
    assert frames(found.cls[0]) == frames(found.loc[0]) == [7, 8, 9, 10, 11]


# --- detector ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 29, 30, 41])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_windows": -1, "abs_pos": True, "channel_heads": 2},
        {"neck": "fpn", "head_kernel": 5, "attention_convs": False},
    ],
)
def test_shorter_padding_gives_the_outputs_of_the_full_window(
    changes: dict[str, Any], length: int
) -> None:
    model = loosen(small(**changes)).eval()
    short = model.padded_len(length)
    cut, full = (model(*window((length,), padded)).predictions for padded in (short, 64))
    for level, mask in enumerate(cut.masks):
        real = mask[0].nonzero().flatten()
        for ours, theirs in ((cut.logits, full.logits), (cut.offsets, full.offsets)):
            torch.testing.assert_close(
                ours[level][:, real], theirs[level][:, real], atol=1e-5, rtol=1e-4
            )
    if length < 20:
        assert short < 64


@pytest.mark.parametrize(
    ("length", "padded"), [(10, 16), (61, 64), (64, 64), (65, 72), (382, 384), (384, 384)]
)
def test_videos_are_padded_to_a_tail_of_one_coarse_kernel(length: int, padded: int) -> None:
    assert small().padded_len(length) == padded


def test_weights_without_the_evaluator_load_for_inference() -> None:
    first, second = loosen(small()).eval(), small().eval()
    state = {k: v for k, v in first.state_dict().items() if not k.startswith("ase.")}
    second.load_state_dict(state)
    x = window((40,), 64)
    torch.testing.assert_close(second(*x).predictions.logits, first(*x).predictions.logits)
    some = {k: v for k, v in first.state_dict().items() if k != "ase.mu_cls"}
    with pytest.raises(RuntimeError, match=r"ase\.mu_cls"):
        second.load_state_dict(some)


def test_state_dict_has_the_stated_keys() -> None:
    shapes = {name: tuple(value.shape) for name, value in small().state_dict().items()}
    assert shapes["ase.sigma_eot"] == (3,)
    assert shapes["ase.eval_loc.conv.weight"] == (8, 8, 3)
    assert shapes["ase.eval_cls.fc.weight"] == (1, 8)
    for kind in ("q_t", "k_t", "v_t", "q_d", "k_d", "v_d"):
        assert shapes[f"encoder.branch.1.attn.{kind}.weight"] == (8, 8)


CHANGES: dict[str, Any] = {
    "in_channels": 7,
    "num_classes": 4,
    "window_len": 128,
    "embed_layers": 1,
    "stem_layers": 1,
    "branch_layers": {"branch_layers": 3, "regression_ranges": ((0.0, 4.0),) * 4},
    "scale_factor": 4,
    "embed_dim": {"embed_dim": 16, "neck": "fpn"},
    "embed_kernel": 5,
    "embed_norm": False,
    "num_heads": 4,
    "attention_windows": 9,
    "attention_convs": False,
    "channel_share": 0.4,
    "channel_heads": 2,
    "abs_pos": True,
    "neck": "fpn",
    "neck_dim": {"neck_dim": 12, "neck": "fpn"},
    "neck_norm": False,
    "regression_ranges": ((0.0, 2.0), (2.0, 8.0), (8.0, 10000.0)),
    "head_dim": 16,
    "head_kernel": 5,
    "head_layers": 2,
    "head_norm": False,
    "max_buffer_len_factor": 1.0,
    "prior_prob": 0.1,
    "empty_classes": (1,),
    "dropout": 0.5,
    "drop_path": 0.0,
    "centre_radius": 1.5,
    "loss_weight": 2.0,
    "label_smoothing": 0.1,
    "focal_alpha": 0.5,
    "focal_gamma": 1.0,
    "loss_norm": "ema",
    "init_loss_norm": {"init_loss_norm": 50.0, "loss_norm": "ema"},
    "class_level": "fixed",
    "position": "index",
    "eq4_literal": True,
    "sigma_min": 0.7,
    "sigma_max": 1.5,
    "detach_p_in_weights": True,
    "instance_level": False,
    "evaluator_kernel": 5,
    "evaluator_dim": 4,
    "detach_evaluator_input": True,
    "q_grad_in_h": True,
    "quality_weight": 2.0,
    "contrast_weight": 0.0,
    "contrast_ratio": 0.4,
    "contrast_rounding": "up",
    "contrast_temperature": 0.2,
    "contrast_level": "assigned",
    "bg_exclude_actions": True,
}


def fingerprint(changes: dict[str, Any]) -> dict[str, Any]:
    """What a user can see of a configuration."""
    model = small(**changes)
    if model.config.class_level != "off":  # sigmas away from 1, where their options act
        model.ase.get_parameter("sigma_sot").data.copy_(
            torch.linspace(0.5, 2.0, model.config.num_classes)
        )
    x, mask = window((20, 64), 64, channels=model.config.in_channels)
    targets = Targets(
        [torch.tensor([[2.0, 5.0], [6.5, 17.2]]), torch.tensor([[4.0, 11.0], [11.2, 30.0]])],
        [torch.tensor([0, 2]), torch.tensor([1, 0])],
    )
    outputs = model.eval()(x, mask)
    model.train()
    torch.manual_seed(5)
    losses = model.loss(model(x, mask), targets)
    torch.stack(list(losses.values())).sum().backward()
    try:
        model(*window((128,), 128, channels=model.config.in_channels))
        longest = 128
    except ConfigError:
        longest = 64
    return {
        "shapes": {name: tuple(value.shape) for name, value in model.state_dict().items()},
        "logits": [x.tolist() for x in outputs.predictions.logits],
        "losses": {name: float(loss.detach()) for name, loss in losses.items()},
        "gradients": {
            name: None if p.grad is None else float(p.grad.norm())
            for name, p in model.named_parameters()
        },
        "padded": [model.padded_len(length) for length in (10, 61, 65)],
        "longest": longest,
        "loss_state": model.loss_state(),
    }


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(AslConfig)])
def test_every_field_changes_the_detector(field: str) -> None:
    value = CHANGES[field]
    changes = value if isinstance(value, dict) else {field: value}
    rest = {name: v for name, v in changes.items() if name != field}
    if field == "branch_layers":
        rest = {}
    assert fingerprint(changes) != fingerprint(rest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 3}, "divide the width"),
        ({"channel_heads": 3}, "divide the width"),
        ({"channel_share": 1.5}, "share of the channel"),
        ({"attention_windows": (5, 5)}, "One attention window per level"),
        ({"scale_factor": 3, "window_len": 63}, "even scale factor"),
        ({"regression_ranges": ((0.0, 4.0),)}, "One regression range"),
        ({"head_kernel": 4}, "Kernels are odd"),
        ({"evaluator_kernel": 2}, "Kernels are odd"),
        ({"window_len": 66}, "multiple of the coarsest stride"),
        ({"sigma_min": 2.0}, "range of sigma"),
        ({"contrast_temperature": 0.0}, "positive temperature"),
        ({"neck_dim": 16}, "identity neck"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**changes)


def test_loss_state_survives_a_round_trip() -> None:
    first, second = small(loss_norm="ema"), small(loss_norm="ema")
    losses_of(first)
    second.load_loss_state(first.loss_state())
    assert second.loss_state() == first.loss_state() != small(loss_norm="ema").loss_state()
    assert small().loss_state() == {}
    small().load_loss_state({})
