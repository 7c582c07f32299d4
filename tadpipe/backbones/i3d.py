"""I3D: Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset (Carreira, CVPR 2017).

Inception-V1 with every filter inflated to three dimensions, one network for RGB and one for
optical flow. Order: same_padding -> ConvUnit -> SamePool -> Mixed -> I3d -> builders ->
remap_official_keys. Stages and units have the names of the published PyTorch port.
Shapes: N clips, Ci input channels (3 RGB, 2 flow), F frames, H x W pixels, t x h x w cells, K
classes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from tadpipe.backbones.conv_parts import (
    FixedBatchNorm,
    check_clip_len,
    check_clips,
    initialise_convs,
    map_of_windows,
    set_conv_dtype,
    without_counters,
)
from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.backbones.protocol import RemappedState
from tadpipe.config import PixelRecipe
from tadpipe.errors import CheckpointError

Axes = tuple[int, int, int]  # time, height, width

OFFICIAL_EPS = 1e-3  # of the batch norms; the eps belongs to the weights it was trained with
STATIC_EPS = 1e-5  # of the layout with batch3d and branch_k
FEWEST_FRAMES = 16
OUT_CHANNELS = 1024
POOL: Axes = (2, 7, 7)  # of the features

# channels of the branches: b0; b1a, b1b; b2a, b2b; b3b
WIDTHS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLS: dict[str, tuple[Axes, Axes]] = {  # kernel, stride; each comes before the stage named
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


def same_padding(size: int, kernel: int, stride: int, *, static: bool) -> tuple[int, int]:
    """Zeros before and after an axis of `size` cells, as TensorFlow's "SAME" has it.

    Args:
        static: as if the size were a multiple of the stride, whatever it is.
    """
    overhang = 0 if static else size % stride
    total = max(kernel - (overhang or stride), 0)
    return total // 2, total - total // 2


def padded(x: Tensor, kernel: Axes, stride: Axes, *, static: bool) -> tuple[Tensor, Axes]:
    """x with the zeros that lie on one side only, and those left to the operation per axis."""
    sizes = x.shape[2:]
    pairs = [same_padding(*axis, static=static) for axis in zip(sizes, kernel, stride, strict=True)]
    if all(before == after for before, after in pairs):
        return x, (pairs[0][0], pairs[1][0], pairs[2][0])
    flat = [zeros for pair in reversed(pairs) for zeros in pair]  # torch names the last axis first
    return nnf.pad(x, flat), (0, 0, 0)


class ConvUnit(nn.Module):
    """Convolution, batch norm, ReLU; `conv3d` and `bn` in the official files."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Axes = (1, 1, 1),
        stride: Axes = (1, 1, 1),
        *,
        norm_eps: float,
        static_padding: bool,
    ) -> None:
        super().__init__()
        self.static_padding = static_padding
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = FixedBatchNorm(outputs, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, t, h, w] -> [N, C', t', h', w'], sizes divided by the stride and rounded up."""
        conv = self.conv3d
        kernel, stride = conv.kernel_size, conv.stride
        x, zeros = padded(x, _axes(kernel), _axes(stride), static=self.static_padding)
        return nnf.relu(self.bn(nnf.conv3d(x, conv.weight, None, stride, zeros)), inplace=True)


class SamePool(nn.Module):
    """Max pooling over what is there: values are not negative, so that zeros around change nothing.

    Args:
        static_padding: pad as if sizes were multiples of the stride; the last window is cut.
    """

    def __init__(self, kernel: Axes, stride: Axes, *, static_padding: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.static_padding = static_padding

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, t, h, w] -> sizes divided by the stride and rounded up."""
        x, zeros = padded(x, self.kernel, self.stride, static=self.static_padding)
        return nnf.max_pool3d(x, self.kernel, self.stride, zeros, ceil_mode=self.static_padding)


