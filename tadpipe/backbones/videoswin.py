"""Video Swin Transformer (Liu, Ning, Cao, Wei, Zhang, Lin, Hu, CVPR 2022).

Attention inside windows of 8 x 7 x 7 tokens; every second block shifts them by half a window.
Order: PatchEmbed -> WindowAttention (Eq. 3) -> SwinBlock (Eq. 2) -> PatchMerging -> VideoSwin ->
builders -> remap_official_keys. Key names are the official ones.
Shapes: B clips, F frames, H x W pixels, t x h x w tokens, C channels, W window sides, M tokens of a
window, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from tadpipe.backbones.block_adapters import (
    adapters_of_blocks,
    block_count,
    run_block,
    set_adapter_dtype,
)
from tadpipe.backbones.conv_parts import check_clip_len, check_clips, map_of_windows
from tadpipe.backbones.key_layouts import layout_of, without_prefix
from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.backbones.protocol import RemappedState
from tadpipe.backbones.tia import AdapterConfig, AdapterSite, Ladder
from tadpipe.backbones.tuning import keep_frozen_in_eval
from tadpipe.backbones.videomae_blocks import Mlp
from tadpipe.config import PixelRecipe

Sides = tuple[int, int, int]

PATCH: Sides = (2, 4, 4)
WINDOW: Sides = (8, 7, 7)
HEAD_DIM = 32
MLP_RATIO = 4
FAR = -100.0  # added to the scores of tokens that only the shift made neighbours


class PatchEmbed(nn.Module):
    """Non-overlapping patches; zeros fill up the last ones."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, channels, PATCH, PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, clips: Tensor) -> Tensor:
        """[B, 3, F, H, W] -> [B, t, h, w, C] float32."""
        x = self.proj(padded(clips.to(self.proj.weight.dtype), clips.shape[2:], PATCH, first=2))
        y: Tensor = self.norm(x.permute(0, 2, 3, 4, 1).float())
        return y


class WindowAttention(nn.Module):
    """Multi-head attention inside each window, with a learned bias per relative position."""

    def __init__(self, channels: int, heads: int, window: Sides) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        offsets = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))

    def forward(self, x: Tensor, index: Tensor, edges: Sequence[Tensor | None]) -> Tensor:
        """Windows [B, nt, nh, nw, M, C] -> the same.

        Args:
            index: [M', M'] rows of the bias table for a full window.
            edges: per axis of a shifted window which tokens the shift brought from the other end,
                bool [M]; None where the axis is not shifted.
        """
        tokens = x.shape[4]
        # a smaller window takes the top left corner of the index, as the release does: right where
        # time alone is shorter, other offsets' entries where height or width is
        rows = index[:tokens, :tokens].reshape(-1)
        bias = self.relative_position_bias_table[rows].view(tokens, tokens, -1).permute(2, 0, 1)
        qkv = self.qkv(x.to(self.qkv.weight.dtype)).unflatten(5, (3, self.heads, -1))
        bias = bias.to(qkv.dtype)
        if not any(edge is not None for edge in edges):
            return self.proj(attend(qkv, bias))
        mixed = torch.empty_like(x, dtype=qkv.dtype)
        # only the last windows of an axis hold tokens from both ends: at most eight kinds
        kinds = [
            [(slice(None), None)]
            if edge is None
            else [(slice(None, -1), None), (slice(-1, None), edge)]
            for edge in edges
        ]
        for kind in itertools.product(*kinds):
            part = (slice(None), *(windows for windows, _ in kind))
            far = far_apart([edge for _, edge in kind if edge is not None], bias)
            mixed[part] = attend(qkv[part], bias + far)
        return self.proj(mixed)


def attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """[B, nt, nh, nw, M, 3, heads, d] and bias [heads, M, M] -> [B, nt, nh, nw, M, C]."""
    places = qkv.shape[:4]
    queries, keys, values = qkv.flatten(0, 3).permute(2, 0, 3, 1, 4)  # each [., heads, M, d]
    mixed = nnf.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2).unflatten(0, places)


