"""ASL: Action Sensitivity Learning for temporal action localization (Shao et al., ICCV 2023).

Order: AslConfig -> channel_attention, TimeChannelAttention (Sec. 3.1, Eq. 1-2) -> Asl; the
sensitivity evaluator and the losses (Sec. 3.2-3.3) are in `asl_losses.py` and serve training only.
No code was published. Departures from the print: Eq. 4 divides by 2 sigma^2 as Eq. 3 does (option
`eq4_literal`), and sigma is bounded from below as well. The rest of the base is ActionFormer's.
Shapes: B batch, C channels, T feature-grid length, L levels of lengths T_l, K classes, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.actionformer import TransformerBlock, local_attention
from tadpipe.detectors.asl_losses import AslCriterion, AslLossConfig, SensitivityEvaluator
from tadpipe.detectors.parts.conv import ChannelNorm, MaskedConv1d, PointwiseConv1d, downsample_mask
from tadpipe.detectors.parts.decode import DecodeConfig, decode_levels
from tadpipe.detectors.parts.heads import make_class_head, make_regression_head
from tadpipe.detectors.parts.lengths import check_length, longest_len, round_up
from tadpipe.detectors.parts.pyramid import make_encoder, make_neck, per_level, points_on
from tadpipe.detectors.protocol import AnchorFreeOutputs, GridDetections, Targets
from tadpipe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AslConfig(AslLossConfig):
    """ASL's model on top of its losses; what the paper leaves open is as in ActionFormer."""

    in_channels: int  # C of the features
    num_classes: int  # K
    window_len: int = 2304  # grid steps of a training window, and what shorter videos are padded to
    embed_layers: int = 2  # convolutions before the stem
    stem_layers: int = 2  # blocks at full resolution
    branch_layers: int = 5  # blocks that go down, one per further level
    scale_factor: int = 2  # step from one level to the next
    embed_dim: int = 512  # width C inside the encoder
    embed_kernel: int = 3  # kernel of the embedding convolutions
    embed_norm: bool = True  # channel norm in the embedding
    num_heads: int = 4  # heads of the temporal attention
    attention_windows: int | tuple[int, ...] = 19  # keys a query sees, per level; <= 1 = all keys
    attention_convs: bool = True  # depth-wise convolutions before queries, keys and values
    channel_share: float = 0.2  # theta, share of the channel attention in the sum
    channel_heads: int = 1  # groups of channels that attend among themselves
    abs_pos: bool = False  # add a sinusoid position table after the embedding
    neck: Literal["identity", "fpn"] = "identity"  # "fpn" adds the top-down path
    neck_dim: int = 512  # width after the neck
    neck_norm: bool = True  # channel norm in the neck
    regression_ranges: tuple[tuple[float, float], ...] = (
        (0.0, 4.0),
        (4.0, 8.0),
        (8.0, 16.0),
        (16.0, 32.0),
        (32.0, 64.0),
        (64.0, 10000.0),
    )  # distances each level answers for, grid steps, both ends included
    head_dim: int = 512  # width of the heads
    head_kernel: int = 3  # kernel of the heads
    head_layers: int = 3  # convolutions of a head, the last one included
    head_norm: bool = True  # channel norm in the heads
    max_buffer_len_factor: float = 6.0  # longest input, in windows
    prior_prob: float = 0.01  # class probability at the start; 0 = no prior
    empty_classes: tuple[int, ...] = ()  # classes without annotation, held near probability 0
    dropout: float = 0.0  # in the projection of the attention and in the MLP
    drop_path: float = 0.1  # stochastic depth; 0 also leaves the residual scales out

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = self.branch_layers + 1
        for name in ("num_heads", "channel_heads"):
            if self.embed_dim % getattr(self, name):
                raise ConfigError(
                    "The heads must divide the width.",
                    f"embed_dim = {self.embed_dim}, {name} = {getattr(self, name)}",
                )
        if not 0 <= self.channel_share <= 1:
            raise ConfigError(
                "The share of the channel attention lies in [0, 1].",
                f"channel_share = {self.channel_share}",
            )
        if not isinstance(self.attention_windows, int) and len(self.attention_windows) != levels:
            raise ConfigError(
                f"One attention window per level is needed, {levels} in all.",
                f"attention_windows = {self.attention_windows}",
            )
        if self.scale_factor % 2:
            raise ConfigError(
                "The transformer's pooling needs an even scale factor.",
                f"scale_factor = {self.scale_factor}",
            )
        if len(self.regression_ranges) != levels:
            raise ConfigError(
                f"One regression range per level is needed, {levels} in all.",
                f"regression_ranges = {self.regression_ranges}",
            )
        for name in ("embed_kernel", "head_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ConfigError("Kernels are odd.", f"{name} = {getattr(self, name)}")
        if self.window_len % self.strides[-1]:
            raise ConfigError(
                "The window must be a multiple of the coarsest stride.",
                f"window_len = {self.window_len}, stride {self.strides[-1]}",
            )

    @property
    def windows(self) -> tuple[int, ...]:
        """Attention window of every level."""
        return per_level(self.attention_windows, self.branch_layers + 1)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels."""
        return tuple(self.scale_factor**level for level in range(self.branch_layers + 1))


def channel_map(query: Tensor, key: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Softmax of Eq. 2: how much each channel looks at the others of its head.

    Args:
        query, key: [B, T, C], zero at padded steps; mask: [B, T].
    Returns:
        [B, H, C / H, C / H], rows sum to 1; scaled by the number of real steps.
    """
    steps = mask.sum(1).clamp(min=1)[:, None, None, None]  # [B, 1, 1, 1]
    query, key = (x.transpose(1, 2).unflatten(1, (heads, -1)) for x in (query, key))
    # Scaled before the product, so that sums over long videos stay small in half precision.
    return ((query * steps**-0.5) @ key.transpose(2, 3)).softmax(-1)


def channel_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int
) -> Tensor:
    """Attention among channels (Eq. 2), [B, T, C] each, zero at padded steps -> [B, T, C]."""
    value = value.transpose(1, 2).unflatten(1, (heads, -1))  # [B, H, C / H, T]
    out = channel_map(query, key, mask, heads) @ value
    return out.flatten(1, 2).transpose(1, 2)


