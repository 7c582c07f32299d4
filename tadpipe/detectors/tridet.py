"""TriDet: Temporal Action Detection with Relative Boundary Modeling (Shi et al., CVPR 2023).

Order: TriDetConfig -> DepthwiseConv1d, SgpMixer, SgpBlock (scalable-granularity perception, Sec.
3.2) -> expected_offsets (Trident head, Sec. 3.3) -> group_losses (Sec. 3.4) -> TriDet ->
remap_official_keys.
Shapes: B batch, C channels, T feature-grid length, L levels of lengths T_l and strides s^l, K
classes, N points of all levels, J = num_bins + 1 bins of a boundary, the point's own among them,
P positives.
Inside a block nothing is masked, so padded steps take part and the padded length is an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.actionformer import ConvBlock
from tadpipe.detectors.actionformer import remap_official_keys as unwrap_checkpoint
from tadpipe.detectors.parts.assign import (
    Assignment,
    assign,
    offsets_at,
    positive_mask,
    positives,
)
from tadpipe.detectors.parts.conv import (
    ChannelNorm,
    GridConv1d,
    GridGroupNorm,
    MaxPool,
    MeanPool,
    PointwiseConv1d,
    downsample_mask,
    drop_path,
)
from tadpipe.detectors.parts.decode import DecodeConfig, decode_levels
from tadpipe.detectors.parts.heads import ClassHead, RegressionHead
from tadpipe.detectors.parts.losses import (
    LossNormalizer,
    diou_loss,
    offset_iou,
    regression_weight,
    sigmoid_focal_loss,
    smooth_labels,
)
from tadpipe.detectors.parts.pyramid import (
    PyramidEncoder,
    check_length,
    make_neck,
    make_points,
    round_up,
)
from tadpipe.detectors.protocol import AnchorFreeOutputs, GridDetections, Targets
from tadpipe.errors import ConfigError

NORM_GROUPS = 16  # of the group norm before a block's MLP; the width is a multiple

ClassLoss = Callable[[Tensor, Tensor], Tensor]  # logits, targets -> loss, element-wise


@dataclass(frozen=True)
class TriDetConfig:
    """TriDet's model and losses; the defaults are those of the THUMOS14 recipe."""

    in_channels: int  # C of the features
    num_classes: int  # K
    window_len: int = 2304  # grid steps of a training window, and what shorter videos are padded to
    backbone: Literal["sgp", "conv"] = "sgp"  # "conv" is ActionFormer's ablation
    embed_layers: int = 2  # convolutions before the stem
    stem_layers: int = 2  # blocks at full resolution
    branch_layers: int = 5  # blocks that go down, one per further level
    scale_factor: int = 2  # s, step from one level to the next
    embed_dim: int = 512  # width C, a multiple of 16
    embed_kernel: int = 3  # kernel of the embedding convolutions
    embed_norm: bool = True  # channel norm in the embedding
    sgp_windows: int | tuple[int, ...] = (
        1  # w per level; the stem always has 1, the first only pads
    )
    sgp_factor: float = 5.0  # k: the wide kernel of a block is about (w + 1) k
    mlp_dim: int = 768  # hidden width of the MLP of a block
    downsample: Literal["max", "avg"] = (
        "max"  # pooling between levels; "avg" adds a 1x1 convolution
    )
    conv_init_std: float = 0.0  # start of a block's depth-wise weights; at 0 they never train
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
    head_dim: int = 512  # width of the heads
    head_kernel: int = 3  # kernel of the class and regression heads
    head_layers: int = 3  # convolutions of a head, the last one included
    head_norm: bool = True  # channel norm in the heads
    trident: bool = True  # boundaries as expectations over bins; else plain offsets
    boundary_kernel: int = 3  # kernel of the start and end heads
    num_bins: int = 16  # farthest boundary of a point, in level strides
    iou_power: float = 0.2  # a positive's class loss is multiplied by tIoU to this power
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
            kernels=(self.embed_kernel, self.head_kernel, self.boundary_kernel),
        )
        check_pooling(self.downsample, self.scale_factor)
        if self.trident and self.num_bins < 1:
            raise ConfigError("The Trident head needs bins.", f"num_bins = {self.num_bins}")
        if self.input_noise < 0:
            raise ConfigError("Noise is not negative.", f"input_noise = {self.input_noise}")

    @property
    def windows(self) -> tuple[int, ...]:
        """w of every encoder level."""
        return per_level(self.sgp_windows, self.branch_layers + 1)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels."""
        return tuple(self.scale_factor**level for level in range(self.branch_layers + 1))


def per_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    """One number per level; a single number stands for all."""
    return (value,) * levels if isinstance(value, int) else value


def check_pyramid(
    *,
    width: int,
    windows: Sequence[int],
    branch_layers: int,
    scale_factor: int,
    window_len: int,
    regression_ranges: Sequence[tuple[float, float]],
    kernels: Sequence[int],
) -> None:
    """Refuse a pyramid of SGP blocks, or of blocks with the same shell, that cannot be built.

    Args:
        windows: of all levels; the first is used for padding only, so it may be anything.
    """
    levels = branch_layers + 1
    if width % NORM_GROUPS:
        raise ConfigError(
            f"The width must be a multiple of {NORM_GROUPS}, the groups of the norm.",
            f"embed_dim = {width}",
        )
    if len(windows) != levels:
        raise ConfigError(
            f"One window per level is needed, {levels} in all.",
            f"windows {tuple(windows)}, branch_layers = {branch_layers}",
        )
    if len(regression_ranges) != levels:
        raise ConfigError(
            f"One regression range per level is needed, {levels} in all.",
            f"regression_ranges = {tuple(regression_ranges)}",
        )
    if any(size < 1 or size % 2 == 0 for size in (*windows[1:], *kernels)):
        raise ConfigError(
            "Windows and kernels are odd.", f"windows {tuple(windows)}, kernels {tuple(kernels)}"
        )
    if window_len % scale_factor**branch_layers:
        raise ConfigError(
            "The window must be a multiple of the coarsest stride.",
            f"window_len = {window_len}, stride {scale_factor**branch_layers}",
        )


def check_pooling(downsample: str, scale_factor: int) -> None:
    """Max pooling keeps the middle of its kernel on the strided step only for even factors."""
    if downsample == "max" and scale_factor % 2:
        raise ConfigError(
            "Max pooling needs an even scale factor.", f"scale_factor = {scale_factor}"
        )


def full_padded_len(
    length_grid: int, *, window_len: int, strides: Sequence[int], windows: Sequence[int]
) -> int:
    """The published length of an inference sequence, for detectors whose scores depend on it.

    Up to the window everything is padded to it; beyond, to a multiple of the largest window in
    grid steps, the one of the stem included although the stem's blocks do not use it.
    """
    if length_grid <= window_len:
        return window_len
    step = max(
        stride * window if window > 1 else stride
        for stride, window in zip(strides, windows, strict=True)
    )
    # The levels must halve to the top as well; with one window for all levels they do.
    return round_up(length_grid, math.lcm(step, strides[-1]))


# --- encoder -----------------------------------------------------------------------------------


class DepthwiseConv1d(GridConv1d):
    """One kernel per channel, zero padding; a kernel of 1 is a scale and a shift."""

    def __init__(self, channels: int, kernel_size: int, *, init_std: float) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels)
        assert self.bias is not None
        nn.init.normal_(self.weight, 0.0, init_std)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        if self.weight.shape[2] == 1:
            assert self.bias is not None
            return torch.addcmul(self.bias[:, None], x, self.weight[:, 0])
        return super().forward(x)


def wide_kernel(window: int, factor: float) -> int:
    """Kernel of the coarse granularity: (w + 1) k rounded half to even, then up to odd."""
    size = round((window + 1) * factor)
    return size if size % 2 else size + 1


class SgpMixer(nn.Module):
    """Scalable-granularity perception: an instant branch and a windowed one (Eq. 1-4).

    Args:
        window: w, the small kernel; factor: k, how much wider the large one is.
    """

    def __init__(self, channels: int, *, window: int, factor: float, init_std: float) -> None:
        super().__init__()
        wide = wide_kernel(window, factor)
        self.psi = DepthwiseConv1d(channels, window, init_std=init_std)
        self.fc = DepthwiseConv1d(channels, 1, init_std=init_std)
        self.convw = DepthwiseConv1d(channels, window, init_std=init_std)
        self.convkw = DepthwiseConv1d(channels, wide, init_std=init_std)
        self.global_fc = DepthwiseConv1d(channels, 1, init_std=init_std)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]; the mean runs over padded steps too."""
        phi = F.relu(self.global_fc(x.mean(dim=2, keepdim=True)))  # [B, C, 1]
        return self.fc(x) * phi + (self.convw(x) + self.convkw(x)) * self.psi(x) + x


