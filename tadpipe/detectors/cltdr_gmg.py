"""CLTDR-GMG: Temporal Action Localization with Cross Layer Task Decoupling and Refinement.

Li et al., AAAI 2025.
Order: CltdrGmgConfig -> GmgMixer (encoder, Eq. 1-4) -> CrossLayerAttention, CrossLayerFusion,
RefineHead (decoder, Eq. 5-12) -> varifocal_loss (Eq. 13) -> CltdrGmg -> remap_official_keys.
Shapes: B batch, C channels, T feature-grid length, L levels of lengths T_l and strides 2^l, K
classes, N points of all levels, J = num_bins + 1 bins of a boundary.
Paper and release differ in many points; this is the release, the differences are named where they
are. Nothing inside a block or between levels is masked, so the padded length is an input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.actionformer import remap_official_keys as unwrap_checkpoint
from tadpipe.detectors.parts.assign import assign_outputs, positive_mask
from tadpipe.detectors.parts.conv import GridConv1d, MaskedConv1d, PointwiseConv1d, with_noise
from tadpipe.detectors.parts.decode import DecodeConfig, decode_levels
from tadpipe.detectors.parts.heads import (
    make_class_head,
    make_regression_head,
    make_trunk,
    run_trunk,
)
from tadpipe.detectors.parts.lengths import check_length, full_padded_len, longest_len
from tadpipe.detectors.parts.losses import LossNormalizer, regression_weight, sigmoid_focal_loss
from tadpipe.detectors.parts.pyramid import make_encoder, make_neck, per_level, points_on
from tadpipe.detectors.protocol import AnchorFreeOutputs, GridDetections, Targets
from tadpipe.detectors.tridet import (
    DepthwiseConv1d,
    check_pooling,
    check_pyramid,
    expected_offsets,
    group_losses,
    make_blocks,
    name_mixer,
)
from tadpipe.errors import ConfigError

SCALE_FACTOR = 2  # step between levels; the cross-layer modules know no other
FILTER_INIT_STD = 0.02  # of the weights and biases of the frequency filter
SHRINKAGE = 1e-3  # threshold below which the filter is zero
SHIFT_KERNEL = 7  # of the convolutions that shift the boundaries
REFINED_SHARE, COARSE_SHARE = 0.7, 0.3  # of the two groups of losses


@dataclass(frozen=True)
class CltdrGmgConfig:
    """CLTDR-GMG's model and losses; the defaults are those of the THUMOS14 I3D recipe."""

    in_channels: int  # C of the features
    num_classes: int  # K
    window_len: int = 2304  # grid steps of a training window, and what shorter videos are padded to
    backbone: Literal["gmg", "conv"] = "gmg"  # "conv" is ActionFormer's ablation
    embed_layers: int = 2  # convolutions before the stem
    stem_layers: int = 2  # blocks at full resolution
    branch_layers: int = 5  # blocks that go down by 2, one per further level
    embed_dim: int = 512  # width C of encoder and neck, a multiple of 16
    embed_kernel: int = 3  # kernel of the embedding convolutions
    embed_norm: bool = True  # channel norm in the embedding
    local_windows: int | tuple[int, ...] = 1  # w per level; the stem has 1, the first only pads
    mlp_dim: int = 768  # hidden width of the MLP of a block
    downsample: Literal["max", "avg"] = (
        "max"  # pooling between levels; "avg" adds a 1x1 convolution
    )
    conv_init_std: float = 0.0  # start of a block's depth-wise weights
    abs_pos: bool = False  # add a sinusoid position table after the embedding
    neck: Literal["identity", "fpn"] = "identity"  # "fpn" adds the top-down path
    neck_norm: bool = True  # channel norm in the neck
    regression_ranges: tuple[tuple[float, float], ...] = (
        (0.0, 4.0),
        (4.0, 8.0),
        (8.0, 16.0),
        (16.0, 32.0),
        (32.0, 64.0),
        (64.0, 10000.0),
    )  # offsets each level answers for, grid steps, both ends included
    head_dim: int = 512  # width of the heads
    head_kernel: int = 3  # kernel of the class, regression and refinement heads
    head_layers: int = 3  # convolutions of a head, the last one included
    head_norm: bool = True  # channel norm in the heads
    trident: bool = True  # boundaries as expectations over bins; else plain offsets, not refined
    boundary_kernel: int = 3  # kernel of the start and end heads
    num_bins: int = 16  # farthest coarse boundary of a point, in level strides
    cls_loss: Literal["varifocal", "focal"] = "focal"  # of the refined scores
    iou_power: float = 0.2  # a positive's refined class loss is multiplied by tIoU to this power
    max_buffer_len_factor: float = 6.0  # longest input, in windows
    centre_radius: float = 1.5  # centre sampling, in level strides; 0 = all points of an action
    loss_weight: float = 1.0  # of the regression loss; <= 0 balances it with the classification
    prior_prob: float = 0.01  # class probability at the start; 0 = no prior
    empty_classes: tuple[int, ...] = ()  # classes without annotation, held near probability 0
    label_smoothing: float = 0.0  # e: class targets y become y (1 - e) + e / (K + 1)
    input_noise: float = 0.05  # deviation of the noise on training features, padded steps too
    drop_path: float = 0.1  # stochastic depth; 0 also leaves the residual scales out
    init_loss_norm: float = 100.0  # start of the loss normaliser, positives per batch

    def __post_init__(self) -> None:
        check_pyramid(
            width=self.embed_dim,
            windows=self.windows,
            branch_layers=self.branch_layers,
            scale_factor=SCALE_FACTOR,
            window_len=self.window_len,
            regression_ranges=self.regression_ranges,
            kernels=(self.embed_kernel, self.head_kernel, self.boundary_kernel),
        )
        check_pooling(self.downsample, SCALE_FACTOR)
        if self.trident and self.num_bins < 1:
            raise ConfigError("The Trident head needs bins.", f"num_bins = {self.num_bins}")
        if self.input_noise < 0:
            raise ConfigError("Noise is not negative.", f"input_noise = {self.input_noise}")

    @property
    def scale_factor(self) -> int:
        """Step from one level to the next."""
        return SCALE_FACTOR

    @property
    def neck_dim(self) -> int:
        """Width after the neck."""
        return self.embed_dim

    @property
    def windows(self) -> tuple[int, ...]:
        """w of every encoder level."""
        return per_level(self.local_windows, self.branch_layers + 1)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels."""
        return tuple(SCALE_FACTOR**level for level in range(self.branch_layers + 1))


# --- encoder -----------------------------------------------------------------------------------


class GmgMixer(nn.Module):
    """Gated multi-granularity: instant, local and global branch (Eq. 1-4).

    The release has no ReLU gates, a filter of one complex scale and shift per channel in place of
    convolutions, a per-channel scale and shift as the fully connected layer, and it shrinks small
    filter values to zero.
    """

    decayed = ("w1", "w2")  # weights of the filter decay like those of convolutions

    def __init__(self, channels: int, *, window: int, init_std: float) -> None:
        super().__init__()
        # Real and imaginary parts of the filter's two layers.
        self.w1 = nn.Parameter(FILTER_INIT_STD * torch.randn(2, channels, 1))
        self.w2 = nn.Parameter(FILTER_INIT_STD * torch.randn(2, channels, 1))
        self.b1 = nn.Parameter(FILTER_INIT_STD * torch.randn(2, channels))
        self.b2 = nn.Parameter(FILTER_INIT_STD * torch.randn(2, channels))
        self.fc = DepthwiseConv1d(channels, 1, init_std=init_std)
        self.convw = DepthwiseConv1d(channels, window, init_std=init_std)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        everywhere = self._global(x)
        local = self.convw(x) * everywhere
        return self.fc(x) * local + local + everywhere + x  # Eq. 4

    def _global(self, x: Tensor) -> Tensor:
        """The spectrum times a filter computed from it, back in time; float32 throughout."""
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft(steps_last(x.float()), norm="ortho")  # [B, C, T // 2 + 1]
            kernel = _on_parts(F.relu, _affine(spectrum, self.w1, self.b1))
            kernel = _on_parts(_shrink, _affine(kernel, self.w2, self.b2))
            filtered = torch.fft.irfft(kernel * spectrum, n=x.shape[2], norm="ortho")
        return filtered.transpose(1, 2).contiguous().transpose(1, 2)  # back to [B, T, C] in memory


def steps_last(x: Tensor) -> Tensor:
    """[B, C, T] with the steps of a channel side by side in memory.

    Sequence by sequence, because torch copies a transposed matrix in blocks and a stack of them
    element by element.
    """
    return torch.stack([sequence.contiguous() for sequence in x])


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A complex scale [2, C, 1] and shift [2, C] per channel of x, complex [B, C, F]."""
    return x * torch.complex(weight[0], weight[1]) + torch.complex(bias[0], bias[1])[:, None]


