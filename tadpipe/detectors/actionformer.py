"""ActionFormer: Localizing Moments of Actions with Transformers (Zhang et al., ECCV 2022).

Order: ActionFormerConfig -> local_attention, MaskedAttention (Sec. 3.2) -> TransformerBlock,
ConvBlock -> ActionFormer (Sec. 3.1-3.4) -> remap_official_keys.
Shapes: B batch, C channels, H attention heads of width D, T feature-grid length, L levels of
lengths T_l and strides s^l, N points of all levels, K classes, P positives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.parts.assign import assign_outputs, offsets_at, positive_mask, positives
from tadpipe.detectors.parts.conv import (
    ChannelNorm,
    MaskedConv1d,
    MaxPool,
    PointwiseConv1d,
    drop_path,
)
from tadpipe.detectors.parts.decode import DecodeConfig, decode_levels
from tadpipe.detectors.parts.heads import make_class_head, make_regression_head
from tadpipe.detectors.parts.lengths import check_length, longest_len, round_up
from tadpipe.detectors.parts.losses import (
    LossNormalizer,
    diou_loss,
    sigmoid_focal_loss,
    smooth_labels,
    weighted,
)
from tadpipe.detectors.parts.pyramid import make_encoder, make_neck, per_level, points_on
from tadpipe.detectors.protocol import AnchorFreeOutputs, GridDetections, Targets
from tadpipe.errors import ConfigError

QUERY_BLOCK = 32  # queries that share one slice of keys in local attention


@dataclass(frozen=True)
class ActionFormerConfig:
    """ActionFormer's model and losses; the defaults are the common ones of the release."""

    in_channels: int | tuple[int, ...]  # C of the features; a list = sources with own projections
    num_classes: int  # K
    window_len: int = 2304  # grid steps of a training window, and what shorter videos are padded to
    backbone: Literal["transformer", "conv"] = "transformer"  # "conv" is the paper's ablation
    embed_layers: int = 2  # convolutions before the stem
    stem_layers: int = 2  # blocks at full resolution
    branch_layers: int = 5  # blocks that go down, one per further level
    scale_factor: int = 2  # s, step from one level to the next
    embed_dim: int | tuple[int, ...] = 512  # width C; with several sources the width of each
    embed_kernel: int = 3  # kernel of the embedding convolutions
    embed_norm: bool = True  # channel norm in the embedding
    num_heads: int = 4  # attention heads
    attention_windows: int | tuple[int, ...] = 19  # keys a query sees, per level; <= 1 = all keys
    abs_pos: bool = False  # add a sinusoid position table after the embedding
    rel_pos: bool = False  # learn a bias per head and key offset in local attention
    neck: Literal["identity", "fpn"] = "identity"  # "fpn" adds the top-down path
    neck_dim: int = 512  # width after the neck
    neck_norm: bool = True  # channel norm in the neck
    start_level: int = 0  # finest level that is used
    regression_ranges: tuple[tuple[float, float], ...] = (
        (0.0, 4.0),
        (4.0, 8.0),
        (8.0, 16.0),
        (16.0, 32.0),
        (32.0, 64.0),
        (64.0, 10000.0),
    )  # offsets each used level answers for, grid steps, both ends included
    head_dim: int = 512  # width of the heads
    head_kernel: int = 3  # kernel of the heads
    head_layers: int = 3  # convolutions of a head, the last one included
    head_norm: bool = True  # channel norm in the heads
    max_buffer_len_factor: float = 6.0  # longest input, in windows
    centre_radius: float = 1.5  # centre sampling, in level strides; 0 = all points of an action
    loss_weight: float = 1.0  # of the regression loss; <= 0 balances it with the classification
    prior_prob: float = 0.01  # class probability at the start; 0 = no prior
    empty_classes: tuple[int, ...] = ()  # classes without annotation, held near probability 0
    label_smoothing: float = 0.0  # e: class targets y become y (1 - e) + e / (K + 1)
    dropout: float = 0.0  # in the projection of the attention and in the MLP
    drop_path: float = 0.1  # stochastic depth; 0 also leaves the residual scales out
    init_loss_norm: float = 100.0  # start of the loss normaliser, positives per batch

    def __post_init__(self) -> None:
        levels = self.branch_layers + 1
        several = not isinstance(self.in_channels, int)
        if several != (not isinstance(self.embed_dim, int)) or (
            several and len(self.in_channels) != len(self.embed_dim)  # type: ignore[arg-type]  # both tuples
        ):
            raise ConfigError(
                "Several sources need one embedding width each.",
                f"in_channels = {self.in_channels}, embed_dim = {self.embed_dim}",
            )
        if self.width % self.num_heads and self.backbone == "transformer":
            raise ConfigError(
                "The heads must divide the width.",
                f"width {self.width}, num_heads = {self.num_heads}",
            )
        if not isinstance(self.attention_windows, int) and len(self.attention_windows) != levels:
            raise ConfigError(
                f"One attention window per level is needed, {levels} in all.",
                f"attention_windows = {self.attention_windows}, branch_layers = "
                f"{self.branch_layers}",
            )
        if self.rel_pos and any(w > 1 and w % 2 == 0 for w in self.windows):
            raise ConfigError(
                "A relative bias needs odd attention windows.", f"windows {self.windows}"
            )
        if self.backbone == "transformer" and self.scale_factor % 2:
            raise ConfigError(
                "The transformer's pooling needs an even scale factor.",
                f"scale_factor = {self.scale_factor}",
            )
        if not 0 <= self.start_level < levels:
            raise ConfigError(
                f"The start level is one of 0 to {levels - 1}.", f"start_level = {self.start_level}"
            )
        if len(self.regression_ranges) != levels - self.start_level:
            raise ConfigError(
                f"One regression range per used level is needed, {levels - self.start_level} in "
                "all.",
                f"regression_ranges = {self.regression_ranges}",
            )
        for name in ("embed_kernel", "head_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ConfigError("Kernels are odd.", f"{name} = {getattr(self, name)}")
        if self.window_len % self.scale_factor**self.branch_layers:
            raise ConfigError(
                "The window must be a multiple of the coarsest stride.",
                f"window_len = {self.window_len}, stride {self.scale_factor**self.branch_layers}",
            )

    @property
    def width(self) -> int:
        """C inside the encoder."""
        return self.embed_dim if isinstance(self.embed_dim, int) else sum(self.embed_dim)

    @property
    def windows(self) -> tuple[int, ...]:
        """Attention window of every encoder level."""
        return per_level(self.attention_windows, self.branch_layers + 1)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the used levels."""
        return tuple(
            self.scale_factor**level for level in range(self.start_level, self.branch_layers + 1)
        )


def local_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, reach: int, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention of each step to the real steps at most `reach` away.

    Blocks of QUERY_BLOCK queries meet the keys they can reach, so memory grows with T, not T x T.

    Args:
        query, key, value: [B, H, T, D]; mask: [B, T].
        reach: w, half the window; step i sees j with |i - j| <= w.
        bias: [H, 2w + 1], added to the logit of key offset j - i = c - w at index c.
    Returns:
        [B, H, T, D]; rows of padded queries are finite and mean nothing.
    """
    batch, heads, steps, width = query.shape
    n = QUERY_BLOCK
    tail = -steps % n
    span = n + 2 * reach  # keys of one block

    def slices(x: Tensor) -> Tensor:  # [B, H, T, D] -> [B * blocks, H, span, D]
        x = F.pad(x, (0, 0, reach, tail + reach)).unfold(2, span, n)  # [B, H, blocks, D, span]
        return x.permute(0, 2, 1, 4, 3).reshape(-1, heads, span, width)

    query = F.pad(query, (0, 0, 0, tail)).view(batch, heads, -1, n, width).transpose(1, 2)
    query = query.reshape(-1, heads, n, width)  # [B * blocks, H, n, D]
    real = F.pad(mask, (reach, tail + reach)).unfold(1, span, n).reshape(-1, 1, 1, span)
    # Query r of a block and key c of its slice are c - r - w steps apart.
    lag = torch.arange(span, device=query.device) - torch.arange(n, device=query.device)[:, None]
    band = (lag >= 0) & (lag <= 2 * reach)  # [n, span]
    # A query always sees itself, so that padded ones have something to attend to.
    allowed = (band & real) | (lag == reach)  # [B * blocks, 1, n, span]
    if bias is None:
        out = F.scaled_dot_product_attention(query, slices(key), slices(value), allowed)
    else:
        logits = bias[:, lag.clamp(0, 2 * reach)].to(query.dtype)  # [H, n, span]
        logits = logits.masked_fill(~allowed, -torch.inf)  # [B * blocks, H, n, span]
        out = F.scaled_dot_product_attention(query, slices(key), slices(value), logits)
    out = out.view(batch, -1, heads, n, width).transpose(1, 2)  # [B, H, blocks, n, D]
    return out.reshape(batch, heads, -1, width)[:, :, :steps]


class MaskedAttention(nn.Module):
    """Multi-head self-attention with depth-wise convolutions before query, key and value.

    Args:
        window: keys a query sees, itself in the middle; <= 1 = all.
        stride: step of queries and keys alike.
        rel_pos: learn a bias per head and key offset (local attention only).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        window: int,
        stride: int,
        rel_pos: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reach = window // 2 if window > 1 else 0  # 0 = global
        kernel = stride + 1 if stride > 1 else 3

        def reduce() -> MaskedConv1d:
            return MaskedConv1d(
                channels, channels, kernel, stride=stride, groups=channels, bias=False
            )

        self.query_conv, self.query_norm = reduce(), ChannelNorm(channels)
        self.key_conv, self.key_norm = reduce(), ChannelNorm(channels)
        self.value_conv, self.value_norm = reduce(), ChannelNorm(channels)
        self.key = PointwiseConv1d(channels, channels)
        self.query = PointwiseConv1d(channels, channels)
        self.value = PointwiseConv1d(channels, channels)
        self.proj = PointwiseConv1d(channels, channels)
        self.proj_drop = nn.Dropout(dropout)
        self.rel_pe: nn.Parameter | None = None
        if rel_pos and self.reach:
            self.rel_pe = nn.Parameter(torch.zeros(1, 1, num_heads, window))
            nn.init.trunc_normal_(self.rel_pe, std=(2.0 / channels) ** 0.5)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T], [B, T] -> [B, C, T / stride], [B, T / stride]."""
        q, strided = self.query_conv(x, mask)
        k, _ = self.key_conv(x, mask)
        v, _ = self.value_conv(x, mask)
        query = self._heads(self.query(self.query_norm(q)))  # [B, H, T', D]
        key = self._heads(self.key(self.key_norm(k)))
        value = self._heads(self.value(self.value_norm(v)))
        if self.reach:
            bias = None if self.rel_pe is None else self.rel_pe[0, 0]  # [H, window]
            out = local_attention(query, key, value, strided, self.reach, bias)
        else:
            out = F.scaled_dot_product_attention(query, key, value, strided[:, None, None])
        out = out.transpose(2, 3).flatten(1, 2)  # [B, C, T']
        # Padded queries saw something meaningless; the official rows are zero before `proj`.
        out = self.proj_drop(self.proj(out)) * strided[:, None]
        return out, strided

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.num_heads, -1)).transpose(2, 3)


