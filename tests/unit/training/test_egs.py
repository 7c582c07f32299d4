"""Encoder gradient sampling: equal to one pass, whatever the micro-batches; counts and modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tadpipe.errors import ConfigError
from tadpipe.training.egs import (
    NONE,
    EgsConfig,
    choose_snippets,
    draw_by_gradient,
    egs_backward,
    encode,
    sample_by_size,
)

VIDEOS, SNIPPETS, CHANNELS = 2, 10, 5


class Encoder(nn.Module):
    """A small clip encoder with parts that differ between training and eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, CHANNELS)

    def forward(self, clips: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.stem(clips)))
        return self.head(self.drop(x.mean((2, 3, 4))))


def parts() -> tuple[Encoder, nn.Conv1d, Tensor]:
    torch.manual_seed(0)
    clips = torch.randn(VIDEOS, SNIPPETS, 3, 2, 4, 4)
    return Encoder().double(), nn.Conv1d(CHANNELS, 1, 3, padding=1).double(), clips.double()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def one_pass(
    encoder: nn.Module, detector: nn.Module, clips: Tensor, chosen: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Algorithm 1 of the paper: the graph of the chosen snippets reaches through the detector."""
    encoder.eval()
    with torch.no_grad():
        still = encoder(clips.flatten(0, 1)).view(VIDEOS, SNIPPETS, -1)
    moving = encoder(clips.flatten(0, 1)).view(VIDEOS, SNIPPETS, -1)
    picked = torch.zeros(VIDEOS, SNIPPETS, 1, dtype=torch.bool).scatter(1, chosen[..., None], True)
    features = torch.where(picked, moving, still).transpose(1, 2)
    detector(features).square().sum().backward()
    return gradients(encoder), gradients(detector)


def run(config: EgsConfig, seed: int = 0) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    encoder, detector, clips = parts()
    done = egs_backward(
        encoder,
        clips,
        lambda feats: {"loss": detector(feats).square().sum()},
        config,
        generator=torch.Generator().manual_seed(seed),
    )
    assert not done.losses["loss"].requires_grad
    return done.snippets, gradients(encoder), gradients(detector)


@pytest.mark.parametrize("ratio", [1.0, 0.3])
@pytest.mark.parametrize("micro_batch", [1, 3, 10])
def test_gradients_are_those_of_one_pass(ratio: float, micro_batch: int) -> None:
    chosen, encoder, detector = run(EgsConfig(ratio=ratio, micro_batch=micro_batch))
    wanted_encoder, wanted_detector = one_pass(*parts(), chosen)
    assert chosen.shape == (VIDEOS, round(ratio * SNIPPETS))
    for ours, wanted in ((encoder, wanted_encoder), (detector, wanted_detector)):
        assert ours.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.allclose(ours[name], value, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("strategy", ["random", "grid", "block", "fps", "dpp", "gradient"])
def test_each_strategy_draws_for_every_video(strategy: str) -> None:
    chosen, encoder, _ = run(EgsConfig(ratio=0.4, strategy=strategy))  # type: ignore[arg-type]
    assert chosen.shape == (VIDEOS, 4)
    assert bool((chosen.diff(dim=1) > 0).all())
    assert set(encoder) == {name for name, _ in Encoder().named_parameters()}


def test_videos_draw_their_own_snippets() -> None:
    features = torch.zeros(8, CHANNELS, 40)
    chosen = choose_snippets(features, EgsConfig(), torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in chosen.tolist()}) > 1


def test_whole_micro_batches_round_up_as_the_release_does() -> None:
    config = EgsConfig(ratio=0.3, micro_batch=4, whole_micro_batches=True)
    counts = [round(n * config.effective_ratio(n)) for n in (128, 16, 4, 3, 1)]
    assert counts == [40, 8, 4, 3, 1]
    assert EgsConfig(ratio=0.3).effective_ratio(128) == 0.3


def test_encoder_keeps_its_modes_and_statistics() -> None:
    encoder, detector, clips = parts()
    encoder.train()
    encoder.norm.eval()
    before = encoder.norm.running_mean.clone()
    egs_backward(
        encoder,
        clips,
        lambda feats: {"loss": detector(feats).sum()},
        EgsConfig(),
        generator=torch.Generator(),
    )
    assert encoder.training
    assert encoder.drop.training
    assert not encoder.norm.training
    assert torch.equal(encoder.norm.running_mean, before)


def test_frozen_parameters_get_no_gradient_and_gradients_add_up() -> None:
    encoder, detector, clips = parts()
    encoder.stem.requires_grad_(False)
    seen = []
    for _ in range(2):
        egs_backward(
            encoder,
            clips,
            lambda feats: {"loss": detector(feats).sum()},
            EgsConfig(),
            generator=torch.Generator().manual_seed(0),
        )
        seen.append(encoder.head.weight.grad.clone())
    assert encoder.stem.weight.grad is None
    assert torch.allclose(seen[1], 2 * seen[0])


def test_encoding_does_not_depend_on_the_micro_batch() -> None:
    encoder, _, clips = parts()
    encoder.eval()
    features = encode(encoder, clips, 10)
    assert features.shape == (VIDEOS, CHANNELS, SNIPPETS)
    assert torch.allclose(encode(encoder, clips, 3), features)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="ratio"):
        EgsConfig(ratio=1.5)
    with pytest.raises(ConfigError, match="micro-batch"):
        EgsConfig(micro_batch=0)


@pytest.mark.parametrize(("micro_batch", "passes"), [(SNIPPETS, 1), (SNIPPETS - 1, 4)])
def test_one_micro_batch_of_all_snippets_is_encoded_once(micro_batch: int, passes: int) -> None:
    encoder, detector, clips = parts()
    calls: list[int] = []
    encoder.register_forward_hook(lambda _module, given, _out: calls.append(len(given[0])))
    egs_backward(
        encoder,
        clips,
        lambda feats: {"loss": detector(feats).square().sum()},
        EgsConfig(ratio=1.0, micro_batch=micro_batch),
        generator=torch.Generator(),
    )
    assert len(calls) == passes


def test_gradients_are_drawn_by_size_and_divided_by_their_chance() -> None:
    grad = torch.zeros(2, CHANNELS, 6)  # [B, C, M]
    grad[0, 0] = torch.tensor([1.0, -20.0, 1.0, 1.0, 1.0, 0.0])
    grad[1, 1] = torch.tensor([1.0, 1.0, 2.0, 1.0, 9.0, 9.0])  # the last two are padding
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    config = EgsConfig(ratio=0.5, strategy="gradient")
    chosen, scaled = draw_by_gradient(grad, config, torch.Generator().manual_seed(0), mask)
    assert 1 in chosen[0]
    assert 5 not in chosen[0]
    assert chosen[1, 2] == NONE
    assert scaled[0, 0, chosen[0]].tolist() == [-20.0 if m == 1 else 2.0 for m in chosen[0]]
    assert scaled[1, 1, chosen[1, :2]].tolist() == pytest.approx([2.5, 2.5])


def test_drawn_gradients_are_the_full_ones_on_average() -> None:
    grad = torch.randn(1, CHANNELS, 12, generator=torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros_like(grad)
    draws = 4000
    for _ in range(draws):
        chosen, scaled = draw_by_gradient(grad, EgsConfig(0.25, "gradient"), generator)
        total[:, :, chosen[0]] += scaled[:, :, chosen[0]]
    assert torch.allclose(total / draws, grad, atol=0.2)


@pytest.mark.parametrize("sizes", [[0.0] * 6, [0.0, 0.0, 7.0, 0.0, 0.0, 0.0], [1.0] * 6])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_as_many_are_drawn_as_asked_for(sizes: list[float], k: int) -> None:
    chosen, chance = sample_by_size(torch.tensor(sizes), k, torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == k
    assert bool(((chance > 0) & (chance <= 1)).all())


def test_gradients_of_overflowing_losses_draw_all_the_same() -> None:
    grad = torch.full((1, CHANNELS, 8), torch.inf)
    grad[0, 0, 3] = torch.nan
    chosen, _ = draw_by_gradient(grad, EgsConfig(0.5, "gradient"), torch.Generator())
    assert chosen.shape == (1, 4)


def test_gradient_with_all_snippets_is_the_full_gradient() -> None:
    _, encoder, _ = run(EgsConfig(ratio=1.0, strategy="gradient", micro_batch=3))
    wanted, _ = one_pass(*parts(), torch.arange(SNIPPETS).expand(VIDEOS, -1))
    for name, value in wanted.items():
        assert torch.allclose(encoder[name], value, rtol=1e-10, atol=1e-12), name


def test_gradient_needs_features_encoded_afresh() -> None:
    encoder, detector, clips = parts()
    with pytest.raises(ConfigError, match="after the detector's backward pass"):
        egs_backward(
            encoder,
            clips,
            lambda feats: {"loss": detector(feats).sum()},
            EgsConfig(strategy="gradient"),
            generator=torch.Generator(),
            known=torch.zeros(VIDEOS, CHANNELS, SNIPPETS).double(),
        )
