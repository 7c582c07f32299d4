"""OpenTAD's ETAD: what differs from the release (masks, units, plateaus, weights), and its keys."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tadpipe.detectors.etad import EtadOutputs
from tadpipe.detectors.etad_losses import StageOutputs
from tadpipe.detectors.etad_opentad import (
    EtadOpenTad,
    plateau_peaks,
    remap_official_keys,
)
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.protocol import Targets
from tadpipe.errors import ConfigError
from tests.unit.detectors.small import ETAD_OPENTAD as SMALL

TARGETS = Targets(
    [torch.tensor([[1.5, 5.5], [8.5, 15.5]]), torch.tensor([[2.5, 10.5]])],
    [torch.tensor([0, 0]), torch.tensor([0])],
)
NO_LIMITS = DecodeConfig(pre_nms_threshold=0.0, pre_nms_topk=10_000, min_length_grid=0.0)


def small(**changes: Any) -> EtadOpenTad:
    torch.manual_seed(0)
    return EtadOpenTad(dataclasses.replace(SMALL, **changes), NO_LIMITS)


def window(lengths: tuple[int, ...] = (16, 16)) -> tuple[Tensor, Tensor]:
    feats = torch.randn(len(lengths), 8, 16, generator=Generator().manual_seed(1))
    mask = torch.arange(16) < torch.tensor(lengths)[:, None]
    return feats * mask[:, None], mask


def losses(model: EtadOpenTad, targets: Targets = TARGETS) -> dict[str, Tensor]:
    generator = Generator().manual_seed(0)
    return model.loss(model(*window(), generator=generator), targets, generator=generator)


def test_proposals_count_in_snippets() -> None:
    stages = small().eval()(*window()).stages
    assert stages[0].proposals[0, :2].tolist() == [[0, 1], [1, 2]]
    assert float(stages[0].proposals.max()) == 16


@pytest.mark.parametrize(
    "strategy", ["random", "grid", "block", "fps", "dpp", "iou-balanced", "scale-balanced"]
)
def test_every_strategy_trains_every_parameter(strategy: str) -> None:
    model = small(dps_strategy=strategy)
    torch.stack(list(losses(model).values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_mask_reaches_the_convolutions_and_padding_still_matters() -> None:
    model = small().eval()
    feats, mask = window((10, 16))
    whole = torch.ones_like(mask)
    masked, unmasked = model(feats, mask), model(feats, whole)
    assert not torch.allclose(masked.boundary[0], unmasked.boundary[0], atol=1e-4)
    assert torch.allclose(masked.boundary[1], unmasked.boundary[1], atol=1e-6)
    assert not masked.features[0, :, 10:].any()
    assert {model.padded_len(length) for length in (1, 10, 16)} == {16}
    with pytest.raises(ConfigError, match="exactly one window"):
        model(feats[..., :8], mask[..., :8])


def test_a_batch_without_actions_trains() -> None:
    none = Targets([torch.zeros(0, 2)] * 2, [torch.zeros(0).long()] * 2)
    total = torch.stack(list(losses(small(), none).values())).sum()
    assert torch.isfinite(total)


def test_plateaus_are_peaks() -> None:
    p = torch.tensor([[0.1, 0.3, 0.3, 0.1, 1.0], [0.2, 0.1, 0.2, 0.9, 0.1]])
    assert plateau_peaks(p)[0].tolist() == [False, True, True, False, True]
    assert plateau_peaks(p)[1].tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("cell_offset", [0.0, 0.5])
def test_where_snippet_zero_begins_is_stated(cell_offset: float) -> None:
    model = small(cell_offset_grid=cell_offset)
    still = torch.zeros(1, 1, 4)
    stage = StageOutputs(torch.tensor([[[0.0, 16.0]]]), torch.ones(1, 1, 2), still, still[..., :2])
    mask = torch.ones(1, 16, dtype=torch.bool)
    outputs = EtadOutputs(torch.zeros(1, 1, 16), torch.ones(1, 2, 16), mask, [stage])
    (dets,) = model.decode(outputs)
    assert dets.segments.tolist() == [[-cell_offset, 16 - cell_offset]]
    shifted = Targets([s - cell_offset for s in TARGETS.segments], TARGETS.labels)
    plain = losses(small(cell_offset_grid=0.0))
    moved = losses(model, shifted)
    assert all(torch.allclose(plain[name], moved[name]) for name in plain)


def test_dps_at_test_scores_the_grid_pattern_only() -> None:
    proposals = small(dps_at_test=0.2).eval()(*window()).stages[0].proposals
    assert 0 < proposals.shape[1] < 40


@pytest.mark.parametrize(
    "change",
    [
        {"stage_weights": (1.0, 2.0, 1.0)},
        {"stage_tious": (0.2, 0.8, 0.9)},
        {"positive_tiou": 0.4},
        {"positive_snippet": 0.2},
        {"iou_cls_weight": 2.0},
        {"iou_reg_weight": 1.0},
        {"offset_weight": 1.0},
        {"dps_ratio": 0.5},
        {"extend_ratio": 0.25},
        {"roi_bins": 5},
        {"trunk_dim": 16},
        {"fc_dim": 12},
        {"fc_layers": 2},
        {"width": 64},
        {"max_duration": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_options_change_the_loss(change: dict[str, Any]) -> None:
    plain, changed = losses(small()), losses(small(**change))
    assert any(not torch.equal(plain[name], changed[name]) for name in plain)


def test_settings_that_cannot_be_are_refused() -> None:
    for change in (
        {"num_classes": 2},
        {"max_duration": 17},
        {"width": 48},
        {"stage_weights": (1.0,)},
        {"dps_ratio": 0.0},
        {"dps_at_test": 0.0},
    ):
        with pytest.raises(ConfigError):
            dataclasses.replace(SMALL, **change)


def test_official_keys_are_renamed_one_to_one() -> None:
    head = "roi_head.proposal_heads.2.reg_head"
    names = {
        "projection.convs.0.conv.weight": "temporal_enhance.layer1.0.weight",
        "projection.convs.0.norm.bias": "temporal_enhance.layer1.1.bias",
        "neck.mem_f.weight_ih_l0": "temporal_enhance.mem_f.weight_ih_l0",
        "neck.layer2_d.norm.weight": "temporal_enhance.layer2_d.1.weight",
        "rpn_head.tem.1.conv.bias": "tem.2.bias",
        "roi_head.proposal_heads.1.shared_conv_fc.fcs.0.0.weight": "stages.1.trunk.weight",
        f"{head}.fcs.0.0.weight": "stages.2.reg_head.0.weight",
        f"{head}.fcs.2.0.bias": "stages.2.reg_head.4.bias",
        f"{head}.head.bias": "stages.2.reg_head.6.bias",
        "somewhere.else": "somewhere.else",
    }
    state = {f"module.{name}": torch.tensor(float(i)) for i, name in enumerate(names)}
    renamed = remap_official_keys({"state_dict": {}, "state_dict_ema": state})
    assert list(renamed) == list(names.values())
    assert [float(value) for value in renamed.values()] == list(range(len(names)))
    assert remap_official_keys({"state_dict": state}) == renamed
    assert remap_official_keys({"state_dict": {}, "state_dict_ema": state}, ema=False) == {}
