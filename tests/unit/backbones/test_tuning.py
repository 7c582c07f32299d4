"""What trains, what stays in evaluation mode, and which groups the optimiser gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tadpipe.backbones.tia import AdapterConfig, add_adapters
from tadpipe.backbones.tuning import keep_frozen_in_eval, set_tuning, trainable_groups
from tadpipe.backbones.videomae import VideoMAE, videomae_tiny
from tadpipe.errors import ConfigError


def tiny(kind: Any = "tia", *, drop_path: float = 0.0, init_values: float = 0.0) -> VideoMAE:
    torch.manual_seed(0)
    model = videomae_tiny(drop_path=drop_path, init_values=init_values)
    add_adapters(model, AdapterConfig(kind=kind))
    return model


def test_adapter_tuning_trains_adapters_under_their_own_group() -> None:
    model = tiny()
    set_tuning(model, "adapter")
    groups = trainable_groups(model)
    assert set(groups) == {"adapter"}
    assert {name.split(".")[2] for name in groups["adapter"]} == {"adapter"}
    assert not any("fc_norm" in name for name in groups["adapter"])


def test_full_tuning_has_two_groups_and_leaves_an_unused_norm_out_for_frames() -> None:
    model = tiny()
    set_tuning(model, "full")
    groups = trainable_groups(model)
    assert "fc_norm.weight" in groups["backbone"]
    assert all(".adapter." in name for name in groups["adapter"])
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    set_tuning(model, "full", representation="frame")
    assert not any("fc_norm" in name for name in trainable_groups(model)["backbone"])


def test_frozen_tuning_has_no_group() -> None:
    model = tiny()
    set_tuning(model, "frozen")
    assert trainable_groups(model) == {}


def test_named_modules_stay_frozen_in_full_tuning() -> None:
    model = tiny("none")
    set_tuning(model, "full", frozen=("patch_embed", "blocks.0"))
    trained = trainable_groups(model)["backbone"]
    assert {".".join(name.split(".")[:2]) for name in trained if "blocks" in name} == {"blocks.1"}
    assert not any(name.startswith("patch_embed") for name in trained)
    with pytest.raises(ConfigError, match=r"no module blocks\.9"):
        set_tuning(model, "full", frozen=("blocks.9",))


@pytest.mark.parametrize("init_values", [0.0, 0.1])
def test_frozen_layers_stay_in_eval_mode_and_drop_path_stays_active(init_values: float) -> None:
    model = tiny(drop_path=0.5, init_values=init_values)
    set_tuning(model, "adapter")
    parent = nn.ModuleDict({"backbone": model})
    parent.train()
    block = model.blocks[1]
    assert block.training
    assert block.adapter.down_proj.training
    assert not block.attn.qkv.training
    assert not block.norm1.training
    assert not model.patch_embed.proj.training
    clips = torch.randn(4, 3, 16, 32, 32)
    torch.manual_seed(1)
    first = model(clips)
    assert not torch.equal(model(clips), first)
    model.eval()
    assert not block.training
    assert torch.equal(model(clips), model(clips))


class Normed(nn.Module):
    """Stands for a convolutional backbone."""

    name = "normed"
    snippet_only: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 1)
        self.norm = nn.BatchNorm3d(4)

    def train(self, mode: bool = True) -> Normed:
        super().train(mode)
        keep_frozen_in_eval(self)
        return self


@pytest.mark.parametrize("affine", [False, True])
def test_batch_norms_keep_their_statistics_also_in_full_tuning(affine: bool) -> None:
    model: Any = Normed()
    model.train()
    assert model.norm.training
    set_tuning(model, "full", batch_norm_affine=affine)
    model.train()
    assert model.conv.training
    assert not model.norm.training
    assert model.norm.weight.requires_grad is affine


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(ConfigError, match="no adapters to tune"):
        set_tuning(tiny("none"), "adapter")
    with pytest.raises(ConfigError, match="ladder stands beside a frozen backbone"):
        set_tuning(tiny("ladder"), "full")