class Mixed(nn.Module):
    """Inception block: four branches side by side, concatenated on channels."""

    def __init__(
        self, inputs: int, widths: tuple[int, ...], *, norm_eps: float, static_padding: bool
    ) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths

        def unit(inputs: int, outputs: int, kernel: Axes = (1, 1, 1)) -> ConvUnit:
            return ConvUnit(
                inputs, outputs, kernel, norm_eps=norm_eps, static_padding=static_padding
            )

        self.b0 = unit(inputs, b0)
        self.b1a, self.b1b = unit(inputs, b1a), unit(b1a, b1b, (3, 3, 3))
        self.b2a, self.b2b = unit(inputs, b2a), unit(b2a, b2b, (3, 3, 3))
        self.b3a = SamePool((3, 3, 3), (1, 1, 1), static_padding=static_padding)
        self.b3b = unit(inputs, b3b)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, t, h, w] -> [N, b0 + b1b + b2b + b3b, t, h, w]."""
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


class I3d(nn.Module):
    """One stream of I3D; a clip's feature is the mean of its pooled map.

    Args:
        name: the backbone's name in the name dictionary.
        pixels: recipe that turns frames into clips; its channels are the input's.
        num_classes: K of the classification head, 0 = no head.
        norm_eps: of the batch norms.
        static_padding: pad as if sizes were multiples of the strides (the batch3d layout).
    """

    bits_depend_on_batch = True
    couples_clips = True

    def __init__(
        self,
        *,
        name: str,
        pixels: PixelRecipe,
        clip_len: int = FEWEST_FRAMES,
        num_classes: int = 0,
        norm_eps: float = OFFICIAL_EPS,
        static_padding: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.pixels = pixels
        self.in_channels = pixels.channels
        self.out_channels = OUT_CHANNELS
        self.weights_sha256 = ""
        self.num_classes = num_classes
        self.norm_eps = norm_eps
        self.static_padding = static_padding
        self.clip_len = check_clip_len(name, clip_len, FEWEST_FRAMES)
        self.stages = nn.Sequential(
            _stages(self.in_channels, norm_eps=norm_eps, static_padding=static_padding)
        )
        self.head = nn.Conv3d(OUT_CHANNELS, num_classes, 1) if num_classes else nn.Identity()
        initialise_convs(self)

    def forward(self, clips: Tensor) -> Tensor:
        """clips [N, Ci, F, H, W] -> features [N, 1024] float32."""
        return self.pooled(clips).mean(dim=(2, 3, 4))

    def classify(self, clips: Tensor) -> Tensor:
        """clips [N, Ci, F, H, W] -> logits [N, K, t - 1], one per position of the pool in time."""
        logits: Tensor = self.head(self.pooled(clips))
        return logits.mean(dim=(3, 4))

    def pooled(self, clips: Tensor) -> Tensor:
        """clips -> the map averaged over 2 x 7 x 7 cells [N, 1024, t - 1, h - 6, w - 6] float32.

        Maps smaller than 7 x 7 (pictures below 193 pixels) are averaged whole.
        """
        cells = self.feature_map(clips)
        kernel = [min(axis, size) for axis, size in zip(POOL, cells.shape[2:], strict=True)]
        return nnf.avg_pool3d(cells, kernel, stride=1)

    def feature_map(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [N, Ci, F, H, W] -> the last stage's map [N, 1024, F/8, H/32, W/32] float32.

        Sizes are rounded up at each halving. The clips of a window are convolved as one.
        """
        check_clips(self.name, clips, self.in_channels, FEWEST_FRAMES)
        return map_of_windows(self.trunk, clips, clips_per_window).float()

    def trunk(self, clips: Tensor) -> Tensor:
        """clips -> the last stage's map, in the type of the convolutions."""
        first = self.stages[0]
        assert isinstance(first, ConvUnit)
        cells: Tensor = self.stages(clips.to(first.conv3d.weight.dtype))
        return cells

    def set_clip_len(self, clip_len: int) -> None:
        """Take clips of another length; ConfigError below 16 frames."""
        self.clip_len = check_clip_len(self.name, clip_len, FEWEST_FRAMES)

    def builder_arguments(self) -> dict[str, Any]:
        """Keyword arguments with which the builder makes the same model again."""
        return {
            "num_classes": self.num_classes,
            "norm_eps": self.norm_eps,
            "static_padding": self.static_padding,
        }

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run the convolutions in `dtype`; statistics, pooling and features stay float32."""
        set_conv_dtype(self.stages, dtype, torch.channels_last_3d)

    def compile_trunk(self) -> None:
        """Compile what features and feature maps share, for fixed shapes."""
        compiled = torch.compile(self.trunk, dynamic=False)
        self.trunk = compiled  # type: ignore[method-assign]  # the instance's own, by design

    def reset_buffers(self) -> None:
        """Nothing to compute: every buffer is in the checkpoint."""


def i3d_rgb(
    *, num_classes: int = 0, norm_eps: float = OFFICIAL_EPS, static_padding: bool = False
) -> I3d:
    """I3D on RGB: 12.3 M parameters without a head, features of 1024."""
    return I3d(
        name="i3d-rgb",
        pixels=PIXEL_RECIPES["i3d"],
        num_classes=num_classes,
        norm_eps=norm_eps,
        static_padding=static_padding,
    )


def i3d_flow(
    *, num_classes: int = 0, norm_eps: float = OFFICIAL_EPS, static_padding: bool = False
) -> I3d:
    """I3D on optical flow, two channels: 12.3 M parameters without a head, features of 1024."""
    return I3d(
        name="i3d-flow",
        pixels=PIXEL_RECIPES["i3d-flow"],
        num_classes=num_classes,
        norm_eps=norm_eps,
        static_padding=static_padding,
    )


ANCHORS = {  # the first convolution under each layout, after `module.`
    "official": "Conv3d_1a_7x7.conv3d.weight",
    "batch3d": "conv3d_1a_7x7.conv3d.weight",
}
BRANCHES = {
    "branch_0": "b0",
    "branch_1.0": "b1a",
    "branch_1.1": "b1b",
    "branch_2.0": "b2a",
    "branch_2.1": "b2b",
    "branch_3.1": "b3b",
}


def remap_official_keys(state: Mapping[str, Tensor]) -> RemappedState:
    """Rename an I3D state dict: pytorch-i3d's names, or those with `batch3d` and `branch_k`.

    Returns:
        The renamed state, its head under `head.*`, and what belongs to the layout: eps and rule of
        padding. Unknown keys keep their names, so that a strict load can list them.
    Raises:
        CheckpointError: not an I3D in a known layout.
    """
    bare = {key.removeprefix("module."): value for key, value in without_counters(state).items()}
    layout = next((name for name, anchor in ANCHORS.items() if anchor in bare), None)
    if layout is None:
        raise CheckpointError(
            "These weights are not an I3D in a known key layout.",
            f"{len(state)} entries, the first are {', '.join(sorted(state)[:4])}",
            f"An I3D has one of {', '.join(ANCHORS.values())}.",
        )
    rename = _from_official if layout == "official" else _from_batch3d
    arguments = {"norm_eps": OFFICIAL_EPS, "static_padding": False}
    if layout == "batch3d":
        arguments = {"norm_eps": STATIC_EPS, "static_padding": True}
    return RemappedState(layout, {rename(key): value for key, value in bare.items()}, arguments)


def _stages(inputs: int, *, norm_eps: float, static_padding: bool) -> OrderedDict[str, nn.Module]:
    """All stages in order, by their official names."""
    fixed: dict[str, Any] = {"norm_eps": norm_eps, "static_padding": static_padding}
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["Conv3d_1a_7x7"] = ConvUnit(inputs, 64, (7, 7, 7), (2, 2, 2), **fixed)
    stages["MaxPool3d_2a_3x3"] = SamePool((1, 3, 3), (1, 2, 2), static_padding=static_padding)
    stages["Conv3d_2b_1x1"] = ConvUnit(64, 64, **fixed)
    stages["Conv3d_2c_3x3"] = ConvUnit(64, 192, (3, 3, 3), **fixed)
    channels = 192
    for name, widths in WIDTHS.items():
        if name in POOLS:
            kernel, stride = POOLS[name]
            pool = SamePool(kernel, stride, static_padding=static_padding)
            stages[f"MaxPool3d_{name[6]}a_{kernel[1]}x{kernel[2]}"] = pool
        stages[name] = Mixed(channels, widths, **fixed)
        channels = widths[0] + widths[2] + widths[4] + widths[5]
    return stages


def _axes(values: tuple[int, ...]) -> Axes:
    time, height, width = values
    return time, height, width


def _from_official(key: str) -> str:
    if key.startswith("logits.conv3d."):
        return key.replace("logits.conv3d.", "head.")
    return f"stages.{key}" if re.match(r"(Conv3d|Mixed)_\d[a-f]", key) else key


def _from_batch3d(key: str) -> str:
    if key.startswith("conv3d_0c_1x1.conv3d."):
        return key.replace("conv3d_0c_1x1.conv3d.", "head.")
    name = re.sub(r"\.batch3d\.", ".bn.", key)
    name = re.sub(r"^conv3d_(?=\d[a-c]_)", "stages.Conv3d_", name)
    name = re.sub(r"^mixed_", "stages.Mixed_", name)
    for theirs, ours in BRANCHES.items():
        name = re.sub(rf"^(stages\.Mixed_\d[a-f]\.){re.escape(theirs)}\.", rf"\g<1>{ours}.", name)
    return name
