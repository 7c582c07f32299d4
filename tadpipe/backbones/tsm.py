"""TSM: Temporal Shift Module for Efficient Video Understanding (Lin, Gan, Han, ICCV 2019).

A two-dimensional ResNet in which a part of the channels moves one frame on or back before each
residual branch. Order: shift_frames -> ConvNorm -> Bottleneck -> Tsm -> builder ->
remap_official_keys. Shapes: N clips, F frames, C channels, H x W pixels, h x w cells, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

NORM_EPS = 1e-5
SHIFT_DIV = 8  # one channel in so many moves back, and one on (Sec. 4.1: 1/8 + 1/8)
R50_BLOCKS = (3, 4, 6, 3)
R101_BLOCKS = (3, 4, 23, 3)
DEEP_STAGE = 23  # from so many blocks in the third stage on, every second block shifts


def shift_frames(x: Tensor, frames: int) -> Tensor:
    """Move channels along time within each clip; zeros come in at its ends (Sec. 3).

    Args:
        x: [N*F, C, h, w], the frames of a clip adjacent. The first C // 8 channels take the value
            of the next frame, the next C // 8 that of the frame before, the others stay.
    """
    clips = x.unflatten(0, (-1, frames))  # [N, F, C, h, w]
    fold = x.shape[1] // SHIFT_DIV
    moved = torch.zeros_like(clips)
    moved[:, :-1, :fold] = clips[:, 1:, :fold]
    moved[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    moved[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return moved.flatten(0, 1)


class ConvNorm(nn.Module):
    """Convolution without bias and batch norm, padded to keep the size at stride 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = FixedBatchNorm(outputs, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[N*F, C, h, w] -> [N*F, C', h/stride, w/stride]."""
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions; only their branch sees the shifted input.

    Args:
        width: inner channels; the output has four times as many.
        stride: of the 3 x 3 convolution.
        shifts: whether this block moves channels along time.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, *, project: bool, shifts: bool
    ) -> None:
        super().__init__()
        self.shifts = shifts
        self.conv1 = ConvNorm(inputs, width, 1)
        self.conv2 = ConvNorm(width, width, 3, stride)
        self.conv3 = ConvNorm(width, 4 * width, 1)
        self.downsample = ConvNorm(inputs, 4 * width, 1, stride) if project else None

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """[N*F, C, h, w] -> [N*F, 4 * width, h/stride, w/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = shift_frames(x, frames) if self.shifts else x
        y = nnf.relu(self.conv1(y), inplace=True)
        y = self.conv3(nnf.relu(self.conv2(y), inplace=True))
        return nnf.relu(y + shortcut, inplace=True)


class Tsm(nn.Module):
    """The network; a clip's feature is the mean over frames and cells.

    Args:
        name: the backbone's name in the name dictionary.
        pixels: recipe that turns frames into clips.
        blocks: residual blocks per stage.
        base_width: inner channels of the first stage; they double from stage to stage.
        num_classes: K of the classification head, 0 = no head.
    """

    bits_depend_on_batch = True
    couples_clips = True

    def __init__(
        self,
        *,
        name: str,
        pixels: PixelRecipe,
        blocks: Sequence[int] = R50_BLOCKS,
        base_width: int = 64,
        clip_len: int = 8,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        self.pixels = pixels
        self.weights_sha256 = ""
        self.num_classes = num_classes
        self.clip_len = check_clip_len(name, clip_len)
        self.conv1 = ConvNorm(3, base_width, 7, 2)
        every = 2 if blocks[2] >= DEEP_STAGE else 1
        channels = base_width
        stages = []
        for i, count in enumerate(blocks):
            width = base_width * 2**i
            stages.append(
                nn.ModuleList(
                    Bottleneck(
                        channels if j == 0 else 4 * width,
                        width,
                        stride=2 if i > 0 and j == 0 else 1,
                        project=j == 0,
                        shifts=j % every == 0,
                    )
                    for j in range(count)
                )
            )
            channels = 4 * width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.out_channels = channels
        self.head = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        initialise_convs(self)

    def forward(self, clips: Tensor) -> Tensor:
        """clips [N, 3, F, H, W] -> features [N, C] float32, C = 2048 for both sizes."""
        return self.feature_map(clips).mean(dim=(3, 4)).mean(dim=2)

    def classify(self, clips: Tensor) -> Tensor:
        """clips [N, 3, F, H, W] -> logits [N, K], the mean over frames."""
        logits: Tensor = self.head(self(clips))  # linear, so that the mean may come first
        return logits

    def feature_map(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [N, 3, F, H, W] -> the last map [N, C, F, H/32, W/32] float32, rounded up.

        Channels move along all clips of a window, and not from window to window.
        """
        check_clips(self.name, clips, 3)
        return map_of_windows(self.trunk, clips, clips_per_window).float()

    def trunk(self, clips: Tensor) -> Tensor:
        """clips -> the last map [N, C, F, h, w], in the type of the convolutions."""
        count, frames = len(clips), clips.shape[2]
        x = clips.transpose(1, 2).flatten(0, 1).to(self.conv1.conv.weight.dtype)  # [N*F, 3, H, W]
        x = self.stem(x)  # [N*F, base, H/4, W/4]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x, frames)
        return x.unflatten(0, (count, frames)).transpose(1, 2)

    def stem(self, x: Tensor) -> Tensor:
        """[N*F, 3, H, W] -> [N*F, base, H/4, W/4]: convolution, norm, ReLU, max pooling."""
        return nnf.max_pool2d(nnf.relu(self.conv1(x), inplace=True), 3, 2, 1)

    def set_clip_len(self, clip_len: int) -> None:
        """Take clips of another length; the weights fit any."""
        self.clip_len = check_clip_len(self.name, clip_len)

    def builder_arguments(self) -> dict[str, Any]:
        """Keyword arguments with which the builder makes the same model again."""
        return {"num_classes": self.num_classes}

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run the convolutions in `dtype`; statistics, pooling and features stay float32."""
        set_conv_dtype(self, dtype, torch.channels_last)

    def compile_trunk(self) -> None:
        """Compile what features and feature maps share, for fixed shapes."""
        compiled = torch.compile(self.trunk, dynamic=False)
        self.trunk = compiled  # type: ignore[method-assign]  # the instance's own, by design

    def reset_buffers(self) -> None:
        """Nothing to compute: every buffer is in the checkpoint."""


def tsm_r50(*, num_classes: int = 0) -> Tsm:
    """TSM on ResNet-50, 8 frames: 23.5 M parameters without a head, features of 2048."""
    return Tsm(name="tsm-r50", pixels=PIXEL_RECIPES["mmaction-256"], num_classes=num_classes)


LAYOUTS = {  # the first convolution under each layout, and what may stand before it
    "mmaction": ("conv1.conv.weight", re.compile(r"(module\.)?(backbone\.)?")),
    "official": ("conv1.weight", re.compile(r"(module\.)?(base_model\.)?")),
}
HEADS = re.compile(r"(module\.)?(cls_head\.fc_cls|new_fc)\.")


def remap_official_keys(state: Mapping[str, Tensor]) -> RemappedState:
    """Rename a TSM state dict: the official release's names, or those of mmaction2.

    Returns:
        The renamed state, its head under `head.*`. Unknown keys keep their names, so that a strict
        load can list them.
    Raises:
        CheckpointError: not a TSM in a known layout, or a plain ResNet that shifts nothing.
    """
    layout, prefix = _layout_of(state)
    _check_shifts(state)
    renamed: dict[str, Tensor] = {}
    for key, value in without_counters(state).items():
        name = HEADS.sub("head.", key) if HEADS.match(key) else key.removeprefix(prefix)
        if layout == "official":
            name = _from_official(name)
        renamed[name.replace(".conv1.conv.net.", ".conv1.conv.")] = value
    return RemappedState(layout, renamed, {})


def _layout_of(state: Mapping[str, Tensor]) -> tuple[str, str]:
    for layout, (anchor, prefixes) in LAYOUTS.items():
        for key in state:
            prefix = key.removesuffix(anchor)
            if key.endswith(anchor) and prefixes.fullmatch(prefix):
                return layout, prefix
    raise CheckpointError(
        "These weights are not a TSM in a known key layout.",
        f"{len(state)} entries, the first are {', '.join(sorted(state)[:4])}",
        "A TSM has base_model.conv1.weight or conv1.conv.weight.",
    )


def _check_shifts(state: Mapping[str, Tensor]) -> None:
    """Raise unless exactly the blocks shift that ours do; a shift is known by `.net.` alone."""
    found = {}  # (stage, block) -> whether it shifts
    for key in state:
        match = re.search(r"layer(\d)\.(\d+)\.conv1\.(?:conv\.)?(net\.)?weight$", key)
        if match:
            found[int(match[1]), int(match[2])] = match[3] is not None
    deep = sum(stage == 3 for stage, _ in found) >= DEEP_STAGE
    wrong = [place for place, shifts in found.items() if shifts != (place[1] % (1 + deep) == 0)]
    if wrong:
        stage, block = min(wrong)
        raise CheckpointError(
            "These are not the weights of a TSM whose every block shifts (from 23 blocks in a "
            "stage on, every second one).",
            f"layer{stage}.{block}: {'no ' if not found[stage, block] else 'a '}shift "
            f"('.net.' in its name); {len(wrong)} of {len(found)} blocks differ",
            "A plain ResNet (TSN) has no shift at all; take weights trained as a TSM.",
        )


def _from_official(name: str) -> str:
    """torchvision's names: bnI beside convI, a numbered shortcut, `.net` behind a shift."""
    name = re.sub(r"^((?:layer\d\.\d+\.)?)bn(\d)\.", r"\g<1>conv\g<2>.bn.", name)
    name = re.sub(r"^((?:layer\d\.\d+\.)?conv\d)\.(net\.)?weight$", r"\g<1>.conv.weight", name)
    name = re.sub(r"^(layer\d\.\d+\.downsample)\.0\.", r"\g<1>.conv.", name)
    return re.sub(r"^(layer\d\.\d+\.downsample)\.1\.", r"\g<1>.bn.", name)
