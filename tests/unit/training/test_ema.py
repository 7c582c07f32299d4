"""The model average: a copy at first, then one decay for every entry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.training.ema import ModelEma


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2))


def test_it_starts_as_a_copy_and_not_as_the_weights_themselves() -> None:
    net = model()
    ema = ModelEma(net)
    before = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight += 1
    assert torch.equal(ema.state["0.weight"], before)


def test_every_entry_moves_by_the_same_share_from_the_first_step() -> None:
    net = model()
    ema = ModelEma(net, decay=0.9)
    old = {name: value.clone() for name, value in ema.state.items()}
    with torch.no_grad():
        for value in net.state_dict().values():
            value += 2
    ema.update(net)
    for name, value in net.state_dict().items():
        expected = value if not value.is_floating_point() else 0.9 * old[name] + 0.1 * value
        assert torch.allclose(ema.state[name], expected.to(value.dtype)), name


def test_the_weights_come_back_after_the_average_was_applied() -> None:
    net = model()
    ema = ModelEma(net)
    with torch.no_grad():
        net[0].weight += 1
    own = net[0].weight.detach().clone()
    with ema.applied_to(net):
        assert torch.equal(net[0].weight, ema.state["0.weight"])
    assert torch.equal(net[0].weight, own)


def test_the_average_of_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="another model"):
        ModelEma(model()).load_state({"0.weight": torch.zeros(1)})


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ConfigError):
        ModelEma(model(), decay=1.0)