def _on_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of real numbers to the real and the imaginary part."""
    return torch.view_as_complex(function(torch.view_as_real(x)))


_shrink = partial(F.softshrink, lambd=SHRINKAGE)


# --- decoder -----------------------------------------------------------------------------------


class Upsampler(nn.ConvTranspose1d):
    """Dense, T -> 2 T; in the memory layout it finds, see `parts.conv`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[B, C, T] -> [B, C, 2 T]."""
        weight = self.weight[:, :, None]
        out = F.conv_transpose2d(x[:, :, None], weight, self.bias, (1, 2), (0, 1), (0, 1))
        return out[:, :, 0]


def _downsampler(channels: int) -> GridConv1d:
    """Dense, 2 T -> T (depth-wise in the paper)."""
    return GridConv1d(channels, channels, 3, stride=2)


class CrossLayerAttention(nn.Module):
    """Adds what a neighbouring level knows, weighted per channel (Eq. 5-8); shared by the levels.

    From the coarser level it decouples classification (DCM), from the finer one regression (DRM).
    A level without that neighbour passes as it is (the paper decodes such levels not at all).
    """

    def __init__(self, channels: int, neighbour: Literal["coarser", "finer"]) -> None:
        super().__init__()
        coarser = neighbour == "coarser"
        self.step = 1 if coarser else -1  # the neighbour's level, from here
        self.resample = Upsampler(channels) if coarser else _downsampler(channels)
        self.conv_l = PointwiseConv1d(channels, channels)
        self.attn = PointwiseConv1d(channels, channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l] -> L x [B, C, T_l]; the mean runs over padded steps too."""
        merged = []
        for level, x in enumerate(levels):
            if not 0 <= level + self.step < len(levels):
                merged.append(x)
                continue
            other = self.resample(levels[level + self.step])  # [B, C, T_l]
            pooled = F.relu(other + self.conv_l(x)).mean(dim=2, keepdim=True)  # [B, C, 1]
            merged.append(x + other * self.attn(pooled).sigmoid())
        return merged


