"""Layers on the feature grid: what padding leaves, and what the norms and tables compute."""

from __future__ import annotations

import math

import pytest
import torch

from tadpipe.detectors.parts.conv import (
    AffineDropPath,
    ChannelNorm,
    MaskedConv1d,
    PointwiseConv1d,
    drop_path,
    sinusoid_table,
)


def test_masked_conv_masks_its_output_and_not_its_input() -> None:
    conv = MaskedConv1d(1, 1, 3)
    torch.nn.init.ones_(conv.conv.weight)
    mask = torch.tensor([[True, True, False, False]])
    out, kept = conv(torch.ones(1, 1, 4), mask)
    assert out.flatten().tolist() == [2.0, 3.0, 0.0, 0.0]  # step 1 sees the padded step 2
    assert torch.equal(kept, mask)


def test_strided_conv_takes_every_second_step_of_the_mask() -> None:
    conv = MaskedConv1d(2, 3, 3, stride=2)
    mask = torch.tensor([[True, True, True, False, False, False]])
    out, kept = conv(torch.randn(1, 2, 6), mask)
    assert kept.tolist() == [[True, True, False]]
    assert out.shape == (1, 3, 3)
    assert (out[..., 2] == 0).all()


def test_channel_norm_equals_means_over_channels_at_each_step() -> None:
    norm = ChannelNorm(5)
    torch.manual_seed(0)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 7)
    wide = x.double()
    centred = wide - wide.mean(1, keepdim=True)
    wanted = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    wanted = wanted * norm.weight.double() + norm.bias.double()
    torch.testing.assert_close(norm(x).double(), wanted, atol=1e-6, rtol=1e-5)


def test_channel_norm_leaves_its_bias_at_padded_steps() -> None:
    norm = ChannelNorm(3)
    torch.nn.init.constant_(norm.bias, 0.7)
    assert (norm(torch.zeros(1, 3, 4)) == 0.7).all()


def test_pointwise_conv_equals_a_convolution_of_kernel_one() -> None:
    torch.manual_seed(0)
    conv = PointwiseConv1d(4, 6)
    x = torch.randn(2, 4, 9)
    wanted = torch.nn.functional.conv1d(x, conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), wanted, atol=1e-6, rtol=1e-5)


def test_sinusoid_table_equals_the_formula() -> None:
    table = sinusoid_table(11, 6)
    for channel in range(6):
        for step in range(11):
            angle = step / 10000 ** (2 * (channel // 2) / 6)
            value = math.cos(angle) if channel % 2 else math.sin(angle)
            assert float(table[channel, step]) == pytest.approx(value / math.sqrt(6), abs=1e-7)


def test_drop_path_scales_always_and_drops_samples_in_training_only() -> None:
    torch.manual_seed(0)
    path = AffineDropPath(2, 0.5)
    x = torch.ones(200, 2, 3)
    torch.testing.assert_close(path.eval()(x), x * 1e-4)
    dropped = path.train()(x)[:, 0, 0] / 1e-4
    assert set(dropped.round().tolist()) == {0.0, 2.0}
    assert 0.35 < float((dropped == 0).float().mean()) < 0.65


def test_without_drop_probability_there_is_no_scale() -> None:
    assert not list(drop_path(4, 0.0).parameters())
    assert [p.shape for p in drop_path(4, 0.1).parameters()] == [(1, 4, 1)]
