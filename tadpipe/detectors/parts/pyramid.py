"""The temporal feature pyramid: embedding, stem and branch, neck, and the points on its levels.

Order: PyramidEncoder (the blocks are passed in) -> IdentityNeck, TopDownNeck -> make_points ->
check_length, round_up (which lengths a pyramid takes).
Shapes: B batch, C channels, T grid length, L levels, level l has stride s^l and T_l = T / s^l.
Source: ActionFormer (Zhang et al., ECCV 2022), Sec. 3.2; feature pyramid as in Lin et al., 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.parts.conv import (
    MaskedConv1d,
    channel_norm,
    sinusoid_table,
    zero_conv_biases,
)
from tadpipe.errors import ConfigError


class PyramidEncoder(nn.Module):
    """Features of a window -> L levels, fine to coarse.

    Args:
        in_channels: of the features; a tuple splits them into sources with a projection each.
        embed_dim: width C; with several sources the width of each, C is their sum.
        embed_layers: convolutions with norm and ReLU before the stem.
        position_len: length of the sinusoid position table (the training window), None = no table.
        stem: blocks at full resolution; the last one gives level 0.
        branch: blocks that go down by the scale factor, one per further level.
            A block maps ([B, C, T], mask [B, T]) to the same pair at its own stride.
    """

    def __init__(
        self,
        *,
        in_channels: int | Sequence[int],
        embed_dim: int | Sequence[int],
        embed_layers: int,
        embed_kernel: int,
        embed_norm: bool,
        position_len: int | None,
        stem: Sequence[nn.Module],
        branch: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.sources: tuple[int, ...] = ()
        if isinstance(in_channels, int):
            assert isinstance(embed_dim, int)
            first, width = in_channels, embed_dim
        else:
            assert not isinstance(embed_dim, int)
            self.sources = tuple(in_channels)
            first = width = sum(embed_dim)
            self.proj = nn.ModuleList(
                MaskedConv1d(i, o, 1) for i, o in zip(in_channels, embed_dim, strict=True)
            )
        self.embd = nn.ModuleList(
            MaskedConv1d(first if i == 0 else width, width, embed_kernel, bias=not embed_norm)
            for i in range(embed_layers)
        )
        self.embd_norm = nn.ModuleList(channel_norm(width, embed_norm) for _ in range(embed_layers))
        self.stem = nn.ModuleList(stem)
        self.branch = nn.ModuleList(branch)
        table = None if position_len is None else sinusoid_table(position_len, width)
        self.positions: Tensor | None  # [C, position_len]
        self.register_buffer("positions", table, persistent=False)
        zero_conv_biases(self)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """[B, C_in, T], [B, T] -> L x [B, C, T_l], L x [B, T_l]."""
        if self.sources:
            parts = x.split(self.sources, dim=1)
            x = torch.cat([p(part, mask)[0] for p, part in zip(self.proj, parts, strict=True)], 1)
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            x = F.relu(norm(conv(x, mask)[0]))  # [B, C, T]
        if self.positions is not None:
            # Only the table is masked; padded steps keep what the norm left there.
            table = self._fit_positions(self.positions, x.shape[2])
            x = x + table.to(x.dtype) * mask[:, None]
        for block in self.stem:
            x, mask = block(x, mask)
        levels, masks = [x], [mask]
        for block in self.branch:
            x, mask = block(x, mask)  # [B, C, T_l]
            levels.append(x)
            masks.append(mask)
        return levels, masks

    def _fit_positions(self, table: Tensor, length_grid: int) -> Tensor:
        """The table for T steps: cut when it is long enough, stretched over a longer sequence."""
        if length_grid <= table.shape[1]:
            return table[:, :length_grid]
        if self.training:
            raise ConfigError(
                "The training window is longer than the position table.",
                f"{length_grid} grid steps, window_len = {table.shape[1]}",
            )
        return F.interpolate(table[None], length_grid, mode="linear", align_corners=False)[0]


class IdentityNeck(nn.Module):
    """Levels pass as they are, each through its own norm."""

    def __init__(self, channels: int, num_levels: int, *, norm: bool) -> None:
        super().__init__()
        self.fpn_norms = nn.ModuleList(channel_norm(channels, norm) for _ in range(num_levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l] -> L x [B, C, T_l]."""
        return [norm(x) for norm, x in zip(self.fpn_norms, levels, strict=True)]


