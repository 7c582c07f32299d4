"""What every convolutional video backbone uses: batch norm with kept statistics, dtype, start.

None of the papers calls these its own. Shapes: N clips, C channels, F frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from tadpipe.errors import ConfigError

COUNTER = "num_batches_tracked"  # kept by torch's batch norm, read by nothing here


class FixedBatchNorm(nn.Module):
    """Batch norm by the stored statistics, in training too; scale and shift are weights.

    The few clips of a training step say little about a data set, so published recipes keep the
    statistics of pre-training. They are float32 whatever the type of the input.
    """

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> the same shape and type."""
        return nnf.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the batch counters of torch's batch norm, the only dead entries."""
    return {key: value for key, value in state.items() if not key.endswith(COUNTER)}


def set_conv_dtype(
    model: nn.Module,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
) -> None:
    """Run every convolution in `dtype`; the maps between them have that type too.

    Args:
        layout: of the weights, and hence of the maps; the faster one differs from trunk to trunk
            (measured, benchmarks/results/backbone.md).
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.to(dtype)
            module.weight.data = module.weight.contiguous(memory_format=layout)


def initialise_convs(model: nn.Module) -> None:
    """He's normal initialisation of every convolution, so that signals keep their size."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_clips(name: str, clips: Tensor, channels: int, fewest_frames: int = 1) -> None:
    """Refuse what is no batch of clips [N, channels, F, H, W].

    Raises:
        ConfigError: other axes or channels, or fewer frames than the trunk needs.
    """
    shape = list(clips.shape)
    if len(shape) != 5 or shape[1] != channels or shape[2] < fewest_frames:
        least = f" with at least {fewest_frames} frames" if fewest_frames > 1 else ""
        raise ConfigError(f"{name} takes clips [N, {channels}, F, H, W]{least}.", f"got {shape}")


def check_clip_len(name: str, clip_len: int, fewest_frames: int = 1) -> int:
    """The clip length, if a trunk without a fixed one can take it.

    Raises:
        ConfigError: too short.
    """
    if clip_len < fewest_frames:
        raise ConfigError(
            f"{name} needs clips of at least {fewest_frames} frames.", f"clip_len = {clip_len}"
        )
    return clip_len


def map_of_windows(
    trunk: Callable[[Tensor], Tensor], clips: Tensor, clips_per_window: int
) -> Tensor:
    """Run the trunk over whole windows and cut the map at the clips' borders again.

    Args:
        trunk: pictures [R, 3, k * F, H, W] -> map [R, C, k * t, h, w].
        clips: [R * k, 3, F, H, W], the k clips of a window in a row.
    Returns:
        [R * k, C, t, h, w]; inside a window the steps of neighbouring clips see each other.
    Raises:
        ConfigError: the map's steps do not fall to whole clips.
    """
    if clips_per_window == 1:
        return trunk(clips)
    windows = clips.unflatten(0, (-1, clips_per_window)).transpose(1, 2).flatten(2, 3)
    cells = trunk(windows)
    if cells.shape[2] % clips_per_window:
        raise ConfigError(
            "The steps of a window's map do not fall to whole clips.",
            f"{clips_per_window} clips of {clips.shape[2]} frames give {cells.shape[2]} steps",
            "Use clips whose length is a multiple of the backbone's stride in time.",
        )
    steps = cells.shape[2] // clips_per_window
    return cells.unflatten(2, (clips_per_window, steps)).transpose(1, 2).flatten(0, 1)
