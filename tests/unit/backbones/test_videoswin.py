"""Video Swin: windows, masks, the index of positions, key layouts, inflation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.protocol import RemappedState
from tadpipe.backbones.videoswin import (
    edges_of,
    far_apart,
    from_windows,
    relative_index,
    remap_official_keys,
    to_windows,
)
from tadpipe.errors import CheckpointError
from tadpipe.registry import resolve
from tests.unit.backbones.narrow import clips, narrow_videoswin, staged

PARAMETERS = {
    "videoswin-t": 27_850_470,
    "videoswin-s": 49_509_078,
    "videoswin-b": 87_638_984,
    "videoswin-l": 196_339_116,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        model = resolve("backbone", BACKBONES, name)()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_windows_are_cut_and_put_back() -> None:
    x = torch.randn(2, 4, 6, 9, 5)
    counts, window = (2, 2, 3), (2, 3, 3)
    cut = to_windows(x, counts, window)
    assert cut.shape == (2, 2, 2, 3, 18, 5)
    assert torch.equal(cut[0, 1, 0, 2, 4], x[0, 2, 1, 7])  # t 0, h 1, w 1 of the window
    assert torch.equal(from_windows(cut, counts, window), x)


def test_row_of_the_bias_table_tells_the_offset() -> None:
    window = (2, 3, 3)
    index = relative_index(window)
    assert index.shape == (18, 18)
    assert int(index.max()) == 3 * 5 * 5 - 1
    # from token (0, 0, 1) to token (1, 2, 0): offsets -1, -2, 1
    assert int(index[1, 1 * 9 + 2 * 3]) == ((-1 + 1) * 5 + (-2 + 2)) * 5 + (1 + 2)


def test_tokens_that_only_the_shift_made_neighbours_are_far_apart() -> None:
    edges = edges_of((2, 2, 1), (1, 0, 0), torch.device("cpu"))
    assert edges[1] is None
    assert edges[0] is not None
    assert edges[0].tolist() == [False, False, True, True]
    apart = far_apart([edges[0]], torch.zeros(()))[0]
    assert apart[0].tolist() == [0, 0, -100, -100]


def test_feature_is_the_mean_of_the_map_with_a_step_per_two_frames() -> None:
    model = staged("videoswin")
    with torch.inference_mode():
        cells = model.feature_map(clips())
        assert cells.shape == (2, 96, 8, 1, 1)
        torch.testing.assert_close(model(clips()), cells.mean(dim=(2, 3, 4)))


def test_drop_path_is_active_in_training_only() -> None:
    model = narrow_videoswin(drop_path=0.9)
    rates = [block.drop_path for block in model.blocks()]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0.0, 0.9)
    with torch.inference_mode():
        model.eval()
        assert torch.equal(model(clips()), model(clips()))
        model.train()
        torch.manual_seed(0)
        assert not torch.equal(model(clips()), model(clips()))


def renamed(layout: str) -> dict[str, Tensor]:
    """A tiny one's shapes in a published layout, with the stored index of positions."""
    with torch.device("meta"):
        model = resolve("backbone", BACKBONES, "videoswin-t")(num_classes=4)
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        name = f"backbone.{key}".replace("backbone.head.", "cls_head.fc_cls.")
        if layout == "mmaction" and name.startswith("backbone.norm."):
            name = name.replace("backbone.norm.", "backbone.norm3.")
        state[name] = value
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(392, 392)
    return state


@pytest.mark.parametrize("layout", ["official", "mmaction"])
def test_layouts_lead_to_our_names(layout: str) -> None:
    remapped = remap_official_keys(renamed(layout))
    assert remapped.layout == layout
    assert remapped.arguments == {"window": [8, 7, 7]}
    with torch.device("meta"):
        model = resolve("backbone", BACKBONES, "videoswin-t")(num_classes=4)
    assert remapped.state.keys() == model.state_dict().keys()


def test_longer_windows_are_told_by_the_table() -> None:
    state = renamed("mmaction")
    for key in [key for key in state if key.endswith("bias_table")]:
        state[key] = torch.empty((2 * 16 - 1) * 13 * 13, state[key].shape[1], device="meta")
    assert remap_official_keys(state).arguments == {"window": [16, 7, 7]}


def pictures(side: int) -> RemappedState:
    """A tiny one's shapes as a Swin for pictures with windows of (side + 1) / 2."""
    state = {}
    for key, value in renamed("official").items():
        name, tensor = key.removeprefix("backbone."), torch.ones(value.shape)
        if name == "patch_embed.proj.weight":
            tensor = torch.ones(96, 3, 4, 4)
        elif name.endswith("bias_table"):
            tensor = torch.ones(side * side, value.shape[1])
        if not name.startswith("cls_head"):
            state[name] = tensor
    return remap_official_keys(state)


@pytest.mark.parametrize("side", [13, 23])
def test_swin_for_pictures_becomes_a_start_for_video(side: int) -> None:
    remapped = pictures(side)
    assert remapped.layout == "pictures"
    model = resolve("backbone", BACKBONES, "videoswin-t")()
    load_strictly(model, remapped.state, "swin.pth", "")
    assert torch.equal(model.patch_embed.proj.weight, torch.full((96, 3, 2, 4, 4), 0.5))


def test_lacking_weights_are_named() -> None:
    state = narrow_videoswin().state_dict()
    del state["layers.1.downsample.reduction.weight"]
    with pytest.raises(CheckpointError, match=r"missing \(1\): layers.1.downsample.reduction"):
        load_strictly(narrow_videoswin(), state, "swin.pth", "")


def test_other_networks_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not a Video Swin"):
        remap_official_keys({"stem.0.weight": torch.zeros(1)})
