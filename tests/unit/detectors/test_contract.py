"""What every detector promises, one class that all of them pass.

A detection of a video may depend on nothing but the video and, where the paper's model is built so,
on the length it is padded to: that length is then one published number per video. PADDING_MATTERS
says for which detectors; the others give the same detections however far the padding goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tadpipe.detectors import DETECTORS
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.protocol import GridDetections, Targets
from tadpipe.errors import ConfigError
from tadpipe.registry import resolve
from tests.unit.detectors.small import CONFIGS

# Means, norms or recurrences over padded steps: SGP, DynE and GMG blocks, and ETAD's base.
PADDING_MATTERS = {"tridet", "dyfadet", "cltdr-gmg", "etad", "etad-opentad"}
TERMS = {
    "actionformer": {"cls", "reg"},
    "asl": {"cls", "reg", "quality", "contrast"},
    "cltdr-gmg": {"cls", "reg"},
    "dyfadet": {"cls", "reg"},
    "etad": {"boundary", "stage_0", "stage_1", "stage_2"},
    "etad-opentad": {"boundary", "stage_0", "stage_1", "stage_2"},
    "tridet": {"cls", "reg"},
}
# Parameters without gradient: constants, and weights that published checkpoints hold unused.
DEAD: dict[str, Callable[[str], bool]] = {
    "dyfadet": lambda name: "shift_conv" in name or _is_unused_norm(name),
}
EVERY_CANDIDATE = DecodeConfig(pre_nms_threshold=0.0, pre_nms_topk=50, min_length_grid=0.0)


def _is_unused_norm(name: str) -> bool:
    """The norm of a layer of DyFADet's heads, `cls_trunk.0.norm.weight`."""
    parts = name.split(".")
    return parts[0].endswith("_trunk") and parts[2] == "norm"


def make(name: str, decode: DecodeConfig = EVERY_CANDIDATE) -> Any:
    """A detector whose scales, biases and branches act as after some training."""
    torch.manual_seed(0)
    model: nn.Module = resolve("detector", DETECTORS, name)(CONFIGS[name], decode)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "drop_path" in key or "scale_weight" in key:
                parameter.fill_(0.5)
            elif parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def videos(model: Any, lengths: tuple[int, ...], padded: int) -> tuple[Tensor, Tensor]:
    """Random features, the same at real steps whatever the padding and the company."""
    feats = torch.zeros(len(lengths), model.config.in_channels, padded)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(length)
        feats[row, :, :length] = torch.randn(model.config.in_channels, length, generator=generator)
    return feats, torch.arange(padded) < torch.tensor(lengths)[:, None]


def targets(model: Any, count: int) -> Targets:
    """Two actions in the first video, one in the others."""
    end = model.config.window_len
    first = torch.tensor([[0.1 * end, 0.3 * end], [0.4 * end, 0.9 * end]])
    last_class = model.config.num_classes - 1
    return Targets(
        [first] + [first[1:]] * (count - 1),
        [torch.tensor([0, last_class])] + [torch.tensor([last_class])] * (count - 1),
    )