class TransformerBlock(nn.Module):
    """Pre-norm block of attention and MLP; with a stride it goes down one level.

    Args:
        attn: maps ([B, C, T], mask [B, T]) to the same pair at `stride`, zero at padded steps.
    """

    def __init__(
        self,
        channels: int,
        attn: nn.Module,
        *,
        stride: int,
        dropout: float,
        drop_path_prob: float,
    ) -> None:
        super().__init__()
        self.ln1 = ChannelNorm(channels)
        self.attn = attn
        self.pool = MaxPool(stride) if stride > 1 else nn.Identity()
        self.ln2 = ChannelNorm(channels)
        self.mlp = nn.Sequential(
            PointwiseConv1d(channels, 4 * channels),
            nn.GELU(),
            nn.Dropout(dropout),
            PointwiseConv1d(4 * channels, channels),
            nn.Dropout(dropout),
        )
        self.drop_path_attn = drop_path(channels, drop_path_prob)
        self.drop_path_mlp = drop_path(channels, drop_path_prob)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T], [B, T] -> [B, C, T / stride], [B, T / stride]; padded steps become 0."""
        attended, strided = self.attn(self.ln1(x), mask)
        y = self.pool(x) * strided[:, None] + self.drop_path_attn(attended)
        z = y + self.drop_path_mlp(self.mlp(self.ln2(y)) * strided[:, None])
        return z, strided


class ConvBlock(nn.Module):
    """Residual block of the convolutional ablation; its sum is not masked again."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = MaskedConv1d(channels, 2 * channels, 3, stride=stride)
        self.conv2 = MaskedConv1d(2 * channels, channels, 3)
        self.downsample = MaskedConv1d(channels, channels, 1, stride=stride) if stride > 1 else None

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T], [B, T] -> [B, C, T / stride], [B, T / stride]."""
        y, strided = self.conv1(x, mask)
        y, _ = self.conv2(F.relu(y), strided)
        shortcut = x if self.downsample is None else self.downsample(x, mask)[0]
        return F.relu(y + shortcut), strided


class ActionFormer(nn.Module):
    """One-stage detector: every point of a temporal pyramid names classes and two boundaries."""

    Config: ClassVar[type] = ActionFormerConfig

    def __init__(self, config: ActionFormerConfig, decode: DecodeConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.decode_config = decode or DecodeConfig()
        self.backbone = make_encoder(
            config,
            stem=[_block(config, 0, 1) for _ in range(config.stem_layers)],
            branch=[
                _block(config, level + 1, config.scale_factor)
                for level in range(config.branch_layers)
            ],
            positions=config.abs_pos and config.backbone == "transformer",  # "conv" has no table
        )
        self.neck = make_neck(config)
        self.cls_head = make_class_head(config, config.head_kernel)
        self.reg_head = make_regression_head(config)
        self.normalizer = LossNormalizer(config.init_loss_norm)
        self.loss_state, self.load_loss_state = self.normalizer.state, self.normalizer.load

    def forward(self, feats: Tensor, mask: Tensor) -> AnchorFreeOutputs:
        """Predict at every point.

        Args:
            feats: [B, C, T], zero-padded at the end; T a multiple of the coarsest stride.
            mask: [B, T] bool, true = real row.
        """
        check_length(feats, self.config)
        levels, masks = self.backbone(feats, mask)  # [B, C, T_l], [B, T_l] for l = 0 ... branches
        start = self.config.start_level
        levels, masks = levels[start:], masks[start:]
        levels = self.neck(levels, masks)  # L x [B, C, T_l]
        logits = [x.transpose(1, 2) for x in self.cls_head(levels, masks)]  # L x [B, T_l, K]
        offsets = [x.transpose(1, 2)[:, :, None] for x in self.reg_head(levels, masks)]
        points = points_on(levels, self.config)
        return AnchorFreeOutputs(masks, points, logits, offsets)  # offsets L x [B, T_l, 1, 2]

    def loss(self, outputs: AnchorFreeOutputs, targets: Targets) -> dict[str, Tensor]:
        """Classification and weighted regression loss of one training batch (Sec. 3.3)."""
        cls_loss, reg_loss = self.loss_terms(outputs, targets)
        return weighted(cls_loss, reg_loss, self.config.loss_weight)

    def loss_terms(self, outputs: AnchorFreeOutputs, targets: Targets) -> tuple[Tensor, Tensor]:
        """Both losses without weight; moves the normaliser."""
        config = self.config
        assigned, mask = assign_outputs(
            outputs, targets, config.num_classes, centre_radius=config.centre_radius
        )  # mask [B, N]
        logits = torch.cat(outputs.logits, dim=1)  # [B, N, K]
        offsets = torch.cat(outputs.offsets, dim=1)  # [B, N, 1, 2]
        count = self.normalizer.update(int(positive_mask(assigned, mask).sum()))
        classes = smooth_labels(assigned.classes, config.label_smoothing)
        cls_loss = sigmoid_focal_loss(logits[mask], classes[mask]).sum() / count
        pairs = positives(assigned, mask, per_class=False)
        wanted = assigned.offsets[pairs.sequence, pairs.point]  # [P, 2]
        reg_loss = diou_loss(offsets_at(offsets, pairs), wanted).sum() / count
        return cls_loss, reg_loss

    def decode(self, outputs: AnchorFreeOutputs) -> list[GridDetections]:
        """Candidates of each sequence before NMS (Sec. 3.4)."""
        return decode_levels(outputs, self.decode_config)

    def padded_len(self, length_grid: int) -> int:
        """Length an inference sequence is padded to.

        The release pads to the window, or beyond it to what its chunked attention needs, which
        sets how far the position table is stretched. Inside the window the padded tail reaches
        real steps only through the kernels (their first padded step holds a norm's bias), so a
        tail as long as the widest kernel reaches, on the coarsest level, gives the same outputs.
        """
        config = self.config
        top = config.strides[-1]
        if length_grid > config.window_len:
            step = max(
                stride * 2 * (window // 2) if window > 1 else stride
                for stride, window in zip(config.strides, config.windows, strict=False)
            )
            return round_up(length_grid, math.lcm(step, top))
        reach = max(config.head_kernel, config.embed_kernel, 3) // 2
        return min(config.window_len, round_up(length_grid, top) + reach * top)

    def max_len(self) -> int:
        """The longest sequence that is taken in one piece."""
        return longest_len(self.padded_len, self.config)


def _block(config: ActionFormerConfig, level: int, stride: int) -> nn.Module:
    """A block that ends on `level`."""
    if config.backbone == "conv":
        return ConvBlock(config.width, stride=stride)
    attention = MaskedAttention(
        config.width,
        config.num_heads,
        window=config.windows[level],
        stride=stride,
        rel_pos=config.rel_pos,
        dropout=config.dropout,
    )
    return TransformerBlock(
        config.width,
        attention,
        stride=stride,
        dropout=config.dropout,
        drop_path_prob=config.drop_path,
    )


def remap_official_keys(checkpoint: Mapping[str, Any], *, ema: bool = True) -> dict[str, Tensor]:
    """Weights of an official checkpoint under our names; the values are not touched.

    Our attributes are named as in the release, so this only unwraps: the averaged weights
    (`state_dict_ema`, what the release evaluates) or the raw ones, without the `module.` prefix
    of data-parallel training. A bare state dict passes.
    """
    wanted = "state_dict_ema" if ema else "state_dict"
    state = checkpoint.get(wanted, checkpoint.get("state_dict", checkpoint))
    return {name.removeprefix("module."): value for name, value in state.items()}
