"""One end-to-end step: gradients of every mode against one plain graph, rates, frozen parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tadpipe.backbones.augment import AugmentConfig, draw_augmentation
from tadpipe.backbones.representation import frame_features, snippet_features
from tadpipe.backbones.tia import AdapterConfig, add_adapters
from tadpipe.backbones.videomae import VideoMAE, videomae_tiny
from tadpipe.datasets.sources import FeatureSource
from tadpipe.detectors.protocol import Targets
from tadpipe.errors import ConfigError
from tadpipe.training.e2e import E2EConfig, E2ELearner, PixelBatch, PixelWindow, WindowClips
from tadpipe.training.egs import NONE, EgsConfig, choose_snippets
from tadpipe.training.feature_bank import FeatureBank
from tadpipe.training.loop import Trainer, TrainingConfig
from tests.unit.datasets.in_memory import MemoryTable
from tests.unit.training.toy import ToyDetector

LENGTH = 8  # grid steps of a window
CLIP = 16
SIDE = 32


def backbone(config: AdapterConfig | None = None) -> VideoMAE:
    torch.manual_seed(4)
    made = videomae_tiny()
    if config is not None:
        add_adapters(made, config)
        for name, parameter in made.named_parameters():
            if "up_proj" in name:  # zero at the start, where nothing would reach what is before
                nn.init.normal_(parameter, std=0.05)
    return made


def window(name: str, rows: int, seed: int, *, stride: int = 4) -> PixelWindow:
    """Snippets of 16 frames, a few apart."""
    generator = torch.Generator().manual_seed(seed)
    count = (rows - 1) * stride + CLIP
    frames = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    clips = torch.arange(rows)[:, None] * stride + torch.arange(CLIP)
    return PixelWindow(
        name, 0, rows, frames, clips, None, torch.tensor([[1.0, 3.0]]), torch.zeros(1).long()
    )


def frame_window(name: str, valid: int, seed: int) -> PixelWindow:
    """One line of 4 frames per grid step, two clips in all; the last one is repeated."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(valid * 4, 3, SIDE, SIDE, generator=generator)
    places = torch.arange(LENGTH * 4).clamp(max=len(frames) - 1).view(-1, CLIP)
    return PixelWindow(
        name, 0, valid, frames, places, None, torch.tensor([[1.0, 3.0]]), torch.zeros(1).long()
    )


def learner(
    model: VideoMAE, config: E2EConfig, bank: FeatureBank | None = None, **training: Any
) -> E2ELearner:
    torch.manual_seed(1)
    detector = ToyDetector(channels=model.out_channels)
    detector.dropout.p = 0.0
    return E2ELearner(
        model,
        detector,
        TrainingConfig(**{"tensorboard": False, "warmup_epochs": 0, **training}),
        config,
        window_len=LENGTH,
        seed=7,
        device="cpu",
        bank=bank,
    )


def unscaled(loss: Tensor) -> Tensor:
    return loss


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def one_graph(
    made: E2ELearner, batch: PixelBatch, features_of: Callable[[PixelWindow], Tensor]
) -> dict[str, Tensor]:
    """The same losses through one plain graph; features_of gives [C, M] of a window."""
    feats = torch.zeros(len(batch.windows), made.backbone.out_channels, LENGTH)
    mask = torch.zeros(len(batch.windows), LENGTH, dtype=torch.bool)
    rows = []
    for row, pixels in zip(mask, batch.windows, strict=True):
        row[: pixels.valid] = True
        line = features_of(pixels)
        rows.append(nn.functional.pad(line, (0, LENGTH - line.shape[1])))
    feats = torch.stack(rows) * mask[:, None]
    targets = Targets([w.segments for w in batch.windows], [w.labels for w in batch.windows])
    made.model.eval()
    terms = made.detector.loss(made.detector(feats, mask), targets)
    torch.stack(list(terms.values())).sum().backward()
    return gradients(made.model)


def assert_equal(ours: Mapping[str, Tensor], wanted: Mapping[str, Tensor], rtol: float) -> None:
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = float(value.abs().max()) + 1e-12
        assert float((ours[name] - value).abs().max()) <= rtol * scale, name


