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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.actionformer import ConvBlock
from tadpipe.detectors.actionformer import remap_official_keys as unwrap_checkpoint
from tadpipe.detectors.parts.assign import (
    Assignment,
    assign_outputs,
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
    with_noise,
)
from tadpipe.detectors.parts.decode import DecodeConfig, decode_levels
from tadpipe.detectors.parts.heads import make_class_head, make_regression_head
from tadpipe.detectors.parts.lengths import check_length, full_padded_len, longest_len
from tadpipe.detectors.parts.losses import (
    LossNormalizer,
    diou_loss,
    offset_iou,
    sigmoid_focal_loss,
    smooth_labels,
    weighted,
)
from tadpipe.detectors.parts.pyramid import make_encoder, make_neck, per_level, points_on
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


class BlockConfig(Protocol):
    """What stem and branch are built from: fields or properties of a detector's configuration."""

    @property
    def backbone(self) -> str: ...
    @property
    def stem_layers(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def mlp_dim(self) -> int: ...
    @property
    def scale_factor(self) -> int: ...
    @property
    def windows(self) -> tuple[int, ...]: ...
    @property
    def conv_init_std(self) -> float: ...
    @property
    def drop_path(self) -> float: ...


def make_blocks(
    config: BlockConfig, mixer: Callable[..., nn.Module], *, downsample: str
) -> tuple[list[nn.Module], list[nn.Module]]:
    """The blocks of stem and branch; those of the stem have window 1 and no drop path.

    Args:
        mixer: makes the mixer of a block from `window` and `init_std`; backbone "conv" has none.
    """

    def block(window: int, stride: int, drop_path_prob: float) -> nn.Module:
        if config.backbone == "conv":
            return ConvBlock(config.embed_dim, stride=stride)
        return SgpBlock(
            config.embed_dim,
            config.mlp_dim,
            mixer(window=window, init_std=config.conv_init_std),
            stride=stride,
            downsample=downsample,
            drop_path_prob=drop_path_prob,
        )

    stem = [block(1, 1, 0.0) for _ in range(config.stem_layers)]
    branch = [block(w, config.scale_factor, config.drop_path) for w in config.windows[1:]]
    return stem, branch


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
    outputs: AnchorFreeOutputs,
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
        outputs: predictions on all levels; mask: [B, N] real points.
        per_class: regression counts (point, class) pairs instead of points.
        iou_power: the class loss of a positive pair is multiplied by its tIoU to this power,
            which gets gradients too; None = no factor.
    """
    pairs = positives(assigned, mask, per_class=per_class)
    logits = torch.cat(outputs.logits, dim=1)  # [B, N, K]
    predicted = offsets_at(torch.cat(outputs.offsets, dim=1), pairs)  # [P, 2]
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
        mixer = partial(SgpMixer, config.embed_dim, factor=config.sgp_factor)
        stem, branch = make_blocks(config, mixer, downsample=config.downsample)
        positions = config.abs_pos and config.backbone == "sgp"  # "conv" has no table
        self.backbone = make_encoder(config, stem, branch, positions=positions)
        self.neck = make_neck(config)
        self.cls_head = make_class_head(config, config.head_kernel)
        self.start_head, self.end_head = (
            make_class_head(config, config.boundary_kernel) if config.trident else None
            for _ in ("start", "end")
        )
        self.reg_head = make_regression_head(
            config, out_channels=2 * (config.num_bins + 1) if config.trident else 2
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
        points = points_on(levels, config)
        return AnchorFreeOutputs(masks, points, logits, offsets)

    def loss(self, outputs: AnchorFreeOutputs, targets: Targets) -> dict[str, Tensor]:
        """Classification and weighted regression loss of one training batch."""
        cls_loss, reg_loss = self.loss_terms(outputs, targets)
        return weighted(cls_loss, reg_loss, self.config.loss_weight)

    def loss_terms(self, outputs: AnchorFreeOutputs, targets: Targets) -> tuple[Tensor, Tensor]:
        """Both losses without weight; moves the normaliser."""
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
            per_class=config.trident,
            iou_power=config.iou_power if config.trident else None,
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
