"""TSM: the shift along time, which blocks shift, and the two key layouts."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tadpipe.backbones.tsm import R101_BLOCKS, Tsm, remap_official_keys, shift_frames
from tadpipe.config import PixelRecipe
from tadpipe.errors import CheckpointError


def small(blocks: tuple[int, ...] = (1, 2, 1, 1), num_classes: int = 4) -> Tsm:
    with torch.device("meta"):
        return Tsm(name="t", pixels=PixelRecipe(), blocks=blocks, base_width=8,
                   num_classes=num_classes)  # fmt: skip


def mmaction(model: Tsm) -> dict[str, Tensor]:
    state = {}
    for key, value in model.state_dict().items():
        match = re.match(r"layer(\d)\.(\d+)\.conv1\.conv\.", key)
        if match and getattr(model, f"layer{match[1]}")[int(match[2])].shifts:
            key = key.replace(".conv1.conv.", ".conv1.conv.net.")
        state[f"backbone.{key}"] = value
    return {key.replace("backbone.head.", "cls_head.fc_cls."): v for key, v in state.items()}


def official(model: Tsm) -> dict[str, Tensor]:
    renamed = {}
    for key, value in mmaction(model).items():
        key = re.sub(r"conv(\d)\.bn\.", r"bn\1.", key.replace("cls_head.fc_cls.", "new_fc."))
        key = key.replace("downsample.conv.", "downsample.0.").replace(
            "downsample.bn.", "downsample.1."
        )
        key = re.sub(r"(conv\d)\.conv\.", r"\1.", key.replace("backbone.", "base_model."))
        renamed[f"module.{key}"] = value
    return renamed


def test_channels_move_one_frame_and_zeros_come_in_at_the_ends_of_each_clip() -> None:
    clips, frames, channels = 2, 3, 17  # 17 // 8 = 2 channels each way
    x = torch.arange(clips * frames * channels, dtype=torch.float32).reshape(-1, channels, 1, 1) + 1
    moved = shift_frames(x, frames)
    for row in range(clips * frames):
        t = row % frames
        for c in range(channels):
            source = t + 1 if c < 2 else t - 1 if c < 4 else t
            inside = 0 <= source < frames
            expected = x[row - t + source, c] if inside else torch.zeros(1, 1)
            assert torch.equal(moved[row, c], expected)


def test_frames_of_a_clip_see_each_other_and_no_other_clip() -> None:
    torch.manual_seed(0)
    model = Tsm(name="t", pixels=PixelRecipe(), blocks=(1, 1, 1, 1), base_width=8).eval()
    clips = torch.randn(2, 3, 4, 32, 32)
    changed = clips.clone()
    changed[0, :, 3] += 1.0
    with torch.inference_mode():
        before, after = model.feature_map(clips), model.feature_map(changed)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0, :, 2], after[0, :, 2])


def test_every_block_shifts_and_every_second_one_of_a_deep_network() -> None:
    shallow, deep = small(), small(R101_BLOCKS)
    assert all(block.shifts for stage in ("layer1", "layer2") for block in getattr(shallow, stage))
    assert [block.shifts for block in deep.layer1] == [True, False, True]
    shifting = [b.shifts for i in range(1, 5) for b in getattr(deep, f"layer{i}")]
    assert (sum(shifting), len(shifting)) == (18, 33)


@pytest.mark.parametrize("blocks", [(1, 2, 1, 1), R101_BLOCKS])
@pytest.mark.parametrize("layout", ["mmaction", "official"])
def test_layouts_lead_to_the_same_names(layout: str, blocks: tuple[int, ...]) -> None:
    model = small(blocks)
    state = mmaction(model) if layout == "mmaction" else official(model)
    remapped = remap_official_keys(state)
    assert remapped.layout == layout
    assert {k: id(v) for k, v in remapped.state.items()} == {
        k: id(v) for k, v in _by_name(model, state, layout).items()
    }
    assert remapped.state.keys() == model.state_dict().keys()


def _by_name(model: Tsm, state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    return dict(zip(model.state_dict(), state.values(), strict=True))


@pytest.mark.parametrize("layout", ["mmaction", "official"])
def test_weights_of_a_network_that_does_not_shift_are_refused(layout: str) -> None:
    state = mmaction(small()) if layout == "mmaction" else official(small())
    plain = {key.replace(".net.", "."): value for key, value in state.items()}
    with pytest.raises(CheckpointError, match="every block shifts") as caught:
        remap_official_keys(plain)
    assert "layer1.0: no shift" in str(caught.value)


def test_logits_are_the_mean_over_frames() -> None:
    torch.manual_seed(0)
    model = Tsm(name="t", pixels=PixelRecipe(), blocks=(1, 1, 1, 1), base_width=8, num_classes=3)
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.inference_mode():
        per_frame = model.head(model.feature_map(clips).mean(dim=(3, 4)).transpose(1, 2))
        logits = model.eval().classify(clips)
    torch.testing.assert_close(logits, per_frame.mean(dim=1))


def test_other_networks_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not a TSM"):
        remap_official_keys({"stem.0.weight": torch.zeros(1)})
