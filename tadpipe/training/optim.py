"""Optimiser and learning rate of the published recipes (ActionFormer, Zhang et al., ECCV 2022).

Order: OptimConfig -> parameter_groups (which tensors decay) -> make_optimizer -> learning_rate_at.
The rate is a closed formula of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from tadpipe.errors import ConfigError

FIRST_BETA = 0.9  # AdamW, Adam: torch's own


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule; epochs become steps when the number of batches is known."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.05  # with AdamW apart from the gradient, else part of it
    decay: Literal["weights", "all"] = "weights"  # all: biases, norms and scales, too (ETAD)
    momentum: float = 0.9  # SGD only
    beta2: float = 0.999  # AdamW, Adam: memory of the squared gradient; shorter for short runs
    schedule: Literal["cosine", "multistep"] = "cosine"
    warmup_epochs: int = 5
    epochs: int = 30  # after the warm-up
    eta_min: float = 1e-8  # where the cosine ends
    milestones: tuple[int, ...] = ()  # multistep: epochs after the warm-up
    gamma: float = 0.1  # multistep: factor at each milestone

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError(
                "The learning rate must be positive and the weight decay not negative.",
                f"learning_rate = {self.learning_rate}, weight_decay = {self.weight_decay}",
            )
        if not 0 < self.beta2 < 1:
            raise ConfigError("beta2 lies between 0 and 1.", f"beta2 = {self.beta2}")
        if self.epochs < 1 or self.warmup_epochs < 0:
            raise ConfigError(
                "At least one epoch after a warm-up of none or more is needed.",
                f"epochs = {self.epochs}, warmup_epochs = {self.warmup_epochs}",
            )

    @property
    def total_epochs(self) -> int:
        return self.warmup_epochs + self.epochs


def decay_names(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters with and without weight decay.

    Weights of convolutions and linear layers decay, and the parameters that a module of another
    kind names in `decayed`; biases, norms, scales and relative position tables do not.
    """
    decay: set[str] = set()
    rest: set[str] = set()
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            is_weight = isinstance(module, (_ConvNd, nn.Linear)) and name == "weight"
            is_weight = is_weight or name in getattr(module, "decayed", ())
            (decay if is_weight else rest).add(full)
    return decay, rest


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Two groups, with and without decay, of the parameters that train; sorted by name."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decay, rest = decay_names(model)
    without = config.weight_decay if config.decay == "all" else 0.0
    groups = ((decay, config.weight_decay), (rest, without))
    return [
        {"params": [parameters[n] for n in sorted(names & parameters.keys())], "weight_decay": rate}
        for names, rate in groups
    ]


def make_optimizer(
    model: nn.Module, config: OptimConfig, more: Sequence[dict[str, Any]] = ()
) -> torch.optim.Optimizer:
    """AdamW or Adam with torch's first beta and eps, or SGD with momentum.

    Args:
        more: further groups; their `rate_share` is their learning rate over the model's.
    """
    groups = [*parameter_groups(model, config), *more]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=(FIRST_BETA, config.beta2))


def learning_rate_at(step: int, steps_per_epoch: int, config: OptimConfig) -> float:
    """The rate used by optimiser step `step`, counted from 0.

    With W warm-up steps and M steps in all: a linear warm-up i / (W - 1) from 0 that reaches the
    base rate at its last step, then a cosine down to `eta_min` at step M, or a factor `gamma` at
    each milestone.
    """
    base = config.learning_rate
    warmup_steps = config.warmup_epochs * steps_per_epoch  # W
    if step < warmup_steps:
        return base * step / (warmup_steps - 1) if step else 0.0
    i = step - warmup_steps
    if config.schedule == "multistep":
        passed = sum(i >= epoch * steps_per_epoch for epoch in config.milestones)
        return base * config.gamma**passed
    progress = i / (config.epochs * steps_per_epoch)
    return config.eta_min + 0.5 * (base - config.eta_min) * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the rate times its `rate_share`, which is 1 if not stated."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_share", 1.0)
