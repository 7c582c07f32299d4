"""R(2+1)D: A Closer Look at Spatiotemporal Convolutions (Tran et al., CVPR 2018), with 34 layers.

The model of TSP (Alwassel et al., ICCVW 2021), whose features of ActivityNet-1.3 are published.
Order: conv2plus1d -> BasicBlock -> R2Plus1d -> builder -> remap_official_keys.
Key names are the official ones. Shapes: N clips, F frames, H x W pixels, t x h x w cells.
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

NORM_EPS = 1e-3  # of TSP's model
STEM_WIDTH = 64
STAGE_WIDTHS = (64, 128, 256, 512)
R34_BLOCKS = (3, 4, 6, 3)


def conv2plus1d(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3 x 3 x 3 convolution as one in space and one in time, norm and ReLU between.

    The width between gives both together as many weights as the full convolution has (Sec. 3.5),
    from the widths of this very convolution; torchvision takes those of the block.
    """
    middle = (inputs * outputs * 27) // (inputs * 9 + 3 * outputs)
    return nn.Sequential(
        nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        FixedBatchNorm(middle, eps=NORM_EPS),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


class BasicBlock(nn.Module):
    """Two factorised convolutions and a shortcut; `stride` in space and time."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            conv2plus1d(inputs, outputs, stride),
            FixedBatchNorm(outputs, eps=NORM_EPS),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            conv2plus1d(outputs, outputs, 1), FixedBatchNorm(outputs, eps=NORM_EPS)
        )
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False),
                FixedBatchNorm(outputs, eps=NORM_EPS),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, t, h, w] -> [N, C', t/s, h/s, w/s], rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return nnf.relu(self.conv2(self.conv1(x)) + shortcut, inplace=True)


class R2Plus1d(nn.Module):
    """The network; a clip's feature is the mean of its last map.

    Args:
        name: the backbone's name in the name dictionary.
        pixels: recipe that turns frames into clips.
        blocks: residual blocks per stage.
    """

    bits_depend_on_batch = True
    couples_clips = True

    def __init__(
        self,
        *,
        name: str,
        pixels: PixelRecipe,
        blocks: Sequence[int] = R34_BLOCKS,
        clip_len: int = 16,
    ) -> None:
        super().__init__()
        self.name = name
        self.pixels = pixels
        self.out_channels = STAGE_WIDTHS[-1]
        self.weights_sha256 = ""
        self.clip_len = check_clip_len(name, clip_len)
        middle = 45  # of the stem, fixed
        self.stem = nn.Sequential(
            nn.Conv3d(3, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            FixedBatchNorm(middle, eps=NORM_EPS),
            nn.ReLU(inplace=True),
            nn.Conv3d(middle, STEM_WIDTH, (3, 1, 1), 1, (1, 0, 0), bias=False),
            FixedBatchNorm(STEM_WIDTH, eps=NORM_EPS),
            nn.ReLU(inplace=True),
        )
        widths = (STEM_WIDTH, *STAGE_WIDTHS)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(widths[i], widths[i + 1], count, stride=1 if i == 0 else 2)
            for i, count in enumerate(blocks)
        )
        initialise_convs(self)

    def forward(self, clips: Tensor) -> Tensor:
        """clips [N, 3, F, H, W] -> features [N, 512] float32."""
        return self.feature_map(clips).mean(dim=(2, 3, 4))

    def feature_map(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [N, 3, F, H, W] -> the last map [N, 512, F/8, H/16, W/16] float32, rounded up.

        The clips of a window are convolved as one.
        """
        check_clips(self.name, clips, 3)
        return map_of_windows(self.trunk, clips, clips_per_window).float()

    def trunk(self, clips: Tensor) -> Tensor:
        """clips -> the last map, in the type of the convolutions."""
        first = self.stem[0]
        assert isinstance(first, nn.Conv3d)
        x = self.stem(clips.to(first.weight.dtype))  # [N, 64, F, H/2, W/2]
        x = self.layer2(self.layer1(x))  # [N, 128, F/2, H/4, W/4]
        cells: Tensor = self.layer4(self.layer3(x))
        return cells

    def set_clip_len(self, clip_len: int) -> None:
        """Take clips of another length; the weights fit any."""
        self.clip_len = check_clip_len(self.name, clip_len)

    def builder_arguments(self) -> dict[str, Any]:
        """The builder needs none."""
        return {}

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run the convolutions in `dtype`; statistics, pooling and features stay float32."""
        set_conv_dtype(self, dtype)

    def compile_trunk(self) -> None:
        """Compile what features and feature maps share, for fixed shapes."""
        compiled = torch.compile(self.trunk, dynamic=False)
        self.trunk = compiled  # type: ignore[method-assign]  # the instance's own, by design

    def reset_buffers(self) -> None:
        """Nothing to compute: every buffer is in the checkpoint."""


def r2plus1d_34() -> R2Plus1d:
    """R(2+1)D-34 as TSP trains it: 63.5 M parameters, features of 512."""
    return R2Plus1d(name="r2plus1d-34", pixels=PIXEL_RECIPES["tsp"])


ANCHOR = "stem.0.weight"
PREFIX = re.compile(r"(module\.)?(backbone\.|features\.)?")


def remap_official_keys(state: Mapping[str, Tensor]) -> RemappedState:
    """Rename the state dict of a TSP file: no prefix, or that of the trunk in the whole model.

    Returns:
        The renamed state; classification heads (keys with "fc") under `head.*`. Unknown keys keep
        their names, so that a strict load can list them.
    Raises:
        CheckpointError: not an R(2+1)D in a known layout.
    """
    anchor = next((key for key in state if key.endswith(ANCHOR)), "")
    prefix = anchor.removesuffix(ANCHOR)
    if not anchor or not PREFIX.fullmatch(prefix):
        raise CheckpointError(
            "These weights are not an R(2+1)D in a known key layout.",
            f"{len(state)} entries, the first are {', '.join(sorted(state)[:4])}",
            f"An R(2+1)D has {ANCHOR}, alone or after backbone. or features.",
        )
    renamed = {
        f"head.{key}" if "fc" in key else key.removeprefix(prefix): value
        for key, value in without_counters(state).items()
    }
    return RemappedState("official", renamed, {})


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(count - 1)))
