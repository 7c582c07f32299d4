"""Pretraining: it learns motion, repeats itself bit for bit, and keeps to its settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.videomae import VideoMAE
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError, TadpipeError
from tadpipe.training.pretrain import (
    IDLE,
    ClipSampler,
    LabelledFrames,
    PretrainConfig,
    pretrain_backbone,
)

SIDE = 8
RECIPE = PixelRecipe(size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
QUICK = PretrainConfig(
    steps=100, batch_size=16, learning_rate=1e-2, warmup_steps=5, shift_pixels=1, brightness=0.1
)


def small_backbone() -> Backbone:
    torch.manual_seed(0)
    return VideoMAE(
        name="videomae-tiny",
        pixels=RECIPE,
        dim=16,
        depth=1,
        heads=2,
        mlp_dim=32,
        patch_size=4,
        image_size=SIDE,
        clip_len=4,
        tubelet_len=4,
    )


def flicker_video(seed: int) -> LabelledFrames:
    """Class 0 flickers fast, class 1 slowly; in between everything is still."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((96,), IDLE)
    labels[8:40], labels[56:88] = 0, 1
    t = torch.arange(96)
    bright = torch.zeros(96)
    bright[labels == 0] = (t[labels == 0] % 2).float()
    bright[labels == 1] = (t[labels == 1] % 4 // 2).float()
    base = torch.randint(40, 80, (1, 3, SIDE, SIDE), generator=generator)
    frames = base + (150 * bright[:, None, None, None]).long()
    return LabelledFrames(frames.to(torch.uint8), labels)


VIDEOS = [flicker_video(seed) for seed in range(3)]


def weights(backbone: Backbone) -> dict[str, Tensor]:
    assert isinstance(backbone, torch.nn.Module)
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def test_learns_what_moves_how_and_leaves_no_head() -> None:
    backbone = small_backbone()
    keys = list(weights(backbone))
    report = pretrain_backbone(backbone, VIDEOS, QUICK, num_classes=2, seed=0)
    assert report.accuracy > 0.8  # three targets: a guess is right in 0.38
    assert list(weights(backbone)) == keys
    assert isinstance(backbone, torch.nn.Module)
    assert not backbone.training


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    def after(seed: int) -> dict[str, Tensor]:
        backbone = small_backbone()
        config = replace(QUICK, steps=3)
        pretrain_backbone(backbone, VIDEOS, config, num_classes=2, seed=seed)
        return weights(backbone)

    first, again, other = after(1), after(1), after(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_random_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    config = replace(QUICK, steps=1)
    backbone = small_backbone()
    torch.manual_seed(5)
    pretrain_backbone(backbone, VIDEOS, config, num_classes=2, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_every_step_is_reported() -> None:
    seen: list[int] = []
    pretrain_backbone(
        small_backbone(),
        VIDEOS,
        replace(QUICK, steps=4),
        num_classes=2,
        seed=0,
        on_step=lambda step, _loss, _accuracy: seen.append(step),
    )
    assert seen == [0, 1, 2, 3]


def test_label_is_the_class_at_the_middle_frame() -> None:
    config = replace(QUICK, batch_size=64, flip=False, flip_vertical=False, reverse=False)
    config = replace(config, shift_pixels=0, brightness=0)
    frames = torch.arange(96, dtype=torch.uint8)[:, None, None, None].expand(96, 3, SIDE, SIDE)
    video = LabelledFrames(frames, VIDEOS[0].labels)
    sampler = ClipSampler([video], 4, PixelRecipe(size=SIDE), config, seed=0)
    clips, labels = sampler.batch()
    middles = (clips[:, 0, 2, 0, 0] * 255).round().long()
    assert torch.equal(video.labels[middles], labels)
    steps = (clips[:, :, 1:] - clips[:, :, :-1]) * 255
    assert torch.allclose(steps, torch.ones(()), atol=1e-3)  # neighbouring frames, in order


def test_pixels_are_normalised_as_the_backbone_expects() -> None:
    config = replace(QUICK, brightness=0)
    frames = torch.full((8, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    video = LabelledFrames(frames, torch.zeros(8, dtype=torch.long))
    clips, _ = ClipSampler([video], 4, RECIPE, config, seed=0).batch()
    assert torch.allclose(clips, torch.ones(()), atol=1e-6)


def test_classes_come_equally_often_and_idle_in_its_share() -> None:
    labels = torch.full((400,), IDLE)
    labels[:300], labels[300:310] = 0, 1  # class 1 is rare
    video = LabelledFrames(torch.zeros(400, 3, SIDE, SIDE, dtype=torch.uint8), labels)
    config = replace(QUICK, batch_size=600, idle_share=0.5)
    drawn = ClipSampler([video], 4, RECIPE, config, seed=0).batch()[1]
    shares = [float((drawn == label).float().mean()) for label in (IDLE, 0, 1)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.06)  # 3 standard deviations


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"flip": True}, False),
        ({"flip_vertical": True}, False),
        ({"reverse": True}, False),
        ({"shift_pixels": 2}, False),
        ({"brightness": 0.5}, False),
    ],
    ids=str,
)
def test_each_augmentation_changes_the_clips(change: dict[str, Any], same: bool) -> None:
    plain = replace(QUICK, flip=False, flip_vertical=False, reverse=False)
    plain = replace(plain, shift_pixels=0, brightness=0)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(60, 200, (4, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    video = LabelledFrames(frames, torch.zeros(4, dtype=torch.long))
    clips, _ = ClipSampler([video], 4, RECIPE, replace(plain, **change), seed=0).batch()
    expected = ((frames / 255 - 0.5) / 0.5).transpose(0, 1)
    assert torch.allclose(clips, expected.expand_as(clips), atol=1e-5) == same


def test_frames_of_another_size_are_refused() -> None:
    video = LabelledFrames(
        torch.zeros(9, 3, SIDE, SIDE + 1, dtype=torch.uint8), torch.zeros(9, dtype=torch.long)
    )
    with pytest.raises(ConfigError, match=r"uint8 \[T, 3, 8, 8\]"):
        pretrain_backbone(small_backbone(), [video], QUICK, num_classes=1, seed=0)


def test_videos_shorter_than_a_clip_are_refused() -> None:
    short = LabelledFrames(VIDEOS[0].frames[:3], VIDEOS[0].labels[:3])
    with pytest.raises(ConfigError, match="as long as one clip"):
        pretrain_backbone(small_backbone(), [short], QUICK, num_classes=2, seed=0)


def test_diverging_training_stops_with_a_reason() -> None:
    config = replace(QUICK, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TadpipeError, match="not finite"):
        pretrain_backbone(small_backbone(), VIDEOS, config, num_classes=2, seed=0)


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"batch_size": 0}, {"idle_share": 1.0}, {"shift_pixels": -1}],
    ids=str,
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(QUICK, **change)