class SgpBlock(nn.Module):
    """The shell of a block around a mixer: down, norm, mixer, residual, group norm, MLP, residual.

    Later detectors put their own mixer into it.

    Args:
        mixer: [B, C, T] -> [B, C, T]; returns its input too, where the paper adds it.
        stride: step to the next level, 1 in the stem.
        downsample: "max", or "avg" with a 1x1 convolution behind it.
    """

    def __init__(
        self,
        channels: int,
        mlp_dim: int,
        mixer: nn.Module,
        *,
        stride: int,
        downsample: str,
        drop_path_prob: float,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.downsample = _pooling(channels, stride, downsample)
        self.ln = ChannelNorm(channels)
        self.mixer = mixer
        self.gn = GridGroupNorm(NORM_GROUPS, channels)
        self.mlp = nn.Sequential(
            PointwiseConv1d(channels, mlp_dim), nn.GELU(), PointwiseConv1d(mlp_dim, channels)
        )
        self.drop_path_out = drop_path(channels, drop_path_prob)
        self.drop_path_mlp = drop_path(channels, drop_path_prob)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, T], [B, T] -> [B, C, T / stride], [B, T / stride].

        Only the shortcut is masked: padded steps hold what mixer, norm and MLP make of them.
        """
        x = self.downsample(x)
        strided = downsample_mask(mask, self.stride)
        y = x * strided[:, None] + self.drop_path_out(self.mixer(self.ln(x)))
        return y + self.drop_path_mlp(self.mlp(self.gn(y))), strided


def _pooling(channels: int, stride: int, kind: str) -> nn.Module:
    """What takes a block one level down."""
    if stride == 1:
        return nn.Identity()
    if kind == "max":
        return MaxPool(stride)
    return nn.Sequential(MeanPool(stride), PointwiseConv1d(channels, channels))


# --- Trident head ------------------------------------------------------------------------------


def expected_offsets(start: Tensor, end: Tensor, bins: Tensor) -> Tensor:
    """Distances to both boundaries as expectations over the bins of a neighbourhood (Eq. 5-8).

    Bins outside the sequence have boundary logit 0.

    Args:
        start, end: boundary logits of a level, [B, K, T].
        bins: centre offsets, [B, 2 J, T], those to the left first; shared by the classes.
    Returns:
        [B, T, K, 2] in strides of the level, from 0 to J - 1.
    """
    size = bins.shape[1] // 2  # J
    left, right = bins.float().transpose(1, 2).split(size, dim=2)  # [B, T, J] each
    # Element j of a start's neighbourhood is J - 1 - j steps away, of an end's j steps.
    starts = F.pad(start.float(), (size - 1, 0)).unfold(2, size, 1)  # [B, K, T, J]
    ends = F.pad(end.float(), (0, size - 1)).unfold(2, size, 1)
    away = torch.arange(size, dtype=torch.float32, device=bins.device)  # [J]
    with torch.autocast(bins.device.type, enabled=False):  # distances up to J - 1 need float32
        to_start = (starts + left[:, None]).softmax(dim=3) @ away.flip(0)  # [B, K, T]
        to_end = (ends + right[:, None]).softmax(dim=3) @ away
    return torch.stack((to_start, to_end), dim=3).transpose(1, 2)


# --- losses ------------------------------------------------------------------------------------


def group_losses(
    logits: Tensor,
    offsets: Tensor,
    mask: Tensor,
    assigned: Assignment,
    *,
    label_smoothing: float,
    per_class: bool,
    iou_power: float | None,
    class_loss: ClassLoss = sigmoid_focal_loss,
) -> tuple[Tensor, Tensor]:
    """Classification and regression loss as sums over a batch (Sec. 3.4).

    Args:
        logits: [B, N, K]; offsets: [B, N, K or 1, 2]; mask: [B, N].
        per_class: regression counts (point, class) pairs instead of points.
        iou_power: the class loss of a positive pair is multiplied by its tIoU to this power,
            which gets gradients too; None = no factor.
    """
    pairs = positives(assigned, mask, per_class=per_class)
    predicted = offsets_at(offsets, pairs)  # [P, 2]
    wanted = assigned.offsets[pairs.sequence, pairs.point]
    losses = class_loss(logits, smooth_labels(assigned.classes, label_smoothing))  # [B, N, K]
    if iou_power is not None:
        factors = offset_iou(predicted, wanted) ** iou_power
        where = (pairs.sequence, pairs.point, pairs.label)
        losses = losses * torch.ones_like(losses).index_put(where, factors)
    return losses[mask].sum(), diou_loss(predicted, wanted).sum()


# --- detector ----------------------------------------------------------------------------------


class TriDet(nn.Module):
    """One-stage detector with SGP blocks and boundaries relative to their neighbourhood."""

    Config: ClassVar[type] = TriDetConfig

    def __init__(self, config: TriDetConfig, decode: DecodeConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.decode_config = decode or DecodeConfig()
        levels = len(config.strides)
        self.backbone = PyramidEncoder(
            in_channels=config.in_channels,
            embed_dim=config.embed_dim,
            embed_layers=config.embed_layers,
            embed_kernel=config.embed_kernel,
            embed_norm=config.embed_norm,
            position_len=config.window_len if _uses_positions(config) else None,
            stem=[_block(config, None) for _ in range(config.stem_layers)],
            branch=[_block(config, level + 1) for level in range(config.branch_layers)],
        )
        self.neck = make_neck(
            config.neck,
            config.embed_dim,
            config.neck_dim,
            levels,
            scale_factor=config.scale_factor,
            norm=config.neck_norm,
        )
        self.cls_head = _class_head(config, config.head_kernel)
        self.start_head = _class_head(config, config.boundary_kernel) if config.trident else None
        self.end_head = _class_head(config, config.boundary_kernel) if config.trident else None
        self.reg_head = RegressionHead(
            config.neck_dim,
            config.head_dim,
            levels,
            num_layers=config.head_layers,
            kernel_size=config.head_kernel,
            norm=config.head_norm,
            out_channels=2 * (config.num_bins + 1) if config.trident else 2,
        )
        self.normalizer = LossNormalizer(config.init_loss_norm)

    def forward(self, feats: Tensor, mask: Tensor) -> AnchorFreeOutputs:
        """Predict at every point.

        Args:
            feats: [B, C, T], zero-padded at the end; T a multiple of the coarsest stride. The
                outputs depend on T, see `padded_len`.
            mask: [B, T] bool, true = real row.
        """
        config = self.config
        check_length(
            feats.shape[2],
            coarsest_stride=config.strides[-1],
            longest_grid=int(config.window_len * config.max_buffer_len_factor),
        )
        if self.training and config.input_noise > 0:
            feats = feats + config.input_noise * torch.randn_like(feats)
        levels, masks = self.backbone(feats, mask)  # L x [B, C, T_l], L x [B, T_l]
        levels = self.neck(levels, masks)
        logits = [x.transpose(1, 2) for x in self.cls_head(levels, masks)]  # L x [B, T_l, K]
        maps = self.reg_head(levels, masks)  # L x [B, 2 or 2 J, T_l]
        if self.start_head is None or self.end_head is None:
            offsets = [x.transpose(1, 2)[:, :, None] for x in maps]  # L x [B, T_l, 1, 2]
        else:
            # The boundary heads do not train the encoder (release; the paper does not say).
            detached = [x.detach() for x in levels]
            starts = self.start_head(detached, masks)  # L x [B, K, T_l]
            ends = self.end_head(detached, masks)
            offsets = [expected_offsets(*x) for x in zip(starts, ends, maps, strict=True)]
        points = make_points(
            [x.shape[2] for x in levels], config.strides, config.regression_ranges, feats.device
        )
        return AnchorFreeOutputs(masks, points, logits, offsets)

    def loss(self, outputs: AnchorFreeOutputs, targets: Targets) -> dict[str, Tensor]:
        """Classification and weighted regression loss of one training batch."""
        cls_loss, reg_loss = self.loss_terms(outputs, targets)
        return {
            "cls": cls_loss,
            "reg": reg_loss * regression_weight(self.config.loss_weight, cls_loss, reg_loss),
        }

    def loss_terms(self, outputs: AnchorFreeOutputs, targets: Targets) -> tuple[Tensor, Tensor]:
        """Both losses without weight; moves the normaliser."""
        config = self.config
        mask = torch.cat(outputs.masks, dim=1)  # [B, N]
        assigned = assign(
            torch.cat(outputs.points),
            targets,
            config.num_classes,
            centre_radius=config.centre_radius,
        )
        count = self.normalizer.update(int(positive_mask(assigned, mask).sum()))
        cls_loss, reg_loss = group_losses(
            torch.cat(outputs.logits, dim=1),
            torch.cat(outputs.offsets, dim=1),
            mask,
            assigned,
            label_smoothing=config.label_smoothing,
            per_class=config.trident,
            iou_power=config.iou_power if config.trident else None,
        )
        return cls_loss / count, reg_loss / count

    def decode(self, outputs: AnchorFreeOutputs) -> list[GridDetections]:
        """Candidates of each sequence before NMS."""
        return decode_levels(outputs, self.decode_config)

    def padded_len(self, length_grid: int) -> int:
        """Length an inference sequence is padded to; the scores depend on it."""
        config = self.config
        return full_padded_len(
            length_grid,
            window_len=config.window_len,
            strides=config.strides,
            windows=config.windows,
        )

    def loss_state(self) -> dict[str, float]:
        """The moving normaliser of the losses."""
        return {"loss_norm": self.normalizer.value}

    def load_loss_state(self, state: dict[str, float]) -> None:
        """Take back what `loss_state` gave."""
        self.normalizer.value = float(state["loss_norm"])


def _uses_positions(config: TriDetConfig) -> bool:
    """The convolutional ablation has no position table."""
    return config.abs_pos and config.backbone == "sgp"


def _block(config: TriDetConfig, level: int | None) -> nn.Module:
    """A block that goes down to `level`; None = one of the stem, with window 1, no drop path."""
    stride = 1 if level is None else config.scale_factor
    if config.backbone == "conv":
        return ConvBlock(config.embed_dim, stride=stride)
    mixer = SgpMixer(
        config.embed_dim,
        window=1 if level is None else config.windows[level],
        factor=config.sgp_factor,
        init_std=config.conv_init_std,
    )
    return SgpBlock(
        config.embed_dim,
        config.mlp_dim,
        mixer,
        stride=stride,
        downsample=config.downsample,
        drop_path_prob=0.0 if level is None else config.drop_path,
    )


def _class_head(config: TriDetConfig, kernel_size: int) -> ClassHead:
    """The class head, or the start or end head, which give logits per class too."""
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


def remap_official_keys(checkpoint: Mapping[str, Any], *, ema: bool = True) -> dict[str, Tensor]:
    """Weights of an official checkpoint under our names; the values are not touched.

    Unwraps as for ActionFormer, and moves what belongs to the mixer of a block under its name.
    """
    state = unwrap_checkpoint(checkpoint, ema=ema)
    layers = ("psi", "fc", "convw", "convkw", "global_fc")
    return {name_mixer(name, layers): value for name, value in state.items()}


def name_mixer(name: str, layers: Sequence[str]) -> str:
    """An official key under our name: `backbone.stem.0.psi.weight` has `mixer.` before `psi`.

    Args:
        layers: attributes of the mixer that the release keeps in the block itself.
    """
    parts = name.split(".")
    if parts[0] == "backbone" and parts[1] in ("stem", "branch") and parts[3] in layers:
        parts.insert(3, "mixer")
    return ".".join(parts)
