"""ETAD: size, sampling, padding, decoding, training on little data, every option."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tadpipe.detectors.etad import (
    Etad,
    EtadConfig,
    EtadOutputs,
    boundary_peaks,
    forced_ends,
    mean_over_stages,
    refine,
    remap_official_keys,
)
from tadpipe.detectors.etad_losses import StageOutputs
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.parts.nms import NmsConfig, batched_nms
from tadpipe.detectors.protocol import Targets
from tadpipe.errors import ConfigError
from tests.unit.detectors.small import ETAD as SMALL

TARGETS = Targets(
    [torch.tensor([[1.5, 5.5], [8.5, 15.5]]), torch.tensor([[2.5, 10.5]])],
    [torch.tensor([0, 0]), torch.tensor([0])],
)
NO_LIMITS = DecodeConfig(pre_nms_threshold=0.0, pre_nms_topk=10_000, min_length_grid=0.0)


def small(**changes: Any) -> Etad:
    torch.manual_seed(0)
    return Etad(dataclasses.replace(SMALL, **changes), NO_LIMITS)


def window(batch: int = 2, length: int = 16) -> tuple[Tensor, Tensor]:
    feats = torch.randn(batch, 8, length, generator=seeded(1))
    return feats, torch.ones(batch, length, dtype=torch.bool)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def total_loss(model: Etad, targets: Targets = TARGETS, seed: int = 0) -> Tensor:
    generator = seeded(seed)
    model.train()
    outputs = model(*window(), generator=generator)
    return torch.stack(list(model.loss(outputs, targets, generator=generator).values())).sum()


def test_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):
        model = Etad(EtadConfig(in_channels=512, num_classes=1))
    assert sum(p.numel() for p in model.parameters()) == 10_343_450


def test_training_samples_and_test_takes_every_proposal() -> None:
    model = small()
    feats, mask = window()
    assert model(feats, mask).stages[0].proposals.shape == (2, int(126 * 0.2), 2)
    model.eval()
    assert model(feats, mask).stages[0].proposals.shape == (2, 126, 2)


def test_each_video_and_step_draws_its_own_proposals_repeatably() -> None:
    model = small()
    generator = seeded(3)
    first, second = (model(*window(), generator=generator).stages[0].proposals for _ in range(2))
    again = model(*window(), generator=seeded(3)).stages[0].proposals
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_without_a_generator_the_default_one_of_torch_decides() -> None:
    model = small()
    torch.manual_seed(5)
    first = total_default(model)
    torch.manual_seed(5)
    assert torch.equal(first, total_default(model))


def total_default(model: Etad) -> Tensor:
    losses = model.loss(model(*window()), TARGETS)
    return torch.stack(list(losses.values())).sum().detach()


@pytest.mark.parametrize(
    "strategy", ["random", "grid", "block", "fps", "dpp", "iou-balanced", "scale-balanced"]
)
def test_every_strategy_trains_every_parameter(strategy: str) -> None:
    model = small(dps_strategy=strategy)
    total_loss(model).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_sampling_balanced_by_tiou_sees_more_good_proposals_than_random() -> None:
    shares = []
    for strategy in ("random", "iou-balanced"):
        model = small(dps_strategy=strategy)
        outputs = model(*window(), generator=seeded())
        if not outputs.stages:
            cells = [segments + 0.5 for segments in TARGETS.segments]
            outputs = model._sampled(outputs, seeded(), cells)
        targets = model.targets(outputs, [(s + 0.5) / 16 for s in TARGETS.segments])
        first = outputs.stages[0].proposals
        shares.append(float(((first - targets.matched).abs().sum(2) < 0.2).float().mean()))
    assert shares[1] > shares[0]


def test_proposals_pass_no_gradient_to_an_earlier_stage() -> None:
    model = small().eval()
    outputs = model(*window())
    outputs.stages[2].offsets.sum().backward()
    assert model.stage_pem[0].reg_s_fc[0].weight.grad is None
    assert model.stage_pem[2].reg_s_fc[0].weight.grad is not None
    assert model.temporal_enhance.layer1[0].weight.grad is not None


def test_a_batch_without_actions_and_one_with_a_point_train() -> None:
    none = Targets([torch.zeros(0, 2), torch.tensor([[4.0, 4.0]])], [torch.zeros(0).long()] * 2)
    model = small()
    loss = total_loss(model, none)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_padding_is_part_of_the_input_so_every_video_is_padded_to_the_window() -> None:
    model = small().eval()
    assert {model.padded_len(length) for length in (1, 7, 16)} == {16}
    feats, mask = window(1)
    mask[:, 10:] = False
    padded = model(feats * mask[:, None], mask)
    # The backward LSTM and the norms start in the padding: real steps depend on what is there.
    other = model(feats, mask)
    assert not torch.allclose(padded.boundary[..., :5], other.boundary[..., :5], atol=1e-4)
    with pytest.raises(ConfigError, match="exactly one window"):
        model(feats[..., :8], mask[..., :8])


def test_proposals_that_start_in_the_padding_are_no_candidates() -> None:
    model = small().eval()
    feats, mask = window(1)
    mask[:, 6:] = False
    (dets,) = model.decode(model(feats * mask[:, None], mask))
    assert len(dets.scores)
    assert float(dets.segments[:, 0].max()) < 6 - 0.5


def outputs_of(segments: list[list[float]], scores: list[float], boundary: Tensor) -> EtadOutputs:
    """One stage whose proposals (in snippets of 8) are already right."""
    proposals = torch.tensor([segments]) / 8
    iou = torch.stack((torch.tensor([scores]), torch.ones(1, len(scores))), dim=2)
    still = torch.zeros(1, len(scores), 4)
    stage = StageOutputs(proposals, iou, still, still[..., :2])
    mask = torch.ones(1, 8, dtype=torch.bool)
    return EtadOutputs(torch.zeros(1, 1, 8), boundary, mask, [stage])


BOUNDARY = torch.tensor(
    [[[0.1, 0.1, 0.9, 0.1, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1, 0.8, 0.1, 0.1]]]
)


def test_candidates_start_and_end_at_peaks_and_lie_on_the_grid() -> None:
    model = small()
    segments = [[2.0, 5.0], [3.0, 5.0], [0.0, 7.0], [4.5, 5.9], [2.0, 4.0]]
    (dets,) = model.decode(outputs_of(segments, [0.3, 0.9, 0.5, 0.4, 0.9], BOUNDARY))
    # Snippet s covers [s, s + 1]; its row is at its middle. Start 3 and end 4 are no peaks.
    wanted = torch.tensor([[-0.5, 6.5], [4.0, 5.4], [1.5, 4.5]])
    assert torch.allclose(dets.segments, wanted, atol=1e-5)
    assert torch.allclose(dets.scores, torch.tensor([0.5, 0.4, 0.3]))
    assert dets.labels.tolist() == [0, 0, 0]


def test_score_of_the_paper_counts_the_boundaries() -> None:
    (dets,) = small(score="paper").decode(outputs_of([[2.0, 5.0]], [0.5], BOUNDARY))
    assert dets.scores.tolist() == pytest.approx([0.5 * 0.9 * 0.8])


def test_peaks_are_strict_or_above_half_the_maximum() -> None:
    p = torch.tensor([[0.2, 0.1, 0.3, 0.3, 0.1, 1.0, 0.6, 0.2], [0.1] * 8])
    peaks = boundary_peaks(p)
    assert peaks[0].tolist() == [True, False, False, False, False, True, True, False]
    assert peaks[1].all()
    assert forced_ends(torch.zeros(2, 3, dtype=torch.bool)).tolist() == [
        [True, False, False],
        [False, False, True],
    ]


def test_refining_averages_boundary_and_centre_moves() -> None:
    moved = refine(torch.tensor([2.0, 6.0]), torch.tensor([0.25, 0.5, 0.1, 0.0]))
    # By boundaries [3, 8]; by centre and width [2.4, 6.4].
    assert moved.tolist() == pytest.approx([2.7, 7.2])


def test_dps_at_test_scores_the_grid_pattern_only() -> None:
    model = small(dps_at_test=0.2).eval()
    proposals = model(*window()).stages[0].proposals
    assert 0 < proposals.shape[1] < 40
    assert torch.equal(proposals[0], proposals[1])
    assert float(proposals[0, :, 0].min()) > 0


CHANGES_OF_OUTPUT = {"extend_ratio": 0.25, "roi_bins": 12, "max_duration": 8, "width": 64}
CHANGES_OF_OUTPUT |= {"mid_dim": 16, "fc_dim": 12, "stage_tious": (0.7, 0.8)}


@pytest.mark.parametrize("field", CHANGES_OF_OUTPUT)
def test_model_options_change_the_output(field: str) -> None:
    segments = []
    for model in (small(), small(**{field: CHANGES_OF_OUTPUT[field]})):
        refined, _ = mean_over_stages(model.eval()(*window()).stages)
        segments.append(refined)
    same_shape = segments[0].shape == segments[1].shape
    assert not same_shape or not torch.allclose(segments[0], segments[1])


@pytest.mark.parametrize(
    "change",
    [
        {"stage_tious": (0.2, 0.8, 0.9)},
        {"positive_tiou": 0.4},
        {"iou_cls_weight": 2.0},
        {"iou_reg_weight": 1.0},
        {"offset_weight": 1.0},
        {"dps_ratio": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_loss_options_change_the_loss(change: dict[str, Any]) -> None:
    assert total_loss(small(**change)) != total_loss(small())


def test_settings_that_cannot_be_are_refused() -> None:
    for change in (
        {"num_classes": 20},
        {"max_duration": 17},
        {"width": 48},
        {"in_channels": 6},
        {"roi_bins": 6},
        {"stage_tious": ()},
        {"dps_ratio": 0.0},
        {"dps_strategy": "grd"},
        {"dps_at_test": 2.0},
    ):
        with pytest.raises(ConfigError):
            dataclasses.replace(SMALL, **change)


def test_official_keys_lose_their_wrapper_and_the_encoder_is_left_out() -> None:
    state = small().state_dict()
    official = {f"module.base_detector.{name}": value for name, value in state.items()}
    official["module.feature_extractor.model.backbone.stem.weight"] = torch.zeros(1)
    checkpoint = {"epoch": 5, "state_dict": official, "scheduler": {}, "optimizer": {}}
    small().load_state_dict(remap_official_keys(checkpoint))
    assert remap_official_keys(state).keys() == state.keys()


def test_few_steps_find_where_the_actions_are() -> None:
    """Two channels say where an action starts and where it ends; the rest is noise."""
    model = small(dps_ratio=0.5)
    feats, mask = window(2)
    feats = 0.1 * feats
    for b, segments in enumerate(TARGETS.segments):
        for start, end in (segments + 0.5).long().tolist():
            feats[b, 0, start] = feats[b, 1, end - 1] = 3.0
            feats[b, 2, start:end] = 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator = seeded()
    for _ in range(70):
        optimizer.zero_grad()
        losses = model.loss(model(feats, mask, generator=generator), TARGETS, generator=generator)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    model.eval()
    nms = NmsConfig(sigma=0.35, min_score=0.0, multiclass=False, vote_threshold=0.0)
    with torch.no_grad():
        found = [batched_nms(dets, nms) for dets in model.decode(model(feats, mask))]
    assert torch.allclose(found[1].segments[0], TARGETS.segments[1][0], atol=1.0)
    best = found[0].segments[:2]
    best = best[best[:, 0].argsort()]
    assert torch.allclose(best, TARGETS.segments[0], atol=1.2)