class TimeChannelAttention(nn.Module):
    """Temporal and channel attention side by side, summed (Sec. 3.1).

    Args:
        window: keys a query sees in time, itself in the middle; <= 1 = all.
        stride: step of queries and keys of both branches.
        convs: depth-wise convolutions with norms before the linear maps, as in ActionFormer,
            shared by both branches; without them a stride takes every stride-th step.
        channel_share: theta.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        window: int,
        stride: int,
        convs: bool,
        channel_share: float,
        channel_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.channel_heads = num_heads, channel_heads
        self.channel_share = channel_share
        self.stride = stride
        self.reach = window // 2 if window > 1 else 0  # 0 = all keys
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        if convs:
            kernel = stride + 1 if stride > 1 else 3
            for _ in ("query", "key", "value"):
                self.convs.append(
                    MaskedConv1d(
                        channels, channels, kernel, stride=stride, groups=channels, bias=False
                    )
                )
                self.norms.append(ChannelNorm(channels))
        self.q_t, self.k_t, self.v_t = (nn.Linear(channels, channels) for _ in range(3))
        self.q_d, self.k_d, self.v_d = (nn.Linear(channels, channels) for _ in range(3))
        for name, bias in self.named_parameters():
            if name.endswith("_t.bias") or name.endswith("_d.bias"):
                nn.init.zeros_(bias)
        self.proj = PointwiseConv1d(channels, channels)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T], [B, T] -> [B, C, T / stride], [B, T / stride]; zero at padded steps."""
        strided = downsample_mask(mask, self.stride)
        temporal, channel = self.branches(x, mask)
        fused = (1 - self.channel_share) * temporal + self.channel_share * channel  # [B, T', C]
        out = self.proj_drop(self.proj(fused.transpose(1, 2)))
        return out * strided[:, None], strided

    def branches(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of both attentions, [B, T', C] each, zero at padded steps."""
        query, key, value = self.inputs(x, mask)
        strided = downsample_mask(mask, self.stride)
        real = strided[..., None]
        q, k, v = (
            (linear(source) * real).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for linear, source in ((self.q_t, query), (self.k_t, key), (self.v_t, value))
        )  # [B, H, T', C / H] each
        if self.reach:
            temporal = local_attention(q, k, v, strided, self.reach)
        else:
            temporal = F.scaled_dot_product_attention(q, k, v, strided[:, None, None])
        temporal = temporal.transpose(1, 2).flatten(2) * real
        q, k, v = self.channel_inputs(query, key, value, real)
        return temporal, channel_attention(q, k, v, strided, self.channel_heads)

    def inputs(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What queries, keys and values are made from, [B, C, T] -> [B, T', C] each."""
        if not self.convs:
            x = x[..., :: self.stride].transpose(1, 2)
            return x, x, x
        query, key, value = (
            norm(conv(x, mask)[0]).transpose(1, 2)
            for conv, norm in zip(self.convs, self.norms, strict=True)
        )
        return query, key, value

    def channel_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of the channel attention, [B, T', C] each."""
        return self.q_d(query) * real, self.k_d(key) * real, self.v_d(value) * real


class AslOutputs(NamedTuple):
    """Predictions, and the features that training contrasts and evaluates."""

    predictions: AnchorFreeOutputs
    features: list[Tensor]  # L x [B, C, T_l] after the neck


class Asl(nn.Module):
    """An anchor-free detector whose training weighs every frame by its action sensitivity."""

    Config: ClassVar[type] = AslConfig

    def __init__(self, config: AslConfig, decode: DecodeConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.decode_config = decode or DecodeConfig()
        self.encoder = make_encoder(
            config,
            stem=[_block(config, 0, 1) for _ in range(config.stem_layers)],
            branch=[
                _block(config, level + 1, config.scale_factor)
                for level in range(config.branch_layers)
            ],
            positions=config.abs_pos,
        )
        self.neck = make_neck(config)
        self.cls_head = make_class_head(config, config.head_kernel)
        self.reg_head = make_regression_head(config)
        self.ase = SensitivityEvaluator(config.neck_dim, config.num_classes, config)
        self.criterion = AslCriterion(self.ase, config)  # no module: `ase` trains under its name
        self.register_load_state_dict_pre_hook(_keep_evaluator)

    def forward(self, feats: Tensor, mask: Tensor) -> AslOutputs:
        """Predict at every point.

        Args:
            feats: [B, C, T], zero-padded at the end; T a multiple of the coarsest stride.
            mask: [B, T] bool, true = real row.
        """
        check_length(feats, self.config)
        levels, masks = self.encoder(feats, mask)  # L x [B, C, T_l], L x [B, T_l]
        features = self.neck(levels, masks)
        logits = [x.transpose(1, 2) for x in self.cls_head(features, masks)]  # L x [B, T_l, K]
        offsets = [x.transpose(1, 2)[:, :, None] for x in self.reg_head(features, masks)]
        points = points_on(features, self.config)
        predictions = AnchorFreeOutputs(masks, points, logits, offsets)  # L x [B, T_l, 1, 2]
        return AslOutputs(predictions, features)

    def loss(self, outputs: AslOutputs, targets: Targets) -> dict[str, Tensor]:
        """Sensitivity-weighted losses of one training batch (Eq. 15)."""
        return self.criterion(outputs.predictions, outputs.features, targets)

    def decode(self, outputs: AslOutputs) -> list[GridDetections]:
        """Candidates of each sequence before NMS; the evaluator has no part in it (Sec. 3.4)."""
        return decode_levels(outputs.predictions, self.decode_config)

    def padded_len(self, length_grid: int) -> int:
        """Length an inference sequence is padded to.

        Attention of both kinds leaves padded steps out, so only the kernels reach them: inside
        the window a tail as long as the widest kernel reaches on the coarsest level gives what
        the full window would. Beyond it the same tail is the rule; it stretches the position
        table.
        """
        config = self.config
        top = config.strides[-1]
        reach = max(config.head_kernel, config.embed_kernel, 3) // 2
        windows = 1.0 if length_grid <= config.window_len else config.max_buffer_len_factor
        longest = int(config.window_len * windows) // top * top
        return max(
            round_up(length_grid, top), min(round_up(length_grid, top) + reach * top, longest)
        )

    def max_len(self) -> int:
        """The longest sequence that is taken in one piece."""
        return longest_len(self.padded_len, self.config)

    def loss_state(self) -> dict[str, float]:
        """The moving normaliser of the losses, where there is one."""
        moving = self.config.loss_norm == "ema"
        return self.criterion.normalizer.state() if moving else {}

    def load_loss_state(self, state: dict[str, float]) -> None:
        """Take back what `loss_state` gave."""
        if self.config.loss_norm == "ema":
            self.criterion.normalizer.load(state)


def _block(config: AslConfig, level: int, stride: int) -> TransformerBlock:
    """A block that ends on `level`."""
    attention = TimeChannelAttention(
        config.embed_dim,
        config.num_heads,
        window=config.windows[level],
        stride=stride,
        convs=config.attention_convs,
        channel_share=config.channel_share,
        channel_heads=config.channel_heads,
        dropout=config.dropout,
    )
    return TransformerBlock(
        config.embed_dim,
        attention,
        stride=stride,
        dropout=config.dropout,
        drop_path_prob=config.drop_path,
    )


def _keep_evaluator(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let weights without any of `ase.*` load for inference, which has no use for it."""
    name = f"{prefix}ase."
    if not any(key.startswith(name) for key in state):
        own = model.get_submodule("ase").state_dict()
        state.update({f"{name}{key}": value for key, value in own.items()})