def total_loss(model: Any, seed: int = 0) -> Tensor:
    """Of one training batch of two videos, one of them padded."""
    window = model.config.window_len
    model.train()
    torch.manual_seed(seed)
    outputs = model(*videos(model, (window, window // 2), window))
    return torch.stack(list(model.loss(outputs, targets(model, 2)).values())).sum()


def detections(model: Any, lengths: tuple[int, ...], padded: int) -> list[GridDetections]:
    model.eval()
    with torch.inference_mode():
        found: list[GridDetections] = model.decode(model(*videos(model, lengths, padded)))
    return found


def assert_same(ours: GridDetections, theirs: GridDetections) -> None:
    """The same detections, best first; near ties may change places."""
    assert len(ours.scores) == len(theirs.scores)
    for mine, other in zip(_rows(ours), _rows(theirs), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-4, rtol=2e-4)


def _rows(found: GridDetections) -> tuple[Tensor, Tensor]:
    return found.scores.sort().values, found.segments.sort(dim=0).values


@pytest.mark.parametrize("name", DETECTORS)
class TestEveryDetector:
    def test_a_video_is_found_the_same_in_any_company(self, name: str) -> None:
        model = make(name)
        window = model.config.window_len
        short, long = 3 * window // 8, window
        alone = detections(model, (short,), window)[0]
        behind = detections(model, (long, short, long), window)[1]
        assert_same(behind, alone)

    def test_padding_changes_detections_only_where_it_is_said_to(self, name: str) -> None:
        model = make(name)
        window = model.config.window_len
        lengths = (window // 8, window // 4, window // 2 - 1, window)
        padded = [model.padded_len(length) for length in lengths]
        if name in PADDING_MATTERS:
            assert padded == [window] * 4  # one length for all: nothing left to chance
            return
        assert min(padded) < window
        for length, own in zip(lengths, padded, strict=True):
            assert_same(
                detections(model, (length,), own)[0], detections(model, (length,), window)[0]
            )

    def test_the_longest_sequence_goes_through_and_longer_ones_are_refused(self, name: str) -> None:
        model = make(name)
        longest = model.max_len()
        assert longest >= model.config.window_len
        padded = model.padded_len(longest)
        assert len(detections(model, (longest,), padded)) == 1
        with pytest.raises(ConfigError):
            detections(model, (longest,), 2 * padded)

    def test_lengths_between_the_steps_of_the_pyramid_are_refused(self, name: str) -> None:
        model = make(name)
        length = model.config.window_len + 2
        with pytest.raises(ConfigError, match="grid steps"):
            detections(model, (length,), length)

    def test_candidates_keep_to_the_settings_of_decoding(self, name: str) -> None:
        model = make(name, DecodeConfig(pre_nms_threshold=0.0, pre_nms_topk=7))
        window = model.config.window_len
        found = detections(model, (window, window // 2), window)
        assert len(found) == 2
        levels = len(getattr(model.config, "strides", (1,)))
        for dets in found:
            assert 0 < len(dets.scores) <= 7 * levels
            assert dets.segments.shape == (len(dets.scores), 2)
            assert (dets.labels < model.config.num_classes).all()

    def test_terms_have_their_names_and_are_finite_scalars(self, name: str) -> None:
        model = make(name)
        window = model.config.window_len
        losses = model.loss(model(*videos(model, (window,), window)), targets(model, 1))
        assert set(losses) == TERMS[name]
        for loss in losses.values():
            assert loss.shape == ()
            assert loss.isfinite()

    def test_every_parameter_but_the_dead_ones_gets_a_gradient(self, name: str) -> None:
        model = make(name)
        total_loss(model).backward()
        reached = {key for key, p in model.named_parameters() if p.grad is not None}
        dead = {key for key, _ in model.named_parameters() if DEAD.get(name, _none)(key)}
        assert {key for key, _ in model.named_parameters()} - reached == dead

    def test_a_step_follows_from_the_seed(self, name: str) -> None:
        first, again, other = (total_loss(make(name), seed) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)  # drop path, or the proposals that are drawn

    def test_loss_state_survives_a_round_trip(self, name: str) -> None:
        first, second = make(name), make(name)
        total_loss(first)
        second.load_loss_state(first.loss_state())
        assert second.loss_state() == first.loss_state()

    def test_mixed_precision_keeps_the_losses(self, name: str) -> None:
        exact = total_loss(make(name))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = total_loss(make(name))
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.0)

    def test_a_few_steps_lower_the_loss(self, name: str) -> None:
        model = make(name)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        state = model.loss_state()
        totals = []
        for _ in range(12):
            model.load_loss_state(state)
            optimizer.zero_grad()
            total = total_loss(model)
            total.backward()
            optimizer.step()
            totals.append(float(total.detach()))
        assert totals[-1] < 0.9 * totals[0]


def _none(_: str) -> bool:
    return False


def test_there_is_a_small_configuration_of_every_detector() -> None:
    assert set(CONFIGS) == set(DETECTORS) == set(TERMS)


@pytest.mark.parametrize("name", sorted(PADDING_MATTERS))
def test_padding_that_matters_changes_scores_or_is_refused(name: str) -> None:
    model = make(name)
    torch.manual_seed(3)
    with torch.no_grad():  # away from the start, where small weights say the same of everything
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    window = model.config.window_len
    full = detections(model, (window // 4,), window)[0]
    try:
        less = detections(model, (window // 4,), window // 2)[0]
    except ConfigError:
        return
    top = min(len(full.scores), len(less.scores))
    assert (full.scores[:top] - less.scores[:top]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["actionformer", "cltdr-gmg", "dyfadet", "tridet"])
def test_a_step_moves_the_normaliser(name: str) -> None:
    model = make(name)
    before = model.loss_state()
    total_loss(model)
    assert model.loss_state() != before
