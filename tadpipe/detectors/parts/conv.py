"""Layers on the feature grid: convolutions with and without a mask, pooling, norms, scales.

Shapes: B batch, C channels, T grid length; features [B, C, T], mask [B, T] bool, true = real step.
In memory features are [B, T, C] from the first norm on, and [B, C, T] a view: norms and products
run over C. torch's layers with a height of 1 (2d) keep that layout, its 1d ones copy it back.
Padded steps are not kept at zero: a norm leaves its bias there and the next convolution sees it.
Attribute names are those of the official releases, so that their checkpoints load by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5
DROP_PATH_INIT = 1e-4  # start of the learnable scale of a residual branch


def downsample_mask(mask: Tensor, stride: int) -> Tensor:
    """The mask on a coarser grid, every stride-th step: [B, T] -> [B, T / stride]."""
    return mask[:, ::stride]


class GridConv1d(nn.Conv1d):
    """A convolution that leaves features in the memory layout they come in.

    Args:
        kernel_size: odd; the input is padded with kernel_size // 2 zeros at both ends.
        stride: must divide T.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C', T / stride]."""
        stride, padding = (1, self.stride[0]), (0, self.kernel_size[0] // 2)
        weight = self.weight[:, :, None]
        out = F.conv2d(x[:, :, None], weight, self.bias, stride, padding, groups=self.groups)
        return out[:, :, 0]


class MaskedConv1d(nn.Module):
    """A convolution whose output is zero at padded steps; its input is taken as it is.

    The arguments are those of GridConv1d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = GridConv1d(
            in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias
        )
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T], [B, T] -> [B, C', T / stride], [B, T / stride]."""
        mask = downsample_mask(mask, self.stride)
        return self.conv(x) * mask[:, None], mask


class PointwiseConv1d(nn.Conv1d):
    """A convolution with kernel 1, computed as a matrix product on the transposed view.

    After a channel norm the view is contiguous, so nothing is copied; on the CPU torch's own
    kernel-1 convolution spends more time on copies than on products.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C', T]."""
        return F.linear(x.transpose(1, 2), self.weight[:, :, 0], self.bias).transpose(1, 2)


class MaxPool(nn.Module):
    """The maximum of the stride + 1 steps around every stride-th one; padding never wins."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T / stride]."""
        size, step, margin = (1, self.stride + 1), (1, self.stride), (0, (self.stride + 1) // 2)
        return F.max_pool2d(x[:, :, None], size, step, margin)[:, :, 0]


class MeanPool(nn.Module):
    """The mean of every `stride` steps."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T / stride]."""
        return F.avg_pool2d(x[:, :, None], (1, self.stride), (1, self.stride))[:, :, 0]


class ChannelNorm(nn.Module):
    """Layer norm over C at each step, padded ones too; parameters [1, C, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        # On the transposed view this is several times faster than means over the middle axis.
        normed = F.layer_norm(
            x.transpose(1, 2), (x.shape[1],), self.weight.flatten(), self.bias.flatten(), NORM_EPS
        )
        return normed.transpose(1, 2)


class GridGroupNorm(nn.GroupNorm):
    """Group norm over C / groups and T, padded steps too, in the memory layout it finds."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        out = F.group_norm(x[:, :, None], self.num_groups, self.weight, self.bias, self.eps)
        return out[:, :, 0]


def channel_norm(channels: int, present: bool) -> nn.Module:
    """A channel norm, or nothing where a recipe goes without."""
    return ChannelNorm(channels) if present else nn.Identity()


class Scale(nn.Module):
    """One learnable factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class AffineDropPath(nn.Module):
    """Stochastic depth per sample after a learnable scale per channel; the scale acts always."""

    def __init__(self, channels: int, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale = nn.Parameter(torch.full((1, channels, 1), DROP_PATH_INIT))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        x = self.scale * x
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) < keep  # [B, 1, 1]
        return x * (kept / keep)


def drop_path(channels: int, drop_prob: float) -> nn.Module:
    """Scale and stochastic depth; without drop probability there is no scale either."""
    return AffineDropPath(channels, drop_prob) if drop_prob > 0 else nn.Identity()


def with_noise(feats: Tensor, deviation: float) -> Tensor:
    """Features of a training step with Gaussian noise, padded steps too; at 0 as they are."""
    return feats + deviation * torch.randn_like(feats) if deviation > 0 else feats


def sinusoid_table(length_grid: int, channels: int) -> Tensor:
    """Position table [C, T]: sines in even channels, cosines in odd ones, over sqrt(C)."""
    position = torch.arange(length_grid, dtype=torch.float64)[None]  # [1, T]
    channel = torch.arange(channels, dtype=torch.float64)[:, None]  # [C, 1]
    even = 2 * torch.div(channel, 2, rounding_mode="floor")
    angle = position / 10000 ** (even / channels)  # [C, T]
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return table.float() / channels**0.5


def zero_conv_biases(module: nn.Module) -> None:
    """Start all convolutions inside `module` without bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