class CrossLayerFusion(nn.Module):
    """Each level plus its two neighbours (CLFF, Eq. 9), for the refinement."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = Upsampler(channels)
        self.down = _downsampler(channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """L x [B, C, T_l] -> L x [B, C, T_l]."""
        fused = []
        for level, x in enumerate(levels):
            if level + 1 < len(levels):
                x = x + self.up(levels[level + 1])
            if level > 0:
                x = x + self.down(levels[level - 1])
            fused.append(x)
        return fused


class Refinement(NamedTuple):
    """What the refinement head says about every point, L levels each."""

    factors: list[Tensor]  # L x [B, K, T_l], multiply the class logits
    start_shifts: list[Tensor]  # L x [B, K, T_l], grid steps, later is positive
    end_shifts: list[Tensor]  # L x [B, K, T_l], likewise


class RefineHead(nn.Module):
    """Corrections of coarse scores and boundaries, per class (per step only in the paper)."""

    def __init__(
        self,
        in_channels: int,
        head_dim: int,
        num_classes: int,
        *,
        num_layers: int,
        kernel_size: int,
        norm: bool,
    ) -> None:
        super().__init__()
        self.head, self.norm = make_trunk(
            in_channels, head_dim, num_layers=num_layers, kernel_size=kernel_size, norm=norm
        )
        width = head_dim if num_layers > 1 else in_channels
        self.factor = MaskedConv1d(width, num_classes, kernel_size)
        self.start_shift = MaskedConv1d(width, num_classes, SHIFT_KERNEL)
        self.end_shift = MaskedConv1d(width, num_classes, SHIFT_KERNEL)

    def forward(self, levels: list[Tensor], masks: list[Tensor]) -> Refinement:
        """L x [B, C, T_l], L x [B, T_l] -> corrections."""
        trunk = [
            run_trunk(self.head, self.norm, x, mask) for x, mask in zip(levels, masks, strict=True)
        ]
        return Refinement(
            *(
                [conv(x, mask)[0] for x, mask in zip(trunk, masks, strict=True)]
                for conv in (self.factor, self.start_shift, self.end_shift)
            )
        )


def refine_offsets(coarse: Tensor, start_shift: Tensor, end_shift: Tensor, stride: int) -> Tensor:
    """Shift both boundaries of a level (Eq. 11-12) but never past their point.

    Args:
        coarse: [B, T, K, 2] in strides; the shifts: [B, K, T] in grid steps.
    """
    shifts = torch.stack((-start_shift, end_shift), dim=3).transpose(1, 2)  # [B, T, K, 2]
    # ReLU last: it stops the infinite slope that tIoU to a power below 1 has at tIoU 0.
    return F.relu(coarse + shifts.float() / stride)


# --- losses ------------------------------------------------------------------------------------


def varifocal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss (Zhang et al., 2021) with class targets in place of tIoU, element-wise.

    As released, any target above 0 weighs as itself. Smoothed targets are all above 0, so that
    the focal weight of negatives then gives way to the constant e / (K + 1).
    """
    logits = logits.float()
    focal = alpha * (logits.sigmoid() - targets).abs() ** gamma
    weight = torch.where(targets > 0, targets, focal)
    return weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


