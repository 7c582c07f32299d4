"""DyFADet: Dynamic Feature Aggregation for Temporal Action Detection (Yang et al., ECCV 2024).

Order: DyfadetConfig -> DyneMixer (encoder, Eq. 5-7) -> Shift, gates, DfaPath (dynamic feature
aggregation, Eq. 2-4) -> DepthPath (Eq. 9) -> DyHeadLayer (Eq. 8), DynamicTrunk -> Dyfadet ->
remap_official_keys. Where paper and release differ we follow the release, whose weights need it:
Eq. 4 multiplies the gate with the shifted features once, the release twice; its K form mixes up
the order of channels and taps; the scale paths gate by GeReTanH whatever is configured.
Shapes: B batch, C channels, T feature-grid length, A taps of the head kernel, L levels of lengths
T_l and strides s^l, K classes. Nothing in an encoder block is masked, so padded length matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.parts.assign import assign_outputs, positive_mask
from tadpipe.detectors.parts.conv import ChannelNorm, GridConv1d, with_noise
from tadpipe.detectors.parts.decode import DecodeConfig, decode_levels
from tadpipe.detectors.parts.heads import ClassHead, RegressionHead
from tadpipe.detectors.parts.lengths import check_length, full_padded_len, longest_len
from tadpipe.detectors.parts.losses import LossNormalizer, weighted
from tadpipe.detectors.parts.pyramid import make_encoder, make_neck, per_level, points_on
from tadpipe.detectors.protocol import AnchorFreeOutputs, GridDetections, Targets
from tadpipe.detectors.tridet import (
    DepthwiseConv1d,
    check_pooling,
    check_pyramid,
    group_losses,
    make_blocks,
    wide_kernel,
)
from tadpipe.detectors.tridet import remap_official_keys as remap_encoder_keys
from tadpipe.errors import CheckpointError, ConfigError

SHIFT_ATOL = 1e-3  # averaged weights keep constant kernels only to rounding
HEAD_STD = 0.01  # of the weights that a head starts with

DynamicType = Literal["c", "k", "ck"]
Gate = Literal["geretanh", "retanh", "relu", "sigmoid"]
Activation = Literal["relu", "lrelu", "gelu"]


@dataclass(frozen=True)
class DyfadetConfig:
    """DyFADet's model and losses; the defaults are those of the THUMOS14 I3D recipe."""

    in_channels: int  # C of the features
    num_classes: int  # K
    window_len: int = 2304  # grid steps of a training window, and what shorter videos are padded to
    backbone: Literal["dyne", "conv"] = "dyne"  # "conv" is ActionFormer's ablation
    embed_layers: int = 2  # convolutions before the stem
    stem_layers: int = 2  # blocks at full resolution
    branch_layers: int = 5  # blocks that go down, one per further level
    scale_factor: int = 2  # s, step from one level to the next
    embed_dim: int = 512  # width C, a multiple of 16
    embed_kernel: int = 3  # kernel of the embedding convolutions
    embed_norm: bool = True  # channel norm in the embedding
    dyne_windows: int | tuple[int, ...] = 1  # w per level; the stem has 1, the first only pads
    dyne_factor: float = 5.0  # k: the wide kernel of a block is about (w + 1) k
    mlp_dim: int = 768  # hidden width of the MLP of a block
    conv_init_std: float = 0.0  # start of a block's depth-wise weights
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
    )  # offsets each level answers for, grid steps, both ends included
    dynamic_head: bool = True  # False: ActionFormer's static heads
    dynamic_type: DynamicType = "c"  # what has a gate of its own: channels, taps, or both
    gate: Gate = "geretanh"  # of the depth paths; the scale paths always have "geretanh"
    gate_tau: float = 1.5  # tau of "geretanh"
    head_activation: Activation = "relu"  # behind the dynamic layers of the class head
    head_dim: int = 512  # width of the heads
    head_kernel: int = 3  # A, kernel of the heads
    head_layers: int = 3  # layers of a head, the last convolution included
    max_buffer_len_factor: float = 6.0  # longest input, in windows
    centre_radius: float = 1.5  # centre sampling, in level strides; 0 = all points of an action
    loss_weight: float = 1.0  # of the regression loss; <= 0 balances it with the classification
    prior_prob: float = 0.01  # class probability at the start; 0 = no prior
    empty_classes: tuple[int, ...] = ()  # classes without annotation, held near probability 0
    label_smoothing: float = 0.0  # e: class targets y become y (1 - e) + e / (K + 1)
    input_noise: float = 0.0  # deviation of the noise on training features, padded steps too
    drop_path: float = 0.1  # stochastic depth; 0 also leaves the residual scales out
    init_loss_norm: float = 100.0  # start of the loss normaliser, positives per batch

    def __post_init__(self) -> None:
        check_pyramid(
            width=self.embed_dim,
            windows=self.windows,
            branch_layers=self.branch_layers,
            scale_factor=self.scale_factor,
            window_len=self.window_len,
            regression_ranges=self.regression_ranges,
            kernels=(self.embed_kernel, self.head_kernel),
        )
        check_pooling("max", self.scale_factor)
        if self.input_noise < 0:
            raise ConfigError("Noise is not negative.", f"input_noise = {self.input_noise}")
        if not self.dynamic_head:
            return
        if self.head_layers < 2:
            raise ConfigError(
                "A dynamic head has at least one layer before its last convolution.",
                f"head_layers = {self.head_layers}",
            )
        widths = [self.neck_dim] + [self.head_dim] * (self.head_layers - 2)
        if self.head_kernel in widths:
            raise ConfigError(
                "The head kernel must differ from the width of a dynamic layer.",
                f"head_kernel = {self.head_kernel}, widths {widths}",
                "The release cannot tell the gates of channels and taps apart then.",
            )

    @property
    def windows(self) -> tuple[int, ...]:
        """w of every encoder level."""
        return per_level(self.dyne_windows, self.branch_layers + 1)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels."""
        return tuple(self.scale_factor**level for level in range(self.branch_layers + 1))


# --- encoder -----------------------------------------------------------------------------------


class DyneMixer(nn.Module):
    """Dynamic encoder: an instant branch, and a windowed one that can switch off (Eq. 5-6).

    Args:
        window: w, the small kernel; factor: k, how much wider the large one is.
    """

    def __init__(self, channels: int, *, window: int, factor: float, init_std: float) -> None:
        super().__init__()
        self.psi = DepthwiseConv1d(channels, window, init_std=init_std)
        self.fc = DepthwiseConv1d(channels, 1, init_std=init_std)
        self.convw = DepthwiseConv1d(channels, window, init_std=init_std)
        self.convkw = DepthwiseConv1d(channels, wide_kernel(window, factor), init_std=init_std)
        self.global_fc = DepthwiseConv1d(channels, 1, init_std=init_std)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]; the mean runs over padded steps too."""
        # "Squeeze" of Eq. 5 is a mean over time; the ReLU on the windowed branch is the difference
        # to TriDet's mixer.
        phi = F.relu(self.global_fc(x.mean(dim=2, keepdim=True)))  # [B, C, 1]
        return self.fc(x) * phi + F.relu(self.convw(x) + self.convkw(x)) * self.psi(x) + x


