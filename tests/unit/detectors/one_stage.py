"""Inputs and checks that the tests of TriDet and of its descendants share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tadpipe.detectors.protocol import Targets
from tadpipe.errors import ConfigError

TARGETS = Targets(
    [torch.tensor([[2.0, 5.0], [10.0, 26.0]]), torch.tensor([[4.0, 11.0]])],
    [torch.tensor([0, 2]), torch.tensor([1])],
)
NOTHING = Targets([torch.zeros(0, 2)], [torch.zeros(0, dtype=torch.int64)])


def window(lengths: tuple[int, ...], padded: int, channels: int = 6) -> tuple[Tensor, Tensor]:
    """Random features, the same at real steps whatever the padding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(lengths), channels, 512, generator=generator)[..., :padded]
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    return x * mask[:, None], mask


def loosen(model: nn.Module) -> nn.Module:
    """Give every parameter the spread it has after training; scales and convolutions act."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drop_path" in name:
                parameter.fill_(0.5)
            else:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def fingerprint(
    make: Callable[..., nn.Module], changes: dict[str, Any], targets: Targets = TARGETS
) -> dict[str, Any]:
    """What a user can see of a configuration: shapes, outputs, losses, lengths."""
    model = make(**changes)
    channels = model.config.in_channels
    x, mask = window((20, 64), 64, channels=channels)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # Outputs of the start values, then of values that let every layer act.
    start = sum(float(p.detach().abs().sum()) for p in model.parameters())
    loosen(model)
    outputs = model.eval()(x, mask)
    torch.manual_seed(0)
    model.train()
    losses = model.loss(model(x, mask), targets)
    try:
        model(*window((128,), 128, channels=channels))
        longest = 128
    except ConfigError:
        longest = 64
    return {
        "shapes": shapes,
        "start": start,
        "logits": [x.tolist() for x in outputs.logits],
        "offsets": [x.tolist() for x in outputs.offsets],
        "losses": {name: float(loss.detach()) for name, loss in losses.items()},
        "padded": [model.padded_len(length) for length in (10, 65, 120)],
        "longest": longest,
    }


def changed(config: Any, **changes: Any) -> Any:
    """A copy of a configuration; the random numbers of the model to come are fixed."""
    torch.manual_seed(0)
    return dataclasses.replace(config, **changes)