CLASS_LOSSES = {"focal": sigmoid_focal_loss, "varifocal": varifocal_loss}


class GroupLosses(NamedTuple):
    """Losses of the refined or of the coarse outputs, without the weight of regression."""

    cls: Tensor
    reg: Tensor
    norm: float  # the normaliser they were divided by


class CltdrGmgOutputs(NamedTuple):
    """Refined outputs as in AnchorFreeOutputs, and the coarse ones, which train too."""

    masks: list[Tensor]  # L x [B, T_l] bool
    points: list[Tensor]  # L x [T_l, 4]: position, range low, range high, level stride
    logits: list[Tensor]  # L x [B, T_l, K] refined
    offsets: list[Tensor]  # L x [B, T_l, 1 or K, 2] refined, >= 0, in strides of the level
    coarse_logits: list[Tensor]  # L x [B, T_l, K]
    coarse_offsets: list[Tensor]  # L x [B, T_l, 1 or K, 2]

    @property
    def refined(self) -> AnchorFreeOutputs:
        """What detections come from."""
        return AnchorFreeOutputs(self.masks, self.points, self.logits, self.offsets)

    @property
    def coarse(self) -> AnchorFreeOutputs:
        """What the decoupled heads say before refinement."""
        return AnchorFreeOutputs(self.masks, self.points, self.coarse_logits, self.coarse_offsets)


# --- detector ----------------------------------------------------------------------------------


