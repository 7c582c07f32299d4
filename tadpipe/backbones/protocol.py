"""What every backbone offers: pixel clips in, features out.

Shapes: N clips, F frames per clip, H x W pixels, C channels, t x h x w cells of the feature map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tadpipe.config import PixelRecipe


class Backbone(Protocol):
    """A video backbone. It is also an nn.Module; no I/O, no printing.

    Attributes:
        name: the name in `tadpipe.backbones.BACKBONES`.
        clip_len: F, frames per clip.
        out_channels: C of the features.
        pixels: how decoded frames become the pixels of a clip.
        weights_sha256: identity of the loaded weights, "" before any were loaded.
        bits_depend_on_batch: whether the last bits of a row change with the number of clips in
            the pass (convolutions); features are then promised at equal, padded batches.
        couples_clips: whether the clips of a window see each other in `feature_map`, without any
            adapter.
    Where shapes say 3 channels, optical flow has 2, as `pixels.channels` says.
    """

    name: str
    clip_len: int
    out_channels: int
    pixels: PixelRecipe
    weights_sha256: str
    bits_depend_on_batch: bool
    couples_clips: bool

    def __call__(self, clips: Tensor) -> Tensor:
        """clips [N, 3, F, H, W] -> features [N, C] float32, one per clip."""

    def feature_map(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [N, 3, F, H, W] -> dense features [N, C, t, h, w] float32.

        Consecutive clips of one window are neighbouring rows. What an adapter sees of time ends
        at the borders of a window of `clips_per_window` clips; the backbone itself sees one clip,
        or the whole window where it couples clips.
        """

    def set_clip_len(self, clip_len: int) -> None:
        """Take clips of another length; ConfigError where the architecture does not allow it."""

    def builder_arguments(self) -> dict[str, Any]:
        """The keyword arguments that make the builder build this backbone again (JSON values)."""

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run the matrix products (or convolutions) in `dtype`; features stay float32."""

    def compile_trunk(self) -> None:
        """Run the part that both `forward` and `feature_map` use through torch.compile."""

    def reset_buffers(self) -> None:
        """Compute the tables that no checkpoint holds (needed after building on "meta")."""


class RemappedState(NamedTuple):
    """A checkpoint under our key names, and what its layout says beside the weights."""

    layout: str  # "official", "huggingface", "mmaction", ...
    state: dict[str, Tensor]
    arguments: Mapping[str, Any]  # for the builder, e.g. {"fc_norm_eps": 1e-5}