class TopDownNeck(nn.Module):
    """Feature pyramid network: each level gets what the coarser ones know."""

    def __init__(
        self, in_channels: int, channels: int, num_levels: int, *, scale_factor: int, norm: bool
    ) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.lateral_convs = nn.ModuleList(
            MaskedConv1d(in_channels, channels, 1, bias=not norm) for _ in range(num_levels)
        )
        self.fpn_convs = nn.ModuleList(
            MaskedConv1d(channels, channels, 3, groups=channels, bias=not norm)
            for _ in range(num_levels)
        )
        self.fpn_norms = nn.ModuleList(channel_norm(channels, norm) for _ in range(num_levels))

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """L x [B, C_in, T_l] -> L x [B, C, T_l]."""
        merged = [
            conv(x, mask)[0]
            for conv, x, mask in zip(self.lateral_convs, levels, masks, strict=True)
        ]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + merged[i].repeat_interleave(self.scale_factor, dim=2)
        return [
            norm(conv(x, mask)[0])
            for conv, norm, x, mask in zip(
                self.fpn_convs, self.fpn_norms, merged, masks, strict=True
            )
        ]


def make_neck(
    name: str, in_channels: int, channels: int, num_levels: int, *, scale_factor: int, norm: bool
) -> nn.Module:
    """The neck called "identity" or "fpn"; "identity" needs in_channels == channels."""
    if name == "fpn":
        return TopDownNeck(in_channels, channels, num_levels, scale_factor=scale_factor, norm=norm)
    if name != "identity" or in_channels != channels:
        raise ConfigError(
            "An identity neck keeps the width of the encoder.",
            f"neck = {name}, encoder width {in_channels}, neck_dim = {channels}",
            'Give both the same width, or use neck = "fpn".',
        )
    return IdentityNeck(channels, num_levels, norm=norm)


def make_points(
    lengths: Sequence[int],
    strides: Sequence[int],
    ranges: Sequence[tuple[float, float]],
    device: torch.device | None = None,
) -> list[Tensor]:
    """Points of all levels, L x [T_l, 4]: position, regression range low and high, level stride.

    A point sits at index * stride, without a half stride.
    """
    levels = []
    for length, stride, (low, high) in zip(lengths, strides, ranges, strict=True):
        points = torch.empty(length, 4, device=device)
        points[:, 0] = torch.arange(length, device=device) * stride
        points[:, 1:] = torch.tensor((low, high, stride), device=device)
        levels.append(points)
    return levels


def check_length(length_grid: int, *, coarsest_stride: int, longest_grid: int) -> None:
    """Refuse a sequence that the pyramid cannot halve to its top or has no points for.

    Args:
        longest_grid: window_len * max_buffer_len_factor.
    Raises:
        ConfigError: too long, or no multiple of the coarsest stride.
    """
    if length_grid > longest_grid:
        raise ConfigError(
            "The sequence is longer than the detector's points reach.",
            f"{length_grid} grid steps, at most window_len * max_buffer_len_factor = "
            f"{longest_grid}",
            "Cut it into windows, or raise max_buffer_len_factor.",
        )
    if length_grid % coarsest_stride:
        raise ConfigError(
            "The sequence is not a multiple of the coarsest stride.",
            f"{length_grid} grid steps, stride {coarsest_stride}",
            "Pad it to detector.padded_len(length).",
        )


def round_up(length_grid: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-length_grid // step) * step
