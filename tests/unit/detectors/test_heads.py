"""Heads: their start, their range, and what depth and width mean."""

from __future__ import annotations

import pytest
import torch

from tadpipe.detectors.parts.heads import ClassHead, RegressionHead

LEVELS = [torch.randn(2, 6, 8), torch.randn(2, 6, 4)]
MASKS = [torch.ones(2, 8, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)]


def class_head(**changes: object) -> ClassHead:
    settings: dict[str, object] = {"num_layers": 3, "kernel_size": 3, "norm": True}
    return ClassHead(6, 10, 4, **{"prior_prob": 0.01, **settings, **changes})  # type: ignore[arg-type]


def test_classes_start_at_their_prior_and_empty_ones_near_zero() -> None:
    bias = class_head(empty_classes=(2,)).cls_head.conv.bias
    assert bias is not None
    assert bias.detach().sigmoid().tolist() == pytest.approx([0.01, 0.01, 1e-6, 0.01], rel=1e-4)


def test_without_a_prior_the_bias_starts_at_zero() -> None:
    bias = class_head(prior_prob=0.0).cls_head.conv.bias
    assert bias is not None
    assert (bias == 0).all()


def test_one_layer_reads_the_neck_directly() -> None:
    head = class_head(num_layers=1)
    assert [name for name, _ in head.named_parameters()] == [
        "cls_head.conv.weight",
        "cls_head.conv.bias",
    ]
    assert [x.shape for x in head(LEVELS, MASKS)] == [(2, 4, 8), (2, 4, 4)]


def test_trunk_has_a_bias_only_where_no_norm_follows() -> None:
    with_norm, without = class_head(), class_head(norm=False)
    assert with_norm.head[0].conv.bias is None
    assert without.head[0].conv.bias is not None
    assert not list(without.norm.parameters())


def test_offsets_are_never_negative_and_scaled_per_level() -> None:
    head = RegressionHead(6, 10, 2, num_layers=2, kernel_size=3, norm=True)
    before = head(LEVELS, MASKS)
    head.scale[1].scale.data.fill_(3.0)
    after = head(LEVELS, MASKS)
    assert all((x >= 0).all() for x in before)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], 3 * before[1])


def test_regression_head_can_give_bins() -> None:
    head = RegressionHead(6, 10, 2, num_layers=2, kernel_size=3, norm=True, out_channels=34)
    assert head(LEVELS, MASKS)[0].shape == (2, 34, 8)