class CltdrGmg(nn.Module):
    """One-stage detector whose tasks read different levels and are reconciled by a third head."""

    Config: ClassVar[type] = CltdrGmgConfig

    def __init__(self, config: CltdrGmgConfig, decode: DecodeConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.decode_config = decode or DecodeConfig()
        width = config.embed_dim
        stem, branch = make_blocks(config, partial(GmgMixer, width), downsample=config.downsample)
        positions = config.abs_pos and config.backbone == "gmg"  # "conv" has no table
        self.backbone = make_encoder(config, stem, branch, positions=positions)
        self.neck = make_neck(config)
        self.cls_decoupling = CrossLayerAttention(width, "coarser")
        self.reg_decoupling = CrossLayerAttention(width, "finer")
        self.fusion = CrossLayerFusion(width)
        self.cls_head = make_class_head(config, config.head_kernel)
        self.start_head, self.end_head = (
            make_class_head(config, config.boundary_kernel) if config.trident else None
            for _ in ("start", "end")
        )
        self.reg_head = make_regression_head(
            config, out_channels=2 * (config.num_bins + 1) if config.trident else 2
        )
        self.refine_head = RefineHead(
            width,
            config.head_dim,
            config.num_classes,
            num_layers=config.head_layers,
            kernel_size=config.head_kernel,
            norm=config.head_norm,
        )
        self.normalizer = LossNormalizer(config.init_loss_norm)
        self.loss_state, self.load_loss_state = self.normalizer.state, self.normalizer.load

    def forward(self, feats: Tensor, mask: Tensor) -> CltdrGmgOutputs:
        """Predict at every point of every level.

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
        coarse_logits = [
            x.transpose(1, 2) for x in self.cls_head(self.cls_decoupling(levels), masks)
        ]  # L x [B, T_l, K]
        refinement: Refinement = self.refine_head(self.fusion(levels), masks)
        logits = [
            coarse * factor.transpose(1, 2)  # a product of logits; sqrt of scores in Eq. 10
            for coarse, factor in zip(coarse_logits, refinement.factors, strict=True)
        ]
        coarse_offsets, offsets = self._offsets(levels, masks, refinement)
        points = points_on(levels, config)
        return CltdrGmgOutputs(masks, points, logits, offsets, coarse_logits, coarse_offsets)

    def _offsets(
        self, levels: list[Tensor], masks: list[Tensor], refinement: Refinement
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Coarse and refined offsets, L x [B, T_l, 1 or K, 2] each."""
        maps = self.reg_head(self.reg_decoupling(levels), masks)  # L x [B, 2 or 2 J, T_l]
        if self.start_head is None or self.end_head is None:
            plain = [x.transpose(1, 2)[:, :, None] for x in maps]
            return plain, plain
        # The boundary heads read the levels themselves, not those decoupled for regression, and
        # do not train the encoder (release).
        detached = [x.detach() for x in levels]
        starts = self.start_head(detached, masks)  # L x [B, K, T_l]
        ends = self.end_head(detached, masks)
        coarse = [expected_offsets(*x) for x in zip(starts, ends, maps, strict=True)]
        _, start_shifts, end_shifts = refinement
        shifted = zip(coarse, start_shifts, end_shifts, self.config.strides, strict=True)
        return coarse, [refine_offsets(*x) for x in shifted]

    def loss(self, outputs: CltdrGmgOutputs, targets: Targets) -> dict[str, Tensor]:
        """Classification and weighted regression loss, refined and coarse outputs mixed."""
        refined, coarse = self.loss_groups(outputs, targets)
        weights = [
            regression_weight(self.config.loss_weight, group.cls, group.reg)
            for group in (refined, coarse)
        ]
        return {
            "cls": REFINED_SHARE * refined.cls + COARSE_SHARE * coarse.cls,
            "reg": REFINED_SHARE * weights[0] * refined.reg
            + COARSE_SHARE * weights[1] * coarse.reg,
        }

    def loss_groups(
        self, outputs: CltdrGmgOutputs, targets: Targets
    ) -> tuple[GroupLosses, GroupLosses]:
        """Losses of the refined and of the coarse outputs; each group moves the normaliser.

        Eq. 13 has the refined ones alone, with separate counts for positives and negatives.
        """
        config = self.config
        assigned, mask = assign_outputs(
            outputs.refined, targets, config.num_classes, centre_radius=config.centre_radius
        )
        positive_count = int(positive_mask(assigned, mask).sum())
        groups = []
        for found, class_loss, iou_power in (
            (outputs.refined, CLASS_LOSSES[config.cls_loss], config.iou_power),
            (outputs.coarse, sigmoid_focal_loss, None),
        ):
            norm = self.normalizer.update(positive_count)
            cls_loss, reg_loss = group_losses(
                found,
                mask,
                assigned,
                label_smoothing=config.label_smoothing,
                per_class=config.trident,
                iou_power=iou_power if config.trident else None,
                class_loss=class_loss,
            )
            groups.append(GroupLosses(cls_loss / norm, reg_loss / norm, norm))
        return groups[0], groups[1]

    def decode(self, outputs: CltdrGmgOutputs) -> list[GridDetections]:
        """Candidates of each sequence before NMS, from the refined outputs."""
        return decode_levels(outputs.refined, self.decode_config)

    def padded_len(self, length_grid: int) -> int:
        """Length an inference sequence is padded to; the scores depend on it."""
        return full_padded_len(length_grid, self.config)

    def max_len(self) -> int:
        """The longest sequence that is taken in one piece."""
        return longest_len(self.padded_len, self.config)


MIXER_LAYERS = ("w1", "w2", "b1", "b2", "fc", "convw")
OURS = {  # official module -> ours
    "decls.contrans.": "cls_decoupling.resample.",
    "decls.conv_l.": "cls_decoupling.conv_l.",
    "decls.attn.1.": "cls_decoupling.attn.",
    "dereg.down.": "reg_decoupling.resample.",
    "dereg.conv_l.": "reg_decoupling.conv_l.",
    "dereg.attn.1.": "reg_decoupling.attn.",
    "cross_level.convtrans.": "fusion.up.",
    "cross_level.conv.": "fusion.down.",
    "refineHead.head.": "refine_head.head.",
    "refineHead.norm.": "refine_head.norm.",
    "refineHead.prob_head.": "refine_head.factor.",
    "refineHead.s_offset_head.": "refine_head.start_shift.",
    "refineHead.e_offset_head.": "refine_head.end_shift.",
}
DEAD = "refineHead.scale."  # in every official checkpoint, read by nothing


def remap_official_keys(checkpoint: Mapping[str, Any], *, ema: bool = True) -> dict[str, Tensor]:
    """Weights of an official checkpoint under our names; the values are not touched.

    Unwraps as for ActionFormer, renames the modules of the paper, and leaves out the scales of
    the refinement head, which the release never reads.
    """
    state = unwrap_checkpoint(checkpoint, ema=ema)
    return {_our_name(name): value for name, value in state.items() if not name.startswith(DEAD)}


def _our_name(name: str) -> str:
    for theirs, ours in OURS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name_mixer(name, MIXER_LAYERS)
