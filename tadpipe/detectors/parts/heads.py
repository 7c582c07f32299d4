"""Convolutional heads shared by all levels of a pyramid.

Shapes: B batch, H head width, L levels of T_l steps, K classes. Heads return channel-first maps
[B, channels, T_l]. Source: ActionFormer (Zhang et al., ECCV 2022), Sec. 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.parts.conv import MaskedConv1d, Scale, channel_norm

EMPTY_CLASS_PROB = 1e-6  # start probability of a class that never occurs


class Trunk(NamedTuple):
    """The convolutions and norms of a head, to be registered as its `head` and `norm`."""

    head: nn.ModuleList
    norm: nn.ModuleList


def make_trunk(
    in_channels: int, head_dim: int, *, num_layers: int, kernel_size: int, norm: bool
) -> Trunk:
    """`num_layers` - 1 masked convolutions with norms; the head's last layer is its own."""
    widths = [in_channels] + [head_dim] * (num_layers - 1)
    return Trunk(
        nn.ModuleList(
            MaskedConv1d(width, head_dim, kernel_size, bias=not norm) for width in widths[:-1]
        ),
        nn.ModuleList(channel_norm(head_dim, norm) for _ in widths[:-1]),
    )


def run_trunk(convs: nn.ModuleList, norms: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    """[B, C, T_l], [B, T_l] -> [B, H, T_l]."""
    for conv, norm in zip(convs, norms, strict=True):
        x = F.relu(norm(conv(x, mask)[0]))
    return x


class ClassHead(nn.Module):
    """Class logits, without a background class.

    Args:
        prior_prob: probability every class starts with (focal loss, Lin et al., 2017, Sec. 3.3);
            0 leaves the bias at 0.
        empty_classes: classes without any annotation; they start near probability 0.
    """

    def __init__(
        self,
        in_channels: int,
        head_dim: int,
        num_classes: int,
        *,
        num_layers: int,
        kernel_size: int,
        norm: bool,
        prior_prob: float,
        empty_classes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.head, self.norm = make_trunk(
            in_channels, head_dim, num_layers=num_layers, kernel_size=kernel_size, norm=norm
        )
        width = head_dim if num_layers > 1 else in_channels
        self.cls_head = MaskedConv1d(width, num_classes, kernel_size)
        bias = self.cls_head.conv.bias
        assert bias is not None
        if prior_prob > 0:
            nn.init.constant_(bias, _logit(prior_prob))
        for label in empty_classes:
            nn.init.constant_(bias[label], _logit(EMPTY_CLASS_PROB))

    def forward(self, levels: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l], L x [B, T_l] -> L x [B, K, T_l]."""
        return [
            self.cls_head(run_trunk(self.head, self.norm, x, mask), mask)[0]
            for x, mask in zip(levels, masks, strict=True)
        ]


class RegressionHead(nn.Module):
    """Non-negative maps with a learnable scale per level: offsets, or bins of offsets.

    Args:
        out_channels: 2 for the distances to start and end, in strides of the level.
    """

    def __init__(
        self,
        in_channels: int,
        head_dim: int,
        num_levels: int,
        *,
        num_layers: int,
        kernel_size: int,
        norm: bool,
        out_channels: int = 2,
    ) -> None:
        super().__init__()
        self.head, self.norm = make_trunk(
            in_channels, head_dim, num_layers=num_layers, kernel_size=kernel_size, norm=norm
        )
        self.scale = nn.ModuleList(Scale() for _ in range(num_levels))
        width = head_dim if num_layers > 1 else in_channels
        self.offset_head = MaskedConv1d(width, out_channels, kernel_size)

    def forward(self, levels: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l], L x [B, T_l] -> L x [B, out_channels, T_l], >= 0."""
        return [
            F.relu(scale(self.offset_head(run_trunk(self.head, self.norm, x, mask), mask)[0]))
            for scale, x, mask in zip(self.scale, levels, masks, strict=True)
        ]


class HeadConfig(Protocol):
    """What heads are built from: fields or properties of a detector's configuration."""

    @property
    def num_classes(self) -> int: ...
    @property
    def neck_dim(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def head_layers(self) -> int: ...
    @property
    def head_kernel(self) -> int: ...
    @property
    def head_norm(self) -> bool: ...
    @property
    def prior_prob(self) -> float: ...
    @property
    def empty_classes(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...


def make_class_head(config: HeadConfig, kernel_size: int) -> ClassHead:
    """A head with logits per class by a configuration; its kernel is stated."""
    return ClassHead(
        config.neck_dim,
        config.head_dim,
        config.num_classes,
        num_layers=config.head_layers,
        kernel_size=kernel_size,
        norm=config.head_norm,
        prior_prob=config.prior_prob,
        empty_classes=config.empty_classes,
    )


def make_regression_head(config: HeadConfig, out_channels: int = 2) -> RegressionHead:
    """The regression head of a configuration."""
    return RegressionHead(
        config.neck_dim,
        config.head_dim,
        len(config.strides),
        num_layers=config.head_layers,
        kernel_size=config.head_kernel,
        norm=config.head_norm,
        out_channels=out_channels,
    )


def _logit(probability: float) -> float:
    return -math.log((1 - probability) / probability)
