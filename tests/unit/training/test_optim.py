"""Decay groups and the learning-rate schedule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tadpipe.errors import ConfigError
from tadpipe.training.optim import (
    OptimConfig,
    decay_names,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
)

SHARED = Path(__file__).parents[4] / "shared" / "parity"
CASES = sorted(SHARED.glob("*/schedule_*"))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3)
        self.up = nn.ConvTranspose1d(2, 2, 3)
        self.linear = nn.Linear(2, 2)
        self.norm = nn.GroupNorm(1, 2)
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Conv1d(2, 2, 1).requires_grad_(False)


@pytest.mark.skipif(not CASES, reason="the shared parity cases are not beside this checkout")
@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_schedule_equals_the_official_one(case: Path) -> None:
    params = json.loads((case / "case.json").read_text())["params"]
    with np.load(case / "io.npz") as stored:
        expected = stored["lr"]
    config = OptimConfig(
        learning_rate=params["learning_rate"],
        schedule=params["schedule_type"],
        warmup_epochs=params["warmup_epochs"],
        epochs=params["epochs"],
        eta_min=params.get("eta_min", 1e-8),
        milestones=tuple(params.get("schedule_steps", ())),
        gamma=params.get("schedule_gamma", 0.1),
    )
    steps = params["num_iters_per_epoch"]
    ours = [learning_rate_at(step, steps, config) for step in range(len(expected))]
    assert np.allclose(ours, expected, rtol=1e-9, atol=1e-15)


def test_without_warm_up_the_base_rate_comes_first() -> None:
    config = OptimConfig(learning_rate=0.1, warmup_epochs=0, epochs=2)
    assert learning_rate_at(0, 5, config) == 0.1
    assert learning_rate_at(10, 5, config) == pytest.approx(1e-8)


def test_a_warm_up_of_one_step_starts_at_zero() -> None:
    config = OptimConfig(learning_rate=0.1, warmup_epochs=1, epochs=2)
    assert [learning_rate_at(step, 1, config) for step in (0, 1)] == [0.0, 0.1]


def test_only_weights_of_convolutions_and_linear_layers_decay() -> None:
    decay, rest = decay_names(Mixed())
    assert decay == {"conv.weight", "up.weight", "linear.weight", "frozen.weight"}
    assert rest == {
        "conv.bias",
        "up.bias",
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "scale",
        "frozen.bias",
    }


def test_frozen_parameters_are_left_out_of_the_optimiser() -> None:
    optimizer = make_optimizer(Mixed(), OptimConfig(weight_decay=0.3))
    decay, rest = optimizer.param_groups
    assert (len(decay["params"]), decay["weight_decay"]) == (3, 0.3)
    assert (len(rest["params"]), rest["weight_decay"]) == (6, 0.0)


def test_optimizer_and_momentum_are_those_asked_for() -> None:
    sgd = make_optimizer(Mixed(), OptimConfig(optimizer="sgd", momentum=0.7))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.7
    assert isinstance(make_optimizer(Mixed(), OptimConfig()), torch.optim.AdamW)
    adam = make_optimizer(Mixed(), OptimConfig(optimizer="adam", learning_rate=0.3))
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["lr"] == 0.3


def test_decay_of_all_leaves_nothing_out() -> None:
    optimizer = make_optimizer(Mixed(), OptimConfig(weight_decay=0.3, decay="all"))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3]


def test_decay_is_part_of_adams_gradient_and_apart_from_adamws() -> None:
    moved = {}
    for name in ("adam", "adamw"):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 2.0)
        config = OptimConfig(
            optimizer=name,
            learning_rate=0.1,
            weight_decay=0.25,
        )
        optimizer = make_optimizer(layer, config)
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
        moved[name] = 2.0 - layer.weight.item()
    # Adam: the decay is the whole gradient, of which the first step takes the sign.
    assert moved == pytest.approx({"adam": 0.1, "adamw": 0.1 * 0.25 * 2.0}, abs=1e-6)


def test_the_rate_reaches_every_group() -> None:
    optimizer = make_optimizer(Mixed(), OptimConfig())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    "values", [{"learning_rate": 0.0}, {"weight_decay": -1.0}, {"epochs": 0}, {"warmup_epochs": -1}]
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        OptimConfig(**values)  # type: ignore[arg-type]


def test_second_beta_is_that_of_the_configuration() -> None:
    for config in (OptimConfig(beta2=0.98), OptimConfig(optimizer="adam", beta2=0.98)):
        assert make_optimizer(nn.Linear(2, 2), config).defaults["betas"] == (0.9, 0.98)
    with pytest.raises(ConfigError, match="beta2"):
        OptimConfig(beta2=1.0)