# --- dynamic feature aggregation ---------------------------------------------------------------


class Shift(nn.Module):
    """All taps of a kernel side by side. The release computes it by constant one-hot kernels.

    They stay in the state dict, do not train, and are checked when weights are loaded.
    """

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.taps = taps
        kernels = torch.eye(taps).repeat(channels, 1)[:, None]  # [C A, 1, A]
        self.weight = nn.Parameter(kernels, requires_grad=False)
        self.register_load_state_dict_pre_hook(_check_one_hot)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, T, A, C], a view: tap i of step t is step t + i - A // 2, or 0."""
        half = self.taps // 2
        padded = F.pad(x.transpose(1, 2), (0, 0, half, half))  # [B, T + A - 1, C]
        return padded.unfold(1, self.taps, 1).transpose(2, 3)


def _check_one_hot(shift: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse kernels that are not the shift that is computed."""
    name = f"{prefix}weight"
    own = shift.get_parameter("weight")
    stored = state.get(name, own)
    if stored.shape == own.shape and not torch.allclose(
        stored.to(own), own, rtol=0.0, atol=SHIFT_ATOL
    ):
        raise CheckpointError(
            "A shift has other kernels than the one-hot ones.",
            f"{name}: they are constants of DyFADet's release.",
            "These weights are not from that release, or they are damaged.",
        )


def taps_first(conv: nn.Conv1d, taps: int) -> Tensor:
    """The matrix of a kernel-1 convolution of shifted features, [C', C A] -> [C', A C]."""
    return conv.weight[:, :, 0].unflatten(1, (-1, taps)).transpose(1, 2).flatten(1)


class ShiftedConv(NamedTuple):
    """A convolution of shifted features, as one of the features themselves.

    Tap j of a kernel on tap i of the features meets what is i + j - (A - 1) steps away, so that
    2 A - 1 taps do the work of A x A. Only at both ends there is a difference: the outer kernel's
    padding is zero, not shifted features. `ends` is what the sum there has too much.
    """

    weight: Tensor  # [C', C, 2 A - 1]
    bias: Tensor  # [C']
    ends: Tensor  # [2, h, h, C', C], h = A // 2: from step p to step t, counted from start or end

    @classmethod
    def of(cls, conv: nn.Conv1d) -> ShiftedConv:
        """Args: conv: on C A channels, kernel A."""
        assert conv.bias is not None
        taps = conv.kernel_size[0]  # A
        pairs = conv.weight.unflatten(1, (-1, taps))  # [C', C, A (i), A (j)]
        rows = [F.pad(pairs[:, :, i], (i, taps - 1 - i)) for i in range(taps)]
        ends = torch.stack([_past_the_start(pairs), _past_the_start(pairs.flip(2, 3))])
        return cls(torch.stack(rows).sum(0), conv.bias, ends)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C', T]."""
        out = F.conv2d(
            x[:, :, None],
            self.weight[:, :, None],
            self.bias,
            padding=(0, self.weight.shape[2] // 2),
        )[:, :, 0]
        for side, step in enumerate((1, -1)):
            first = 0 if step == 1 else -1
            for t, p in product(range(min(self.ends.shape[1], x.shape[2])), repeat=2):
                extra = x[:, :, first + step * p] @ self.ends[side, t, p].T  # [B, C']
                out[:, :, first + step * t] -= extra
        return out


def _past_the_start(pairs: Tensor) -> Tensor:
    """What kernel taps before the first step contribute, [C', C, A, A] -> [h, h, C', C]."""
    taps = pairs.shape[2]
    half = taps // 2
    ends = pairs.new_zeros(half, half, *pairs.shape[:2])
    for t, p, i in product(range(half), range(half), range(taps)):
        j = p - t + taps - 1 - i
        if 0 <= j < half - t:
            ends[t, p] += pairs[:, :, i, j]
    return ends


def gate_values(x: Tensor, kind: Gate, tau: float) -> Tensor:
    """phi of Eq. 3, element-wise; "geretanh" is exactly 0 for x <= 0.

    Args:
        tau: where "geretanh" rises fastest.
    """
    if kind == "relu":
        return F.relu(x)
    if kind == "sigmoid":
        return x.sigmoid()
    if kind == "retanh":
        return F.relu(x.tanh())
    low = torch.tensor(tau, dtype=x.dtype, device=x.device).tanh()
    return F.relu((torch.tanh(x - tau) + low) / (1 + low))


class GateConv(nn.Module):
    """The convolution of a gate, under the name it has in the release."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.gate_conv = GridConv1d(in_channels, out_channels, kernel_size, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C', T]."""
        return self.gate_conv(x)


class DfaPath(nn.Module):
    """Convolution whose taps are gated by the features themselves (Eq. 2-4), C -> C.

    Args:
        dynamic_type: "c" gates channels, "k" taps, "ck" every tap of every channel.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, dynamic_type: DynamicType, tau: float
    ) -> None:
        super().__init__()
        self.dynamic_type = dynamic_type
        self.taps = kernel_size
        self.tau = tau
        gates = {"c": channels, "k": kernel_size, "ck": channels * kernel_size}[dynamic_type]
        groups = 1 if dynamic_type == "k" else channels
        self.shift_conv = Shift(channels, kernel_size)
        self.kernel_conv = GateConv(channels, gates, kernel_size, groups)
        self.conv = nn.Conv1d(channels * kernel_size, channels, 1)
        self.norm = ChannelNorm(channels)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l], L x [B, T_l] -> L x [B, C, T_l]; the input is not masked first."""
        if self.dynamic_type == "k":
            weight, gated = self.conv.weight[:, :, 0], self._gated_by_tap
        else:
            weight, gated = taps_first(self.conv, self.taps), self._gated_by_channel
        return [
            self.norm(F.linear(gated(x), weight, self.conv.bias).transpose(1, 2)) * mask[:, None]
            for x, mask in zip(levels, masks, strict=True)
        ]

    # Eq. 4 multiplies gate and shifted features once, the release twice.

    def _gated_by_channel(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, T, A C]."""
        gate = gate_values(self.kernel_conv(x), "geretanh", self.tau)  # [B, C or C A, T]
        gate = gate.unflatten(1, (x.shape[1], -1)).permute(0, 3, 2, 1)  # [B, T, 1 or A, C]
        return (self.shift_conv(x.square()) * gate).flatten(2)

    def _gated_by_tap(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, T, C A]."""
        gate = gate_values(self.kernel_conv(x), "geretanh", self.tau)  # [B, A, T]
        shifted = self.shift_conv(x)  # [B, T, A, C]
        gated = shifted * gate.transpose(1, 2)[..., None]
        # The second factor is in order tap, channel, the first in order channel, tap.
        return shifted.transpose(2, 3).flatten(2) * gated.flatten(2)


class AttentionKernel(nn.Module):
    """What the depth path weighs its taps by: features per channel, gated per step.

    Args:
        gate: phi of the gate.
    """

    def __init__(self, channels: int, kernel_size: int, *, gate: Gate, tau: float) -> None:
        super().__init__()
        self.kind = gate
        self.tau = tau
        taps = channels * kernel_size
        self.convs = nn.Sequential(
            nn.Conv1d(taps, channels, kernel_size, padding=kernel_size // 2), ChannelNorm(channels)
        )
        self.gate = GateConv(taps, 1, kernel_size, 1)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l] -> L x [B, C, T_l]; both convolutions read shifted features."""
        conv, norm = self.convs
        assert isinstance(conv, nn.Conv1d)
        weigh, gate = ShiftedConv.of(conv), ShiftedConv.of(self.gate.gate_conv)
        return [norm(weigh(x)) * gate_values(gate(x), self.kind, self.tau) for x in levels]


class DepthPath(nn.Module):
    """Attention formation of the aggregation (Fig. 3b, Eq. 9), C -> C'."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, gate: Gate, tau: float
    ) -> None:
        super().__init__()
        self.taps = kernel_size
        self.shift_conv = Shift(in_channels, kernel_size)
        self.kernel_conv = AttentionKernel(in_channels, kernel_size, gate=gate, tau=tau)
        self.conv = nn.Conv1d(in_channels * kernel_size, out_channels, 1)
        self.norm = ChannelNorm(out_channels)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l], L x [B, T_l] -> L x [B, C', T_l]; the input is not masked first."""
        weight = taps_first(self.conv, self.taps)  # [C', A C]
        outputs = []
        for x, mask, kernel in zip(levels, masks, self.kernel_conv(levels), strict=True):
            kernel = kernel.transpose(1, 2)[:, :, None]  # [B, T, 1, C], the same for all taps
            u = (self.shift_conv(x) * kernel).flatten(2)  # [B, T, A C]
            out = F.linear(u, weight, self.conv.bias).transpose(1, 2)
            outputs.append(self.norm(out) * mask[:, None])
        return outputs


# --- heads -------------------------------------------------------------------------------------


class DyHeadLayer(nn.Module):
    """Joins each level with its neighbours, then aggregates in depth (Eq. 8-9).

    Args:
        scale_factor: step from one level to the next.
        activation: behind the depth path.
    """

    def __init__(
        self, config: DyfadetConfig, in_channels: int, out_channels: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.scale_factor = config.scale_factor
        self.scale_weight = nn.Parameter(torch.zeros(1))  # gamma, of the neighbours
        self.output_weight = nn.Parameter(torch.ones(1))  # alpha, of the level itself
        self.dynamic_convs = nn.ModuleList(
            DfaPath(
                in_channels,
                config.head_kernel,
                dynamic_type=config.dynamic_type,
                tau=config.gate_tau,
            )
            for _ in ("to the coarser level", "to the finer level")
        )
        self.depth_module = DepthPath(
            in_channels, out_channels, config.head_kernel, gate=config.gate, tau=config.gate_tau
        )
        self.norm = ChannelNorm(out_channels)  # unused in the release too; its weights hold it
        self.activation = activation

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l], L x [B, T_l] -> L x [B, C', T_l]."""
        step, (coarser, finer) = self.scale_factor, self.dynamic_convs
        top = len(levels) - 1
        # The paths work at the level they come from; its ends have nobody to send to.
        down = coarser(levels[:top], masks[:top])
        up = finer(levels[1:], masks[1:])
        joined = []
        for level, x in enumerate(levels):
            sent = []
            if level > 0:
                sent.append(down[level - 1][..., ::step])
            if level < top:
                sent.append(up[level].repeat_interleave(step, dim=2))
            x = self.output_weight * x
            joined.append(x + self.scale_weight * sum(sent) if sent else x)
        return [self.activation(x) for x in self.depth_module(joined, masks)]


class DynamicTrunk(nn.ModuleList):
    """All layers of a dynamic head but its last convolution.

    Neither paper nor spec says how they start. They start as the heads of RetinaNet (Lin et al.,
    ICCV 2017, Sec. 4.1): weights N(0, 0.01), no biases. With torch's start many random seeds leave
    one boundary's offsets at zero for good, or all classes at their prior for epochs
    (benchmarks/results/train_reference_dyfadet.md).
    """

    def __init__(self, config: DyfadetConfig, activation: nn.Module) -> None:
        widths = [config.neck_dim] + [config.head_dim] * (config.head_layers - 1)
        super().__init__(
            DyHeadLayer(config, width, config.head_dim, activation) for width in widths[:-1]
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                nn.init.normal_(layer.weight, std=HEAD_STD)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l], L x [B, T_l] -> L x [B, H, T_l]."""
        for layer in self:
            levels = layer(levels, masks)
        return levels


# --- detector ----------------------------------------------------------------------------------


class Dyfadet(nn.Module):
    """One-stage detector whose heads adapt their kernels to the features."""

    Config: ClassVar[type] = DyfadetConfig

    def __init__(self, config: DyfadetConfig, decode: DecodeConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.decode_config = decode or DecodeConfig()
        mixer = partial(DyneMixer, config.embed_dim, factor=config.dyne_factor)
        stem, branch = make_blocks(config, mixer, downsample="max")
        positions = config.abs_pos and config.backbone == "dyne"  # "conv" has no table
        self.backbone = make_encoder(config, stem, branch, positions=positions)
        self.neck = make_neck(config)
        dynamic = config.dynamic_head
        self.cls_trunk = DynamicTrunk(config, _activation(config)) if dynamic else None
        self.reg_trunk = DynamicTrunk(config, nn.ReLU()) if dynamic else None
        # Behind a trunk the head is its last convolution only.
        width = config.head_dim if dynamic else config.neck_dim
        num_layers = 1 if dynamic else config.head_layers
        self.cls_head = ClassHead(
            width,
            config.head_dim,
            config.num_classes,
            num_layers=num_layers,
            kernel_size=config.head_kernel,
            norm=True,
            prior_prob=config.prior_prob,
            empty_classes=config.empty_classes,
        )
        self.reg_head = RegressionHead(
            width,
            config.head_dim,
            len(config.strides),
            num_layers=num_layers,
            kernel_size=config.head_kernel,
            norm=True,
        )
        self.normalizer = LossNormalizer(config.init_loss_norm)
        self.loss_state, self.load_loss_state = self.normalizer.state, self.normalizer.load

    def forward(self, feats: Tensor, mask: Tensor) -> AnchorFreeOutputs:
        """Predict at every point.

        Args:
            feats: [B, C, T], zero-padded at the end; T a multiple of the coarsest stride. The
                outputs depend on T, see `padded_len`.
            mask: [B, T] bool, true = real row.
        """
        config = self.config
        check_length(feats, config)
        feats = with_noise(feats, config.input_noise if self.training else 0.0)
        levels, masks = self.backbone(feats, mask)  # L x [B, C, T_l], L x [B, T_l]
        levels = self.neck(levels, masks)
        named = levels if self.cls_trunk is None else self.cls_trunk(levels, masks)
        placed = levels if self.reg_trunk is None else self.reg_trunk(levels, masks)
        logits = [x.transpose(1, 2) for x in self.cls_head(named, masks)]  # L x [B, T_l, K]
        offsets = [x.transpose(1, 2)[:, :, None] for x in self.reg_head(placed, masks)]
        points = points_on(levels, config)
        return AnchorFreeOutputs(masks, points, logits, offsets)  # offsets L x [B, T_l, 1, 2]

    def loss(self, outputs: AnchorFreeOutputs, targets: Targets) -> dict[str, Tensor]:
        """Classification and weighted regression loss of one training batch."""
        cls_loss, reg_loss = self.loss_terms(outputs, targets)
        return weighted(cls_loss, reg_loss, self.config.loss_weight)

    def loss_terms(self, outputs: AnchorFreeOutputs, targets: Targets) -> tuple[Tensor, Tensor]:
        """Both losses without weight; moves the normaliser.

        Regression counts every class of a point, the normaliser the point.
        """
        config = self.config
        assigned, mask = assign_outputs(
            outputs, targets, config.num_classes, centre_radius=config.centre_radius
        )
        count = self.normalizer.update(int(positive_mask(assigned, mask).sum()))
        cls_loss, reg_loss = group_losses(
            outputs,
            mask,
            assigned,
            label_smoothing=config.label_smoothing,
            per_class=True,
            iou_power=None,
        )
        return cls_loss / count, reg_loss / count

    def decode(self, outputs: AnchorFreeOutputs) -> list[GridDetections]:
        """Candidates of each sequence before NMS."""
        return decode_levels(outputs, self.decode_config)

    def padded_len(self, length_grid: int) -> int:
        """Length an inference sequence is padded to; the scores depend on it."""
        return full_padded_len(length_grid, self.config)

    def max_len(self) -> int:
        """The longest sequence that is taken in one piece."""
        return longest_len(self.padded_len, self.config)


def _activation(config: DyfadetConfig) -> nn.Module:
    """Behind the dynamic layers of the class head; the regression head has ReLU."""
    return {"relu": nn.ReLU(), "lrelu": nn.LeakyReLU(0.01), "gelu": nn.GELU()}[
        config.head_activation
    ]


def remap_official_keys(checkpoint: Mapping[str, Any], *, ema: bool = True) -> dict[str, Tensor]:
    """Weights of an official checkpoint under our names; the values are not touched.

    The encoder's are those of TriDet; the dynamic layers of a head are a trunk of their own here.
    """
    state = remap_encoder_keys(checkpoint, ema=ema)
    return {_name_trunk(name): value for name, value in state.items()}


def _name_trunk(name: str) -> str:
    """`cls_head.head.0.norm.bias` -> `cls_trunk.0.norm.bias`; static heads keep their names."""
    for head in ("cls", "reg"):
        layer = name.removeprefix(f"{head}_head.head.")
        if layer != name and layer.split(".")[1] != "conv":
            return f"{head}_trunk.{layer}"
    return name