def far_apart(edges: Sequence[Tensor], like: Tensor) -> Tensor:
    """-100 where two tokens of a window are neighbours through the shift only, [1, M, M]."""
    if not edges:
        return like.new_zeros(())
    apart = torch.stack([edge[:, None] ^ edge[None, :] for edge in edges]).any(dim=0)
    return (apart.to(like.dtype) * FAR)[None]


class SwinBlock(nn.Module):
    """Attention in windows and an MLP, both behind a norm and beside a shortcut.

    Args:
        shifted: whether the windows are shifted by half their sides.
        drop_path: probability with which a clip skips a branch, in training only.
    """

    def __init__(
        self, channels: int, heads: int, window: Sides, *, shifted: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.window = window
        self.shifted = shifted
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(dim=channels, hidden_dim=MLP_RATIO * channels)
        self.adapter: nn.Module | None = None  # `tia.add_adapters` puts it here

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """[B, t, h, w, C] -> the same, float32; an adapter comes last.

        Args:
            index: rows of the bias table, see `relative_index`.
        """
        x = x + self._branch(self.attention(self.norm1(x), index))
        x = x + self._branch(self.mlp(self.norm2(x)))
        if self.adapter is None:
            return x
        adapted: Tensor = self.adapter(x.flatten(2, 3)).view_as(x)
        return adapted

    def attention(self, x: Tensor, index: Tensor) -> Tensor:
        """Pad, shift, cut into windows, attend, and all of it back.

        Padded tokens are zeros and take part.
        """
        size = x.shape[1:4]
        window = tuple(min(side, full) for side, full in zip(size, self.window, strict=True))
        shift = tuple(  # an axis that one window covers is not shifted
            full // 2 if self.shifted and side > full else 0
            for side, full in zip(size, self.window, strict=True)
        )
        x = padded(x, size, window, first=1)
        if any(shift):
            x = x.roll([-step for step in shift], dims=(1, 2, 3))
        counts = [side // part for side, part in zip(x.shape[1:4], window, strict=True)]
        edges = edges_of(window, shift, x.device)
        x = self.attn(to_windows(x, counts, window), index, edges)
        x = from_windows(x, counts, window)
        if any(shift):
            x = x.roll(shift, dims=(1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]

    def _branch(self, y: Tensor) -> Tensor:
        if self.training and self.drop_path > 0:
            keep = 1.0 - self.drop_path
            y = y * (torch.rand(len(y), 1, 1, 1, 1, device=y.device) < keep) / keep
        return y


def padded(x: Tensor, size: Sequence[int], unit: Sequence[int], *, first: int) -> Tensor:
    """x with zeros at the end of three axes, so that each is a multiple of its unit.

    Args:
        first: the first of the three axes, 1 (channels last) or 2.
    """
    missing = [-side % part for side, part in zip(size, unit, strict=True)]
    if not any(missing):
        return x
    behind = [0, 0] * (x.ndim - first - 3)
    return nnf.pad(x, behind + [n for gap in reversed(missing) for n in (0, gap)])


def to_windows(x: Tensor, counts: Sequence[int], window: Sequence[int]) -> Tensor:
    """[B, t, h, w, C] -> [B, nt, nh, nw, M, C], the tokens of a window in the order t, h, w."""
    (nt, nh, nw), (wt, wh, ww) = counts, window
    x = x.reshape(len(x), nt, wt, nh, wh, nw, ww, -1)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6)


def from_windows(x: Tensor, counts: Sequence[int], window: Sequence[int]) -> Tensor:
    """The inverse of `to_windows`."""
    (nt, nh, nw), (wt, wh, ww) = counts, window
    x = x.unflatten(4, (wt, wh, ww)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(len(x), nt * wt, nh * wh, nw * ww, -1)


def edges_of(
    window: Sequence[int], shift: Sequence[int], device: torch.device
) -> list[Tensor | None]:
    """Per axis, which tokens of the last window the shift brings from the other end, bool [M]."""
    edges: list[Tensor | None] = []
    for axis, (side, step) in enumerate(zip(window, shift, strict=True)):
        if not step:
            edges.append(None)
            continue
        line = torch.arange(side, device=device) >= side - step
        shape = [1, 1, 1]
        shape[axis] = side
        edges.append(line.view(shape).expand(*window).flatten())
    return edges


def relative_index(window: Sides) -> Tensor:
    """Row of the bias table for each pair of a window's tokens, int64 [M, M]."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in window))  # [M, 3]
    gaps = places[:, None] - places[None, :]
    rows = torch.zeros(gaps.shape[:2], dtype=torch.int64)
    for axis, side in enumerate(window):
        rows = rows * (2 * side - 1) + gaps[..., axis] + side - 1
    return rows


class PatchMerging(nn.Module):
    """Four neighbours in space become one token with twice the channels; time is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, h, w, C] -> [B, t, h/2, w/2, 2C], rounded up, float32."""
        x = padded(x, x.shape[1:4], (1, 2, 2), first=1)
        parts = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]  # height changes first
        merged = self.norm(torch.cat(parts, dim=-1))
        y: Tensor = self.reduction(merged.to(self.reduction.weight.dtype)).float()
        return y


class Stage(nn.Module):
    """Blocks of one width; patches merge behind the first three stages."""

    def __init__(
        self, channels: int, heads: int, window: Sides, rates: Sequence[float], *, merges: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, shifted=j % 2 == 1, drop_path=rate)
            for j, rate in enumerate(rates)
        )
        self.downsample = PatchMerging(channels) if merges else None


class VideoSwin(nn.Module):
    """The network; a clip's feature is the mean of its last, normed map.

    Args:
        name: the backbone's name in the name dictionary.
        pixels: recipe that turns frames into clips.
        channels: C of the first stage; they double from stage to stage.
        depths: blocks per stage.
        heads: of the first stage, doubling too, or one number per stage.
        window: tokens along time, height and width.
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
        num_classes: K of the classification head, 0 = no head.
    """

    bits_depend_on_batch = True
    couples_clips = True
    snippet_only = ("head",)

    def __init__(
        self,
        *,
        name: str,
        pixels: PixelRecipe,
        channels: int,
        depths: Sequence[int],
        heads: Sequence[int] = (),
        window: Sequence[int] = WINDOW,
        clip_len: int = 32,
        drop_path: float = 0.0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        self.pixels = pixels
        self.weights_sha256 = self.adapter_sha256 = ""
        self.window: Sides = (window[0], window[1], window[2])
        self.drop_path = drop_path
        self.num_classes = num_classes
        self.clip_len = check_clip_len(name, clip_len)
        self.patch_embed = PatchEmbed(channels)
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        stages = []
        self.widths = [channels * 2**i for i in range(len(depths))]
        for i, (depth, width) in enumerate(zip(depths, self.widths, strict=True)):
            count = heads[i] if heads else width // HEAD_DIM
            own, rates = rates[:depth], rates[depth:]
            stages.append(Stage(width, count, self.window, own, merges=i < len(depths) - 1))
        self.layers = nn.ModuleList(stages)
        self.out_channels = self.widths[-1]
        self.norm = nn.LayerNorm(self.out_channels)
        self.head = nn.Linear(self.out_channels, num_classes) if num_classes else nn.Identity()
        self.adapters = AdapterConfig(kind="none")
        self.ladders: Ladder | None = None
        self.reset_buffers()
        self._initialise()

    def forward(self, clips: Tensor) -> Tensor:
        """clips [B, 3, F, H, W] -> features [B, C'] float32, C' = 8C."""
        return self.feature_map(clips).mean(dim=(2, 3, 4))

    def classify(self, clips: Tensor) -> Tensor:
        """clips [B, 3, F, H, W] -> logits [B, K]."""
        logits: Tensor = self.head(self(clips))
        return logits

    def feature_map(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [B, 3, F, H, W] -> the last map [B, 8C, F/2, H/32, W/32] float32, rounded up.

        The clips of a window pass as one; attention windows lie across their borders.
        """
        check_clips(self.name, clips, 3)
        return map_of_windows(self.trunk, clips, clips_per_window)

    def trunk(self, clips: Tensor) -> Tensor:
        """clips -> the last map, normed."""
        x = self.patch_embed(clips)  # [B, t, h, w, C]
        index = self.relative_index
        for stage in self.stages():
            for block in stage.blocks:
                x = run_block(block, x, index, recompute=self.adapters.checkpoint)
            if stage.downsample is not None:
                x = stage.downsample(x)
        y: Tensor = self.norm(x)
        return y.permute(0, 4, 1, 2, 3)

    def stages(self) -> list[Stage]:
        return [stage for stage in self.layers if isinstance(stage, Stage)]

    def blocks(self) -> list[SwinBlock]:
        found = [block for stage in self.stages() for block in stage.blocks]
        return [block for block in found if isinstance(block, SwinBlock)]

    def adapter_sites(self) -> Sequence[AdapterSite]:
        """Every block: an adapter stands behind the MLP's sum, before patches merge."""
        return [
            AdapterSite(block, self.widths[i], stage=i + 1)
            for i, stage in enumerate(self.stages())
            for block in stage.blocks
            if isinstance(block, SwinBlock)
        ]

    def train(self, mode: bool = True) -> VideoSwin:
        """Set the mode; what `set_tuning` froze stays in eval mode."""
        super().train(mode)
        keep_frozen_in_eval(self)
        return self

    def set_clip_len(self, clip_len: int) -> None:
        """Take clips of another length; the weights fit any."""
        self.clip_len = check_clip_len(self.name, clip_len)

    def builder_arguments(self) -> dict[str, Any]:
        """Keyword arguments with which this size's builder builds the same model again."""
        return {
            "window": list(self.window),
            "drop_path": self.drop_path,
            "num_classes": self.num_classes,
        }

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run the matrix products in `dtype`; norms, sums of branches and pooling stay float32."""
        self.patch_embed.proj.to(dtype)
        for block in self.blocks():
            block.attn.to(dtype)
            block.mlp.to(dtype)
        for stage in self.stages():
            if stage.downsample is not None:
                stage.downsample.reduction.to(dtype)
        set_adapter_dtype(self.blocks(), dtype)

    def compile_trunk(self) -> None:
        """Compile what features and feature maps share, for fixed shapes."""
        compiled = torch.compile(self.trunk, dynamic=False)
        self.trunk = compiled  # type: ignore[method-assign]  # the instance's own, by design

    def reset_buffers(self) -> None:
        """Compute the table of relative positions, one for all blocks."""
        table = relative_index(self.window)
        weight = self.patch_embed.proj.weight
        if not weight.is_meta:  # weights built on "meta" come later
            table = table.to(weight.device)
        self.relative_index: Tensor
        self.register_buffer("relative_index", table, persistent=False)

    def _initialise(self) -> None:
        """Truncated normal for linear layers and biases of positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def videoswin_t(
    *, window: Sequence[int] = WINDOW, drop_path: float = 0.0, num_classes: int = 0
) -> VideoSwin:
    """Video Swin-T: 27.9 M parameters without a head, features of 768."""
    return VideoSwin(
        name="videoswin-t",
        pixels=PIXEL_RECIPES["mmaction-256"],
        channels=96,
        depths=(2, 2, 6, 2),
        window=window,
        drop_path=drop_path,
        num_classes=num_classes,
    )


def videoswin_s(
    *, window: Sequence[int] = WINDOW, drop_path: float = 0.0, num_classes: int = 0
) -> VideoSwin:
    """Video Swin-S: 49.5 M parameters without a head, features of 768."""
    return VideoSwin(
        name="videoswin-s",
        pixels=PIXEL_RECIPES["mmaction-256"],
        channels=96,
        depths=(2, 2, 18, 2),
        window=window,
        drop_path=drop_path,
        num_classes=num_classes,
    )


def videoswin_b(
    *, window: Sequence[int] = WINDOW, drop_path: float = 0.0, num_classes: int = 0
) -> VideoSwin:
    """Video Swin-B: 87.6 M parameters without a head, features of 1024."""
    return VideoSwin(
        name="videoswin-b",
        pixels=PIXEL_RECIPES["mmaction-256"],
        channels=128,
        depths=(2, 2, 18, 2),
        window=window,
        drop_path=drop_path,
        num_classes=num_classes,
    )


def videoswin_l(
    *, window: Sequence[int] = WINDOW, drop_path: float = 0.0, num_classes: int = 0
) -> VideoSwin:
    """Video Swin-L: 196.3 M parameters without a head, features of 1536."""
    return VideoSwin(
        name="videoswin-l",
        pixels=PIXEL_RECIPES["mmaction-256"],
        channels=192,
        depths=(2, 2, 18, 2),
        window=window,
        drop_path=drop_path,
        num_classes=num_classes,
    )


ANCHORS = {"official": "layers.0.blocks.0.attn.relative_position_bias_table"}


def remap_official_keys(state: Mapping[str, Tensor]) -> RemappedState:
    """Rename a Video Swin state dict: the official release's names, or those of mmaction2.

    A Swin for pictures is inflated in time. The stored index of relative positions is computed
    again and left out.

    Returns:
        The renamed state, its head under `head.*`; window and adapters as arguments. Unknown keys
        keep their names, so that a strict load can list them.
    Raises:
        CheckpointError: not a Swin in a known layout.
    """
    layout, prefix = layout_of(state, ANCHORS, "Video Swin")
    renamed = {}
    for key, value in without_prefix(state, prefix).items():
        if key.startswith("norm3."):
            layout = "mmaction"
        if not key.endswith((".relative_position_index", ".attn_mask")):
            renamed[key.replace("norm3.", "norm.", 1) if key.startswith("norm3.") else key] = value
    patches = renamed.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 4:
        return RemappedState("pictures", inflated(renamed), {})
    arguments: dict[str, Any] = {}
    rows = len(renamed[ANCHORS["official"]])
    plane = (2 * WINDOW[1] - 1) * (2 * WINDOW[2] - 1)
    if rows % plane == 0:  # only the windows' length differs between published weights
        arguments["window"] = [(rows // plane + 1) // 2, *WINDOW[1:]]
    blocks = [
        f"layers.{i}.blocks.{j}"
        for i in range(block_count(renamed, "layers"))
        for j in range(block_count(renamed, f"layers.{i}.blocks"))
    ]
    return RemappedState(layout, renamed, {**arguments, **adapters_of_blocks(renamed, blocks)})


def inflated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for pictures as a start for video: what they knew of space, the same at all times."""
    inflated_state = dict(state)
    plane = (2 * WINDOW[1] - 1, 2 * WINDOW[2] - 1)
    for key, value in state.items():
        if key == "patch_embed.proj.weight":  # [C, 3, 4, 4] -> [C, 3, 2, 4, 4], the same sum
            inflated_state[key] = value[:, :, None].repeat(1, 1, PATCH[0], 1, 1) / PATCH[0]
        elif key.endswith("relative_position_bias_table"):
            side = round(len(value) ** 0.5)
            table = value.T.reshape(1, -1, side, side)  # [1, heads, h, w]
            if (side, side) != plane:
                table = nnf.interpolate(table, size=plane, mode="bicubic", align_corners=False)
            rows = table.flatten(2)[0].T  # [h*w, heads]
            inflated_state[key] = rows.repeat(2 * WINDOW[0] - 1, 1)
    return inflated_state
