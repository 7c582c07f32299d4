"""Networks of stages with the depth or the width taken away, quick enough for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tadpipe.backbones.slowfast import SlowFast
from tadpipe.backbones.slowonly import SlowOnly
from tadpipe.backbones.tia import adapter_parameters
from tadpipe.backbones.videoswin import VideoSwin
from tadpipe.config import PixelRecipe

BLOCKS = (1, 2, 1, 1)
Staged = SlowFast | SlowOnly | VideoSwin


def narrow_slowfast(*, alpha: int = 4, lateral_norm: bool = False, release: str = "mmaction",
                    num_classes: int = 0) -> SlowFast:  # fmt: skip
    return SlowFast(
        name="narrow-slowfast",
        pixels=PixelRecipe(size=32),
        blocks=BLOCKS,
        alpha=alpha,
        width=16,
        lateral_kernel=5,
        lateral_norm=lateral_norm,
        slow_temporal=(0, 0, 1, 1),
        fast_temporal=BLOCKS,
        release=release,  # type: ignore[arg-type]  # one of the releases
        clip_len=16,
        num_classes=num_classes,
    )


def narrow_slowonly(*, num_classes: int = 0) -> SlowOnly:
    return SlowOnly(
        name="narrow-slowonly",
        pixels=PixelRecipe(size=32),
        blocks=BLOCKS,
        width=8,
        temporal=(0, 0, 1, 1),
        num_classes=num_classes,
    )


def narrow_videoswin(*, num_classes: int = 0, drop_path: float = 0.0) -> VideoSwin:
    return VideoSwin(
        name="narrow-videoswin",
        pixels=PixelRecipe(size=32),
        channels=12,
        depths=(2, 2, 1, 1),
        heads=(1, 2, 2, 4),
        window=(4, 3, 3),
        clip_len=16,
        drop_path=drop_path,
        num_classes=num_classes,
    )


NARROW = {
    "slowfast": narrow_slowfast,
    "slowonly": narrow_slowonly,
    "videoswin": narrow_videoswin,
}


def staged(name: str, seed: int = 3) -> Staged:
    """A narrow network with random weights."""
    torch.manual_seed(seed)
    model: Staged = NARROW[name]()  # type: ignore[operator]  # all of them need no argument
    return model.eval()


def clips(count: int = 2, seed: int = 1, frames: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, frames, 32, 32, generator=generator)


def awake(model: Staged, seed: int = 7) -> Staged:
    """Adapters whose second layer is not zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if "up_proj" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