def snippets_of(model: VideoMAE) -> Callable[[PixelWindow], Tensor]:
    def features(pixels: PixelWindow) -> Tensor:
        clips = pixels.frames[pixels.clips].transpose(1, 2)  # [M, 3, F, S, S]
        return snippet_features(model, clips[None])[0]

    return features


@pytest.mark.parametrize("micro_batch", [2, 100])
def test_ratio_one_is_the_full_gradient_whatever_the_lengths(micro_batch: int) -> None:
    batch = PixelBatch([window("a", 8, 0), window("b", 5, 1)])
    config = E2EConfig(egs=EgsConfig(ratio=1.0, micro_batch=micro_batch))
    ours, plain = (learner(backbone(), config) for _ in range(2))
    ours.model.eval()
    ours.backward(batch, unscaled, 0)
    wanted = one_graph(plain, batch, snippets_of(plain.backbone))  # type: ignore[arg-type]
    assert any(name.startswith("backbone.") for name in wanted)
    assert_equal(gradients(ours.model), wanted, 1e-4)


def test_frames_without_coupling_take_part_in_gradient_sampling() -> None:
    batch = PixelBatch([frame_window("a", 8, 0), frame_window("b", 5, 1)])
    config = E2EConfig(representation="frame", frames_per_step=4)
    ours, plain = (learner(backbone(), config) for _ in range(2))
    ours.model.eval()
    ours.backward(batch, unscaled, 0)

    def features(pixels: PixelWindow) -> Tensor:
        line = pixels.frames[pixels.clips.flatten()].transpose(0, 1)[None]
        return frame_features(plain.backbone, line, LENGTH)[0]

    assert_equal(gradients(ours.model), one_graph(plain, batch, features), 1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_coupled_adapters_get_the_gradient_of_whole_windows(recompute: bool) -> None:
    adapter = AdapterConfig(kind="tia", checkpoint=recompute)
    batch = PixelBatch([frame_window("a", 8, 0), frame_window("b", 5, 1)])
    config = E2EConfig(tune="adapter", adapter=adapter, representation="frame", frames_per_step=4)
    ours, plain = (learner(backbone(adapter), config) for _ in range(2))
    ours.model.eval()
    ours.backward(batch, unscaled, 0)

    def features(pixels: PixelWindow) -> Tensor:
        line = pixels.frames[pixels.clips.flatten()].transpose(0, 1)[None]
        return frame_features(plain.backbone, line, LENGTH)[0]

    wanted = one_graph(plain, batch, features)
    assert_equal(gradients(ours.model), wanted, 1e-4)
    reached = {name for name in wanted if name.startswith("backbone.")}
    assert reached
    assert all(".adapter." in name for name in reached)


@pytest.mark.parametrize("kind", ["tia", "ladder"])
def test_frozen_blocks_get_no_gradient(kind: str) -> None:
    adapter = AdapterConfig(kind=kind)  # type: ignore[arg-type]  # one of the kinds
    config = E2EConfig(tune="adapter", adapter=adapter, egs=EgsConfig(ratio=0.5))
    made = learner(backbone(adapter), config)
    made.backward(PixelBatch([window("a", 6, 0)]), unscaled, 0)
    reached = {name for name in gradients(made.model) if name.startswith("backbone.")}
    assert reached
    assert all("adapter" in name for name in reached)
    assert reached.isdisjoint(made.frozen)


def test_a_frozen_backbone_trains_the_detector_only() -> None:
    made = learner(backbone(), E2EConfig(tune="frozen"))
    made.backward(PixelBatch([window("a", 6, 0)]), unscaled, 0)
    assert all(name.startswith("detector.") for name in gradients(made.model))


def test_short_windows_keep_their_share_of_snippets() -> None:
    mask = torch.arange(10) < torch.tensor([[10], [4]])
    features = torch.zeros(2, 3, 10)
    chosen = choose_snippets(features, EgsConfig(ratio=0.5), torch.Generator().manual_seed(0), mask)
    assert (chosen != NONE).sum(dim=1).tolist() == [5, 2]
    assert int(chosen[1].max()) < 4


def test_groups_have_their_own_rates() -> None:
    adapter = AdapterConfig(kind="plain")
    config = E2EConfig(tune="adapter", adapter=adapter, adapter_learning_rate=2e-4)
    made = learner(backbone(adapter), config, learning_rate=1e-3, weight_decay=0.05)
    trainer = Trainer(made, made.training, steps_per_epoch=4)
    values = trainer.train_step(PixelBatch([window("a", 6, 0)]))
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert values["learning_rate"] == 1e-3
    assert sorted(rates) == pytest.approx([2e-4, 1e-3])
    assert trainer.optimizer.param_groups[-1]["weight_decay"] == 0.05


def test_the_average_and_the_state_leave_out_what_is_frozen() -> None:
    adapter = AdapterConfig(kind="tia")
    made = learner(backbone(adapter), E2EConfig(tune="adapter", adapter=adapter))
    trainer = Trainer(made, made.training, steps_per_epoch=4)
    trainer.train_step(PixelBatch([window("a", 6, 0)]))
    kept = {name for name in trainer.ema.state if name.startswith("backbone.")}
    assert kept
    assert all(".adapter." in name for name in kept)
    assert trainer.state(7).model.keys() == trainer.ema.state.keys()
    other = learner(backbone(adapter), E2EConfig(tune="adapter", adapter=adapter))
    again = Trainer(other, other.training, steps_per_epoch=4)
    again.restore(trainer.state(7), "here")
    assert_equal(dict(other.model.state_dict()), dict(made.model.state_dict()), 0.0)


def stored(rows: int, channels: int) -> FeatureSource:
    values = torch.arange(rows * channels).float().view(rows, channels) / 1000
    return FeatureSource([MemoryTable({"stored a": values.numpy()})])


@pytest.mark.parametrize("update", [True, False])
def test_a_bank_stands_in_for_snippets_that_are_not_sampled(update: bool) -> None:
    source = stored(6, 96)
    bank = FeatureBank(source, {"a": "stored a"}, update)
    config = E2EConfig(unsampled="store", egs=EgsConfig(ratio=0.34))
    made = learner(backbone(), config, bank)
    made.backward(PixelBatch([window("a", 6, 0)]), unscaled, 0)
    before, after = source.open("stored a").read(0, 6), bank.read("a", 0, 6)
    changed = (before != after).any(dim=0)
    assert int(changed.sum()) == (2 if update else 0)
    assert set(made.bank()) == ({"a"} if update else set())


def test_a_bank_that_is_restored_goes_on_as_it_was() -> None:
    bank = FeatureBank(stored(6, 96), {"a": "stored a"}, update=True)
    bank.write("a", torch.tensor([2]), torch.ones(96, 1))
    other = FeatureBank(stored(6, 96), {"a": "stored a"}, update=True)
    other.load(bank.state())
    assert torch.equal(other.read("a", 0, 6), bank.read("a", 0, 6))


def test_augmented_windows_are_normalised_as_the_backbone_expects() -> None:
    model = videomae_tiny()
    frames = torch.randint(0, 256, (CLIP, 3, SIDE, SIDE), dtype=torch.uint8)
    still = AugmentConfig(
        crop_area=(), flip=False, random_ops=0, brightness=0, contrast=0, saturation=0, hue=0
    )
    change = draw_augmentation(still, SIDE, SIDE, SIDE, torch.Generator())
    pixels = window("a", 1, 0)._replace(
        frames=frames, clips=torch.arange(CLIP)[None], augmentation=change
    )
    clips = WindowClips([pixels], model.pixels, torch.device("cpu"))
    taken = clips.take(torch.tensor([0]), torch.tensor([0]))  # [1, 3, F, S, S]
    mean = torch.tensor(model.pixels.mean)[:, None, None, None]
    std = torch.tensor(model.pixels.std)[:, None, None, None]
    wanted = (frames.transpose(0, 1).float() / 255 - mean) / std
    assert torch.allclose(taken[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tune": "adapter"}, "no adapter to tune"),
        (
            {
                "adapter": AdapterConfig(kind="tia"),
                "representation": "frame",
                "egs": EgsConfig(ratio=0.5),
            },
            "clips see each other",
        ),
        ({"unsampled": "store", "representation": "frame"}, "one row per snippet"),
        (
            {"unsampled": "store", "egs": EgsConfig(strategy="gradient")},
            "before their gradients are known",
        ),
        ({"most_failed": 2.0}, "most_failed"),
        ({"backbone_learning_rate": 0.0}, "Learning rates"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        E2EConfig(**values)
