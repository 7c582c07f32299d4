"""The temporal feature pyramid: embedding, stem and branch, neck, and the points on its levels.

Order: PyramidConfig -> PyramidEncoder (the blocks are passed in) -> IdentityNeck, TopDownNeck ->
make_points. Which lengths a pyramid takes is in `parts.lengths`.
Shapes: B batch, C channels, T grid length, L levels, level l has stride s^l and T_l = T / s^l.
Source: ActionFormer (Zhang et al., ECCV 2022), Sec. 3.2; feature pyramid as in Lin et al., 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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


class PyramidConfig(Protocol):
    """What a pyramid is built from: fields or properties of a detector's configuration."""

    @property
    def in_channels(self) -> int | tuple[int, ...]: ...
    @property
    def window_len(self) -> int: ...
    @property
    def embed_dim(self) -> int | tuple[int, ...]: ...
    @property
    def embed_layers(self) -> int: ...
    @property
    def embed_kernel(self) -> int: ...
    @property
    def embed_norm(self) -> bool: ...
    @property
    def scale_factor(self) -> int: ...
    @property
    def neck(self) -> str: ...
    @property
    def neck_dim(self) -> int: ...
    @property
    def neck_norm(self) -> bool: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def regression_ranges(self) -> tuple[tuple[float, float], ...]: ...


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


def make_encoder(
    config: PyramidConfig,
    stem: Sequence[nn.Module],
    branch: Sequence[nn.Module],
    *,
    positions: bool,
) -> PyramidEncoder:
    """The encoder of a configuration round the blocks of its detector.

    Args:
        positions: add the position table.
    """
    return PyramidEncoder(
        in_channels=config.in_channels,
        embed_dim=config.embed_dim,
        embed_layers=config.embed_layers,
        embed_kernel=config.embed_kernel,
        embed_norm=config.embed_norm,
        position_len=config.window_len if positions else None,
        stem=stem,
        branch=branch,
    )


def make_neck(config: PyramidConfig) -> nn.Module:
    """The neck called "identity", which keeps the encoder's width, or "fpn"."""
    width = config.embed_dim if isinstance(config.embed_dim, int) else sum(config.embed_dim)
    levels = len(config.strides)
    if config.neck == "fpn":
        return TopDownNeck(
            width,
            config.neck_dim,
            levels,
            scale_factor=config.scale_factor,
            norm=config.neck_norm,
        )
    if config.neck != "identity" or width != config.neck_dim:
        raise ConfigError(
            "An identity neck keeps the width of the encoder.",
            f"neck = {config.neck}, encoder width {width}, neck_dim = {config.neck_dim}",
            'Give both the same width, or use neck = "fpn".',
        )
    return IdentityNeck(width, levels, norm=config.neck_norm)


def per_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    """One number per level; a single number stands for all."""
    return (value,) * levels if isinstance(value, int) else value


def points_on(levels: Sequence[Tensor], config: PyramidConfig) -> list[Tensor]:
    """The points of L x [B, C, T_l] by a configuration, see make_points."""
    lengths = [x.shape[2] for x in levels]
    return make_points(lengths, config.strides, config.regression_ranges, levels[0].device)


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
