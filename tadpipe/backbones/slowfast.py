"""SlowFast Networks for Video Recognition (Feichtenhofer, Fan, Malik, He, ICCV 2019).

Two residual networks see one clip: the slow pathway every alpha-th frame with many channels, the
fast pathway every frame with an eighth of them, joined by lateral connections.
Order: ConvNorm -> Bottleneck (Table 1) -> Pathway -> SlowFast (Sec. 3.3) -> builders.
Our key names are mmaction2's; `slowfast_keys` renames the others.
Shapes: N clips, F frames, C channels, H x W pixels, h x w cells, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from tadpipe.backbones.block_adapters import adapted_map, run_block, set_adapter_dtype
from tadpipe.backbones.conv_parts import (
    FixedBatchNorm,
    check_clips,
    initialise_convs,
    map_of_windows,
    set_conv_dtype,
)
from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.backbones.slowfast_keys import remap_official_keys as remap_official_keys
from tadpipe.backbones.tia import AdapterConfig, AdapterSite, Ladder
from tadpipe.backbones.tuning import keep_frozen_in_eval
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError

NORM_EPS = 1e-5
R50_BLOCKS = (3, 4, 6, 3)
R101_BLOCKS = (3, 4, 23, 3)
STAGES = (1, 2, 3, 4)
WIDENING = 4  # output channels of a block / its inner channels
LATERAL_RATIO = 2  # a lateral connection turns C fast channels into 2 C
FAST_STEM_FRAMES = 5

Release = Literal["mmaction", "pyslowfast", "pytorchvideo"]
RELEASE_PIXELS = {
    "mmaction": "mmaction-256",
    "pyslowfast": "pyslowfast",
    "pytorchvideo": "pyslowfast",
}
# side of the window with which pytorchvideo's head pools, made for crops of 224
HEAD_POOL = {"mmaction": 0, "pyslowfast": 0, "pytorchvideo": 7}


class ConvNorm(nn.Module):
    """Convolution without bias, padded to keep the size at stride 1, and batch norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        norm: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = FixedBatchNorm(outputs, eps=NORM_EPS) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, t, h, w] -> [N, C', t/s, h/s, w/s], rounded up."""
        y = self.conv(x)
        return y if self.bn is None else self.bn(y)


class Bottleneck(nn.Module):
    """(k, 1, 1), (1, 3, 3) and (1, 1, 1) convolutions beside a shortcut.

    Args:
        width: inner channels; the output has four times as many.
        frames: k, what the first convolution spans in time.
        stride: in space, of the second convolution.
        project: whether the shortcut is a convolution.
    """

    def __init__(self, inputs: int, width: int, *, frames: int, stride: int, project: bool) -> None:
        super().__init__()
        outputs, strides = WIDENING * width, (1, stride, stride)
        self.conv1 = ConvNorm(inputs, width, (frames, 1, 1))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), strides)
        self.conv3 = ConvNorm(width, outputs, (1, 1, 1))
        self.downsample = ConvNorm(inputs, outputs, (1, 1, 1), strides) if project else None
        self.adapter: nn.Module | None = None  # `tia.add_adapters` puts it here

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, t, h, w] -> [N, 4 * width, t, h/stride, w/stride]; an adapter comes last."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = nnf.relu(self.conv1(x), inplace=True)
        y = self.conv3(nnf.relu(self.conv2(y), inplace=True))
        return adapted_map(self.adapter, nnf.relu(y + shortcut, inplace=True))


