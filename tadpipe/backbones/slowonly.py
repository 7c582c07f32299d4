"""SlowOnly: the slow pathway of SlowFast on its own (Feichtenhofer et al., ICCV 2019, Sec. 4).

Every frame of a clip is processed and kept; only the last two stages see time.
Order: SlowOnly -> builder. Shapes: N clips, F frames, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tadpipe.backbones.block_adapters import set_adapter_dtype
from tadpipe.backbones.conv_parts import (
    check_clip_len,
    check_clips,
    map_of_windows,
    set_conv_dtype,
)
from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.backbones.slowfast import (
    HEAD_POOL,
    R50_BLOCKS,
    RELEASE_PIXELS,
    STAGES,
    Pathway,
    Release,
    pooled,
)
from tadpipe.backbones.slowfast_keys import remap_slowonly_keys as remap_official_keys
from tadpipe.backbones.tia import AdapterConfig, AdapterSite, Ladder
from tadpipe.backbones.tuning import keep_frozen_in_eval
from tadpipe.config import PixelRecipe

__all__ = ["SlowOnly", "remap_official_keys", "slowonly_r50"]


class SlowOnly(Pathway):
    """The network; a clip's feature is the mean of its last map.

    Args:
        name: the backbone's name in the name dictionary.
        pixels: recipe that turns frames into clips.
        blocks: residual blocks per stage.
        width: of the stem.
        temporal: per stage, leading blocks that span three frames.
        release: whose rules clips follow.
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
        blocks: Sequence[int] = R50_BLOCKS,
        width: int = 64,
        temporal: Sequence[int] = (0, 0, 6, 3),
        release: Release = "mmaction",
        clip_len: int = 8,
        num_classes: int = 0,
    ) -> None:
        super().__init__(
            in_channels=pixels.channels,
            width=width,
            blocks=blocks,
            stem_frames=1,
            temporal=temporal,
        )
        self.name = name
        self.pixels = pixels
        self.weights_sha256 = self.adapter_sha256 = ""
        self.arguments = {
            "release": release,
            "temporal": list(temporal),
            "num_classes": num_classes,
        }
        self.head_pool = HEAD_POOL[release]
        self.in_channels = pixels.channels
        self.clip_len = check_clip_len(name, clip_len)
        self.out_channels = self.widths[-1]
        self.head = nn.Linear(self.out_channels, num_classes) if num_classes else nn.Identity()
        self.adapters = AdapterConfig(kind="none")
        self.ladders: Ladder | None = None

    def forward(self, clips: Tensor) -> Tensor:
        """clips [N, 3, F, H, W] -> features [N, C] float32, C = 2048."""
        return pooled(self.feature_map(clips), self.head_pool)

    def classify(self, clips: Tensor) -> Tensor:
        """clips [N, 3, F, H, W] -> logits [N, K]."""
        logits: Tensor = self.head(self(clips))
        return logits

    def feature_map(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [N, 3, F, H, W] -> the last map [N, C, F, H/32, W/32] float32, rounded up.

        The clips of a window are convolved as one.
        """
        check_clips(self.name, clips, self.in_channels)
        return map_of_windows(self.trunk, clips, clips_per_window).float()

    def trunk(self, clips: Tensor) -> Tensor:
        """clips -> the last map, in the type of the convolutions."""
        x = self.stem(clips.to(self.conv1.conv.weight.dtype))
        for number in STAGES:
            x = self.stage(number, x, recompute=self.adapters.checkpoint)
        return x

    def adapter_sites(self) -> Sequence[AdapterSite]:
        """Every bottleneck."""
        return [site for number in STAGES for site in self.sites_of(number, "slow")]

    def train(self, mode: bool = True) -> SlowOnly:
        """Set the mode; what `set_tuning` froze stays in eval mode."""
        super().train(mode)
        keep_frozen_in_eval(self)
        return self

    def set_clip_len(self, clip_len: int) -> None:
        """Take clips of another length; the weights fit any."""
        self.clip_len = check_clip_len(self.name, clip_len)

    def builder_arguments(self) -> dict[str, Any]:
        """Keyword arguments with which the builder makes the same model again."""
        return dict(self.arguments)

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run convolutions and adapters in `dtype`; statistics, pooling, features stay float32."""
        set_conv_dtype(self, dtype)
        set_adapter_dtype(self.residual_blocks(), dtype)

    def compile_trunk(self) -> None:
        """Compile what features and feature maps share, for fixed shapes."""
        compiled = torch.compile(self.trunk, dynamic=False)
        self.trunk = compiled  # type: ignore[method-assign]  # the instance's own, by design

    def reset_buffers(self) -> None:
        """Nothing to compute: every buffer is in the checkpoint."""


def slowonly_r50(
    *,
    release: Release = "mmaction",
    temporal: Sequence[int] = (0, 0, 6, 3),
    num_classes: int = 0,
) -> SlowOnly:
    """SlowOnly on ResNet-50, 8 frames: 31.6 M parameters without a head, features of 2048."""
    return SlowOnly(
        name="slowonly-r50",
        pixels=PIXEL_RECIPES[RELEASE_PIXELS[release]],
        temporal=temporal,
        release=release,
        num_classes=num_classes,
    )
