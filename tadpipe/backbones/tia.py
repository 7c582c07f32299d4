"""Adapters: small trained modules in or beside a frozen backbone (AdaTAD, Liu et al., CVPR 2024).

Order: AdapterConfig -> AdapterSite, Adaptable (what a backbone offers) ->
TemporalInformativeAdapter (Eq. 2) -> PlainAdapter (Eq. 1) -> Ladder (Eq. 3-4) -> add_adapters ->
adapter_parameters.
Nothing here knows a transformer: a backbone names its blocks and brings what leaves them into the
form [R, T, P, C], and a block that holds an adapter applies it to its own output.
Shapes: R windows, T time steps of a whole window, P positions of one time step, C channels of the
block, H hidden channels = int(ratio * C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tadpipe.backbones.protocol import Backbone
from tadpipe.errors import ConfigError

KINDS = ("tia", "ladder", "plain", "longlora", "none")


@dataclass(frozen=True)
class AdapterConfig:
    """Which adapter, how wide, and in which blocks."""

    kind: Literal["tia", "ladder", "plain", "longlora", "none"] = "tia"
    ratio: float = 0.25  # hidden channels / channels of the block (1 / gamma in the paper)
    kernel: int = 3  # time steps that the depth-wise convolution spans, odd
    dilation: int = 1  # time steps between its taps
    blocks: tuple[int, ...] = ()  # indices; () = all of them, for a ladder the last half
    stages: tuple[int, ...] = ()  # instead of blocks: stages from 1, in a backbone that has some
    pathways: tuple[str, ...] = ()  # instead of blocks: "slow", "fast", in a backbone with both
    residual: bool = True  # keep z beside its convolved form; False is the paper's ablation
    checkpoint: bool = False  # recompute each block in the backward pass, store its input only

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"Unknown adapter '{self.kind}'.", todo=f"Known: {', '.join(KINDS)}.")
        if not 0 < self.ratio <= 4:
            raise ConfigError(
                "The adapter's hidden width is a share of the block's, above 0 and at most 4.",
                f"ratio = {self.ratio}",
            )
        if self.kernel < 1 or self.kernel % 2 == 0 or self.dilation < 1:
            raise ConfigError(
                "The adapter's kernel must be odd and its dilation positive.",
                f"kernel = {self.kernel}, dilation = {self.dilation}",
            )
        if any(a >= b for a, b in zip(self.blocks, self.blocks[1:], strict=False)):
            raise ConfigError(
                "Blocks with adapters are listed once each, in order.",
                f"blocks = {list(self.blocks)}",
            )
        if self.blocks and (self.stages or self.pathways):
            raise ConfigError(
                "Blocks with adapters are named by number, or by stage and pathway.",
                f"blocks = {list(self.blocks)}, stages = {list(self.stages)}, "
                f"pathways = {list(self.pathways)}",
            )


class AdaptedBlock(Protocol):
    """A block that can hold an adapter; it is also an nn.Module."""

    adapter: nn.Module | None  # from [R, T, P, C] to the same, applied to the block's output


class ShiftedAttention(Protocol):
    """An attention layer whose groups can be shifted; it is also an nn.Module."""

    shifted: bool  # half of the heads see groups that start half a clip later


class AdapterSite(NamedTuple):
    """A place for an adapter."""

    block: AdaptedBlock
    channels: int  # C of its output
    attention: ShiftedAttention | None = None
    stage: int | None = None  # from 1; None in a backbone whose blocks are all alike
    pathway: str | None = None  # "slow" or "fast"; None in a backbone with one only


@runtime_checkable
class Adaptable(Protocol):
    """A backbone that takes adapters.

    Attributes:
        adapter_sha256: identity of loaded adapters, "" without any.
        adapters: what was added, kind "none" at first. With `checkpoint` the backbone recomputes
            its blocks (`recompute.recomputed`).
        ladders: None, or the side network; the backbone then runs its blocks without gradient and
            returns the ladder's sum.
        snippet_only: names of the modules that only `forward` passes through, not `feature_map`.
    """

    adapter_sha256: str
    adapters: AdapterConfig
    ladders: Ladder | None
    snippet_only: tuple[str, ...]

    def adapter_sites(self) -> Sequence[AdapterSite]:
        """The blocks in the order of the forward pass."""


class TemporalInformativeAdapter(nn.Module):
    """TIA (Eq. 2): a bottleneck that mixes neighbouring time steps of a window.

    Args:
        skip: add the input to what comes out; a ladder leaves it out.
    """

    def __init__(
        self,
        channels: int,
        *,
        ratio: float = 0.25,
        kernel: int = 3,
        dilation: int = 1,
        residual: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__()
        hidden = hidden_width(channels, ratio)
        self.gamma = nn.Parameter(torch.ones(1))  # "alpha" in the paper
        self.down_proj = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv1d(hidden, hidden, kernel, groups=hidden, dilation=dilation)
        self.conv = nn.Conv1d(hidden, hidden, 1)  # W_mid
        self.up_proj = nn.Linear(hidden, channels)
        self.residual = residual
        self.skip = skip
        init_bottleneck(self.down_proj, self.up_proj)
        nn.init.normal_(self.dwconv.weight, std=math.sqrt(2 / kernel))
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / hidden))
        for layer in (self.dwconv, self.conv):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[R, T, P, C] -> [R, T, P, C]; zeros only before and behind the whole window."""
        z = nnf.gelu(self.down_proj(x.to(self.down_proj.weight.dtype)))  # [R, T, P, H]
        z = z + self.mix_time(z) if self.residual else self.mix_time(z)
        y = scaled_up(z, self.up_proj, self.gamma)
        return y + x if self.skip else y

    def mix_time(self, z: Tensor) -> Tensor:
        """[R, T, P, H] -> the same: depth-wise over T, then W_mid.

        As a 2-D convolution over (T, P) in channels-last order, so that nothing is transposed.
        """
        dilation = self.dwconv.dilation[0]
        mixed = nnf.conv2d(
            z.permute(0, 3, 1, 2),  # [R, H, T, P]
            self.dwconv.weight[..., None],  # [H, 1, k, 1]
            self.dwconv.bias,
            padding=(self.dwconv.kernel_size[0] // 2 * dilation, 0),
            dilation=(dilation, 1),
            groups=self.dwconv.groups,
        ).permute(0, 2, 3, 1)
        return nnf.linear(mixed, self.conv.weight[..., 0], self.conv.bias)


class PlainAdapter(nn.Module):
    """The standard bottleneck adapter (Eq. 1): every token on its own."""

    def __init__(self, channels: int, *, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = hidden_width(channels, ratio)
        self.gamma = nn.Parameter(torch.ones(1))
        self.down_proj = nn.Linear(channels, hidden)
        self.up_proj = nn.Linear(hidden, channels)
        init_bottleneck(self.down_proj, self.up_proj)

    def forward(self, x: Tensor) -> Tensor:
        """[R, T, P, C] -> [R, T, P, C]."""
        z = nnf.gelu(self.down_proj(x.to(self.down_proj.weight.dtype)))  # [R, T, P, H]
        return scaled_up(z, self.up_proj, self.gamma) + x


class Ladder(nn.Module):
    """AdaTAD-dagger (Eq. 3-4): adapters beside the backbone, on outputs of frozen blocks.

    The result is the last listed block's output plus the sum of all adapters, hence the backbone's
    last block must be listed.
    """

    def __init__(self, channels: int, config: AdapterConfig, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(make_tia(channels, config, skip=False) for _ in blocks)
        self.position = {block: k for k, block in enumerate(blocks)}  # block -> index in adapters
        self.recompute = config.checkpoint

    def step(self, block: int, x: Tensor, total: Tensor | None) -> Tensor | None:
        """Add the adapter of block `block`, if it has one, on its output x [R, T, P, C]."""
        if block not in self.position:
            return total
        adapter = self.adapters[self.position[block]]
        side = checkpoint(adapter, x, use_reentrant=False) if self.recompute else adapter(x)
        assert isinstance(side, Tensor)
        return side if total is None else total + side


def hidden_width(channels: int, ratio: float) -> int:
    """H, at least one channel; a ratio that was read off two widths gives the same one back."""
    return max(int(channels * ratio + 1e-6), 1)


def init_bottleneck(down: nn.Linear, up: nn.Linear) -> None:
    """A zero second layer: at the start the adapter changes nothing."""
    nn.init.trunc_normal_(down.weight, std=0.02)
    for tensor in (down.bias, up.weight, up.bias):
        nn.init.zeros_(tensor)


def scaled_up(z: Tensor, up: nn.Linear, gamma: Tensor) -> Tensor:
    """gamma * up(z), with gamma on the weights: its gradient then needs no [R, T, P, C] tensor."""
    return nnf.linear(z, gamma * up.weight, gamma * up.bias)


def make_tia(
    channels: int, config: AdapterConfig, *, skip: bool = True
) -> TemporalInformativeAdapter:
    """A TIA with the sizes of the configuration."""
    return TemporalInformativeAdapter(
        channels,
        ratio=config.ratio,
        kernel=config.kernel,
        dilation=config.dilation,
        residual=config.residual,
        skip=skip,
    )


def add_adapters(backbone: Backbone, config: AdapterConfig) -> Backbone:
    """Attach adapters in place; a zero second layer leaves every output as it was.

    "longlora" attaches none: the attention of the listed blocks lets half of its heads see groups
    that are shifted by half a clip, and trains. Windows of several clips then differ from the
    frozen backbone's from the start, single clips do not.

    Returns:
        The same backbone.
    Raises:
        ConfigError: the backbone takes no adapters or has some already, or the blocks do not exist
            or do not fit the kind.
    """
    if not isinstance(backbone, Adaptable):
        raise ConfigError(f"{backbone.name} takes no adapters.", f"adapter {config.kind}")
    if backbone.adapters.kind != "none":
        raise ConfigError(
            f"{backbone.name} has adapters already.",
            f"kind {backbone.adapters.kind}, asked for {config.kind}",
            "Build or load the backbone without adapters first.",
        )
    sites = backbone.adapter_sites()
    config = with_blocks(config, sites)
    blocks = chosen_blocks(config, len(sites))
    assert isinstance(backbone, nn.Module)
    device = next(backbone.parameters()).device
    if config.kind == "ladder":
        backbone.ladders = _ladder(sites, config, blocks).to(device)
    for index in blocks:
        site = sites[index]
        if config.kind == "tia":
            site.block.adapter = make_tia(site.channels, config).to(device)
        elif config.kind == "plain":
            site.block.adapter = PlainAdapter(site.channels, ratio=config.ratio).to(device)
        elif config.kind == "longlora":
            _attention(site).shifted = True
    backbone.adapters = config
    return backbone


def with_blocks(config: AdapterConfig, sites: Sequence[AdapterSite]) -> AdapterConfig:
    """The same configuration with stages and pathways spelt out as blocks.

    Raises:
        ConfigError: a stage or a pathway that the backbone does not have.
    """
    for key, chosen, there in (
        ("stages", config.stages, {site.stage for site in sites}),
        ("pathways", config.pathways, {site.pathway for site in sites}),
    ):
        if not there.issuperset(chosen):
            known = sorted(str(each) for each in there if each is not None)
            raise ConfigError(
                f"The backbone does not have these {key}.",
                f"{key} = {list(chosen)}, it has {', '.join(known) or 'none'}",
            )
    if not config.stages and not config.pathways:
        return config
    blocks = [
        index
        for index, site in enumerate(sites)
        if (not config.stages or site.stage in config.stages)
        and (not config.pathways or site.pathway in config.pathways)
    ]
    return replace(config, blocks=tuple(blocks), stages=(), pathways=())


def chosen_blocks(config: AdapterConfig, count: int) -> tuple[int, ...]:
    """Indices of the blocks with adapters among `count`.

    Raises:
        ConfigError: an index that does not exist, or a ladder that leaves the last block out.
    """
    if not config.blocks:
        first = count // 2 if config.kind == "ladder" else 0
        return tuple(range(first, count))
    if config.blocks[0] < 0 or config.blocks[-1] >= count:
        raise ConfigError(
            f"The backbone has blocks 0 to {count - 1}.", f"blocks = {list(config.blocks)}"
        )
    if config.kind == "ladder" and config.blocks[-1] != count - 1:
        raise ConfigError(
            "A ladder adds to the last block's output, so that block must be listed.",
            f"blocks = {list(config.blocks)}, the last one is {count - 1}",
        )
    return config.blocks


def adapter_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name; with "longlora" those of the attention it tunes."""
    if not isinstance(backbone, Adaptable) or backbone.adapters.kind == "none":
        return {}
    sites = backbone.adapter_sites()
    owners: list[object] = [backbone.ladders]
    for index in chosen_blocks(backbone.adapters, len(sites)):
        tuned = sites[index].attention if backbone.adapters.kind == "longlora" else None
        owners.append(tuned or sites[index].block.adapter)
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    assert isinstance(backbone, nn.Module)
    return {name: p for name, p in backbone.named_parameters() if id(p) in own}


def _ladder(sites: Sequence[AdapterSite], config: AdapterConfig, blocks: tuple[int, ...]) -> Ladder:
    if any(site.stage is not None for site in sites):
        raise ConfigError(
            "A ladder sums outputs of blocks, which need one shape; this backbone has stages.",
            "adapter ladder",
            "Use --adapter tia or plain.",
        )
    widths = sorted({sites[index].channels for index in blocks})
    if len(widths) > 1:
        raise ConfigError(
            "A ladder sums outputs of blocks, which need the same channels.", f"{widths}"
        )
    return Ladder(widths[0], config, blocks)


def _attention(site: AdapterSite) -> ShiftedAttention:
    if site.attention is None:
        raise ConfigError("longlora tunes attention, which this backbone's blocks do not have.")
    return site.attention