class Pathway(nn.Module):
    """A residual network that keeps every frame.

    Args:
        width: of the stem and inner channels of the first stage; they double from stage to stage.
        blocks: per stage.
        stem_frames: what the first convolution spans in time.
        temporal: per stage, how many leading blocks span three frames instead of one.
        lateral_width: channels that come in from another pathway behind the stem; they double
            behind each of the stages 1 to 3. 0 = none.
        lateral: temporal kernel, temporal stride and norm of those connections.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: int,
        blocks: Sequence[int],
        stem_frames: int,
        temporal: Sequence[int],
        lateral_width: int = 0,
        lateral: tuple[int, int, bool] = (1, 1, False),
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, (stem_frames, 7, 7), (1, 2, 2))
        stages = []
        self.widths = []  # of the stages' outputs
        inputs = width + LATERAL_RATIO * lateral_width
        for i, count in enumerate(blocks):
            inner = width * 2**i
            stages.append(
                nn.ModuleList(
                    Bottleneck(
                        inputs if j == 0 else WIDENING * inner,
                        inner,
                        frames=3 if j < temporal[i] else 1,
                        stride=2 if i > 0 and j == 0 else 1,
                        project=j == 0,
                    )
                    for j in range(count)
                )
            )
            self.widths.append(WIDENING * inner)
            inputs = WIDENING * (inner + LATERAL_RATIO * lateral_width * 2**i)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        if lateral_width:
            frames, stride, norm = lateral
            self.conv1_lateral, self.layer1_lateral, self.layer2_lateral, self.layer3_lateral = (
                ConvNorm(
                    channels, LATERAL_RATIO * channels, (frames, 1, 1), (stride, 1, 1), norm=norm
                )
                for channels in [lateral_width * factor for factor in (1, 4, 8, 16)]
            )
        initialise_convs(self)
        for block in self.residual_blocks():  # so that their sum keeps its size
            assert block.conv3.bn is not None
            nn.init.constant_(block.conv3.bn.weight, sum(blocks) ** -0.5)

    def stem(self, x: Tensor) -> Tensor:
        """[N, Ci, t, H, W] -> [N, width, t, H/4, W/4]: convolution, norm, ReLU, max pooling."""
        x = nnf.relu(self.conv1(x), inplace=True)
        return nnf.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))

    def stage(self, number: int, x: Tensor, *, recompute: bool) -> Tensor:
        """One of the stages 1 to 4, its adapters included."""
        for block in self.blocks_of(number):
            x = run_block(block, x, recompute=recompute)
        return x

    def joined(self, number: int, x: Tensor, fast: Tensor) -> Tensor:
        """x with what comes in behind stage `number` (0 = the stem): slow channels first."""
        name = f"layer{number}_lateral" if number else "conv1_lateral"
        lateral = getattr(self, name)
        y = lateral(fast)
        return torch.cat((x, y if lateral.bn is None else nnf.relu(y, inplace=True)), dim=1)

    def blocks_of(self, number: int) -> list[Bottleneck]:
        return list(getattr(self, f"layer{number}"))

    def residual_blocks(self) -> list[Bottleneck]:
        return [block for number in STAGES for block in self.blocks_of(number)]

    def sites_of(self, number: int, pathway: str) -> list[AdapterSite]:
        """Places for adapters in one stage."""
        width = self.widths[number - 1]
        return [
            AdapterSite(block, width, stage=number, pathway=pathway)
            for block in self.blocks_of(number)
        ]


class SlowFast(nn.Module):
    """The network; a clip's feature is the mean of each pathway's last map, slow | fast.

    Args:
        name: the backbone's name in the name dictionary.
        pixels: recipe that turns frames into clips.
        blocks: residual blocks per stage, the same in both pathways.
        alpha: frames of the fast pathway per frame of the slow one; no checkpoint states it.
        width: of the slow pathway's stem.
        beta_inv: slow channels per fast channel.
        lateral_kernel: frames that a lateral convolution spans.
        lateral_norm: whether norm and ReLU follow it; mmaction2 has the bare convolution.
        slow_temporal, fast_temporal: per stage, leading blocks that span three frames.
        release: whose rules clips follow: which frames the slow pathway gets, how a head pools.
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
        blocks: Sequence[int],
        alpha: int,
        width: int = 64,
        beta_inv: int = 8,
        lateral_kernel: int = 7,
        lateral_norm: bool = False,
        slow_temporal: Sequence[int] = (0, 0, 6, 3),
        fast_temporal: Sequence[int] = R50_BLOCKS,
        release: Release = "mmaction",
        clip_len: int = 32,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        self.pixels = pixels
        self.weights_sha256 = self.adapter_sha256 = ""
        self.alpha = alpha
        self.arguments = {
            "release": release,
            "alpha": alpha,
            "lateral_kernel": lateral_kernel,
            "lateral_norm": lateral_norm,
            "slow_temporal": list(slow_temporal),
            "fast_temporal": list(fast_temporal),
            "num_classes": num_classes,
        }
        self.fixed_step = release == "mmaction"
        self.head_pool = HEAD_POOL[release]
        self.clip_len = 0
        self.set_clip_len(clip_len)
        self.slow_path = Pathway(
            in_channels=3,
            width=width,
            blocks=blocks,
            stem_frames=1,
            temporal=slow_temporal,
            lateral_width=width // beta_inv,
            lateral=(lateral_kernel, alpha, lateral_norm),
        )
        self.fast_path = Pathway(
            in_channels=3,
            width=width // beta_inv,
            blocks=blocks,
            stem_frames=FAST_STEM_FRAMES,
            temporal=fast_temporal,
        )
        self.out_channels = self.slow_path.widths[-1] + self.fast_path.widths[-1]
        self.head = nn.Linear(self.out_channels, num_classes) if num_classes else nn.Identity()
        self.adapters = AdapterConfig(kind="none")
        self.ladders: Ladder | None = None

    def forward(self, clips: Tensor) -> Tensor:
        """clips [N, 3, F, H, W] -> features [N, C] float32, C = 2304: 2048 slow, 256 fast."""
        self._check(clips)
        maps = self.pathways(clips, fixed_step=self.fixed_step)
        return torch.cat([pooled(cells.float(), self.head_pool) for cells in maps], dim=1)

    def classify(self, clips: Tensor) -> Tensor:
        """clips [N, 3, F, H, W] -> logits [N, K]."""
        logits: Tensor = self.head(self(clips))  # linear, so that its mean over places comes first
        return logits

    def feature_map(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [N, 3, F, H, W] -> both pathways' last maps [N, C, F, H/32, W/32] float32.

        The slow one is stretched in time, linearly between its steps. The clips of a window are
        convolved as one, and the slow pathway takes every alpha-th frame, whatever the release.
        """
        self._check(clips)
        return map_of_windows(self.stretched, clips, clips_per_window)

    def stretched(self, clips: Tensor) -> Tensor:
        """clips -> slow | fast [N, C, F, h, w] float32."""
        slow, fast = (cells.float() for cells in self.pathways(clips, fixed_step=True))
        flat = nnf.interpolate(  # as pictures of t x (h * w): only time changes
            slow.flatten(3), size=(fast.shape[2], fast[0, 0, 0].numel()), mode="bilinear"
        )
        return torch.cat((flat.view(*flat.shape[:3], *fast.shape[3:]), fast), dim=1)

    def pathways(self, clips: Tensor, *, fixed_step: bool) -> tuple[Tensor, Tensor]:
        """clips -> the last maps, slow [N, 2048, F/alpha, h, w] and fast [N, 256, F, h, w]."""
        again = self.adapters.checkpoint
        clips = clips.to(self.slow_path.conv1.conv.weight.dtype)
        index = slow_frames(clips.shape[2], self.alpha, fixed_step=fixed_step)
        slow = self.slow_path.stem(clips.index_select(2, index.to(clips.device)))
        fast = self.fast_path.stem(clips)
        for number in STAGES:
            slow = self.slow_path.joined(number - 1, slow, fast)
            slow = self.slow_path.stage(number, slow, recompute=again)
            fast = self.fast_path.stage(number, fast, recompute=again)
        return slow, fast

    def adapter_sites(self) -> Sequence[AdapterSite]:
        """Every bottleneck of both pathways, stage by stage, slow before fast."""
        paths = (("slow", self.slow_path), ("fast", self.fast_path))
        return [site for n in STAGES for name, path in paths for site in path.sites_of(n, name)]

    def train(self, mode: bool = True) -> SlowFast:
        """Set the mode; what `set_tuning` froze stays in eval mode."""
        super().train(mode)
        keep_frozen_in_eval(self)
        return self

    def set_clip_len(self, clip_len: int) -> None:
        """Take clips of another length; the weights fit any multiple of alpha.

        Raises:
            ConfigError: no multiple of alpha.
        """
        if clip_len < 1 or clip_len % self.alpha:
            raise ConfigError(
                f"{self.name} takes clips whose frames are a multiple of {self.alpha}: the slow "
                f"pathway sees one in {self.alpha}.",
                f"clip_len = {clip_len}",
            )
        self.clip_len = clip_len

    def builder_arguments(self) -> dict[str, Any]:
        """Keyword arguments with which the builder makes the same model again."""
        return dict(self.arguments)

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run convolutions and adapters in `dtype`; statistics, pooling, features stay float32."""
        set_conv_dtype(self, dtype)
        for path in (self.slow_path, self.fast_path):
            set_adapter_dtype(path.residual_blocks(), dtype)

    def compile_trunk(self) -> None:
        """Compile what features and feature maps share, for fixed shapes."""
        compiled = torch.compile(self.pathways, dynamic=False)
        self.pathways = compiled  # type: ignore[method-assign]  # the instance's own, by design

    def reset_buffers(self) -> None:
        """Nothing to compute: every buffer is in the checkpoint."""

    def _check(self, clips: Tensor) -> None:
        check_clips(self.name, clips, 3)
        if clips.shape[2] % self.alpha:
            raise ConfigError(
                f"{self.name} takes a multiple of {self.alpha} frames.", f"got {clips.shape[2]}"
            )


def slow_frames(count: int, alpha: int, *, fixed_step: bool) -> Tensor:
    """Indices of the slow pathway's frames among `count`, int64 [count // alpha].

    Args:
        fixed_step: every alpha-th frame from the first (mmaction2), else spread from the first to
            the last (PySlowFast, pytorchvideo): 32 frames, alpha 8: 0, 8, 16, 24 or 0, 10, 20, 31.
    """
    if fixed_step:
        return torch.arange(0, count - count % alpha, alpha)
    return torch.linspace(0, count - 1, count // alpha).long()


def pooled(cells: Tensor, side: int = 0) -> Tensor:
    """A map [N, C, t, h, w] -> [N, C], the mean over all its cells.

    Args:
        side: > 0 averages the means of all squares of this side, as a head does that was made for
            smaller maps; cells at the border then count less.
    """
    plane = cells.mean(dim=2)
    if side:
        plane = nnf.avg_pool2d(plane, [min(side, axis) for axis in plane.shape[2:]], stride=1)
    return plane.mean(dim=(2, 3))


def published_alpha(blocks: Sequence[int], lateral_kernel: int, lateral_norm: bool) -> int:
    """The alpha that published weights of this form were trained with.

    A lateral kernel of 7 comes with 8 x 8 sampling (alpha 4), one of 5 with 4 x 16 (alpha 8), but
    for the official R101, which has 5 with 8 x 8.
    """
    deep = tuple(blocks) == R101_BLOCKS
    return 8 if lateral_kernel == 5 and not (deep and lateral_norm) else 4


def slowfast_r50(
    *,
    release: Release = "mmaction",
    alpha: int | None = None,
    lateral_kernel: int = 7,
    lateral_norm: bool = False,
    slow_temporal: Sequence[int] = (0, 0, 6, 3),
    fast_temporal: Sequence[int] = R50_BLOCKS,
    num_classes: int = 0,
) -> SlowFast:
    """SlowFast on ResNet-50, 32 frames: 33.6 M parameters, features of 2304.

    Args:
        alpha: None = that of the published weights with this lateral kernel.
    """
    return SlowFast(
        name="slowfast-r50",
        pixels=PIXEL_RECIPES[RELEASE_PIXELS[release]],
        blocks=R50_BLOCKS,
        alpha=alpha or published_alpha(R50_BLOCKS, lateral_kernel, lateral_norm),
        lateral_kernel=lateral_kernel,
        lateral_norm=lateral_norm,
        slow_temporal=slow_temporal,
        fast_temporal=fast_temporal,
        release=release,
        num_classes=num_classes,
    )


def slowfast_r101(
    *,
    release: Release = "mmaction",
    alpha: int | None = None,
    lateral_kernel: int = 7,
    lateral_norm: bool = False,
    slow_temporal: Sequence[int] = (0, 0, 23, 3),
    fast_temporal: Sequence[int] = R101_BLOCKS,
    num_classes: int = 0,
) -> SlowFast:
    """SlowFast on ResNet-101, 32 frames: 62.0 M parameters, features of 2304.

    Args:
        alpha: None = that of the published weights with this lateral kernel.
    """
    return SlowFast(
        name="slowfast-r101",
        pixels=PIXEL_RECIPES[RELEASE_PIXELS[release]],
        blocks=R101_BLOCKS,
        alpha=alpha or published_alpha(R101_BLOCKS, lateral_kernel, lateral_norm),
        lateral_kernel=lateral_kernel,
        lateral_norm=lateral_norm,
        slow_temporal=slow_temporal,
        fast_temporal=fast_temporal,
        release=release,
        num_classes=num_classes,
    )
