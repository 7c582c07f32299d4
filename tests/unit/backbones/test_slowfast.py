"""SlowFast and SlowOnly: slow frames, published sizes, key layouts, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.recognise import backbones_like
from tadpipe.backbones.representation import frame_features
from tadpipe.backbones.slowfast import pooled, published_alpha, slow_frames
from tadpipe.backbones.slowfast_keys import remap_official_keys, remap_slowonly_keys
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.registry import resolve
from tests.parity.slowfast import their_name
from tests.unit.backbones.narrow import clips, narrow_slowfast, narrow_slowonly, staged

R101 = (3, 4, 23, 3)
SIZES = [  # name, builder arguments, parameters without head
    ("slowfast-r50", {"lateral_kernel": 5}, 33_557_288),
    ("slowfast-r50", {"lateral_kernel": 7}, 33_643_560),
    ("slowfast-r50", {"lateral_kernel": 7, "lateral_norm": True}, 33_644_488),
    ("slowfast-r101", {"lateral_kernel": 5}, 61_904_040),
    ("slowfast-r101", {"lateral_kernel": 7}, 61_990_312),
    ("slowfast-r101", {"lateral_kernel": 5, "lateral_norm": True, "slow_temporal": (0, 0, 6, 3)},
     52_992_072),
    ("slowonly-r50", {}, 31_634_496),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "parameters"), SIZES)
def test_parameter_count_is_the_published_one(
    name: str, arguments: dict[str, object], parameters: int
) -> None:
    with torch.device("meta"):
        model = resolve("backbone", BACKBONES, name)(**arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_slow_pathway_takes_every_alphath_frame_or_spreads_them() -> None:
    assert slow_frames(32, 8, fixed_step=True).tolist() == [0, 8, 16, 24]
    assert slow_frames(32, 8, fixed_step=False).tolist() == [0, 10, 20, 31]
    assert slow_frames(32, 4, fixed_step=False).tolist() == [0, 4, 8, 13, 17, 22, 26, 31]


@pytest.mark.parametrize(
    ("blocks", "kernel", "norm", "alpha"),
    [
        ((3, 4, 6, 3), 5, False, 8),
        ((3, 4, 6, 3), 7, True, 4),
        (R101, 5, True, 4),
        (R101, 5, False, 8),
        (R101, 7, False, 4),
    ],
)
def test_alpha_is_that_of_the_published_weights_of_this_form(
    blocks: tuple[int, ...], kernel: int, norm: bool, alpha: int
) -> None:
    assert published_alpha(blocks, kernel, norm) == alpha


def test_pooling_by_squares_counts_the_border_less() -> None:
    cells = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    weight = torch.tensor([1, 2, 2, 2, 2, 2, 2, 1], dtype=torch.float64) / 14
    wanted = torch.einsum("ncthw,h,w->nc", cells, weight, weight) / 4
    torch.testing.assert_close(pooled(cells, 7), wanted)


@pytest.mark.parametrize("count", [6, 18])
def test_frames_that_are_no_multiple_of_alpha_are_refused(count: int) -> None:
    model = staged("slowfast")
    with pytest.raises(ConfigError, match="multiple of 4"):
        model.set_clip_len(count)
    with pytest.raises(ConfigError, match="multiple of 4 frames"):
        model(clips(1, frames=count))


def test_window_is_seen_as_one_with_the_pathways_side_by_side() -> None:
    model = staged("slowfast")
    window = clips(1, frames=32)
    with torch.inference_mode():
        slow, fast = model.pathways(window, fixed_step=True)
        line = frame_features(model, window, 32)
    wanted = torch.nn.functional.interpolate(slow.mean(dim=(3, 4)), size=32, mode="linear")
    torch.testing.assert_close(line[:, : slow.shape[1]], wanted)
    torch.testing.assert_close(line[:, slow.shape[1] :], fast.mean(dim=(3, 4)))


def pyslowfast() -> dict[str, Tensor]:
    state = narrow_slowfast(lateral_norm=True, num_classes=3).state_dict()
    return {their_name(key, "pyslowfast"): value for key, value in state.items()}


def caffe2() -> dict[str, Tensor]:
    """The same weights under the model zoo's older names, with what training left behind."""
    leaves = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    state = {"lr": torch.zeros(1), "model_iter": torch.zeros(1)}
    last = {1: 0, 2: 1, 3: 0}  # of the blocks of a stage
    for key, value in pyslowfast().items():
        if key.startswith("head."):
            state["pred_" + key.removeprefix("head.projection.")[0]] = value
        elif match := re.match(r"s1\.pathway([01])_stem\.(conv|bn)\.(.*)", key):
            stem = "conv1_w" if match[2] == "conv" else f"res_conv1_bn_{leaves[match[3]]}"
            state[("t_" if match[1] == "1" else "") + stem] = value
        elif match := re.match(r"s(\d)_fuse\.(conv_f2s|bn)\.(.*)", key):
            stage = int(match[1])
            place = "pool1" if stage == 1 else f"res{stage}_{last[stage - 1]}_branch2c_bn"
            end = "w" if match[2] == "conv_f2s" else f"bn_{leaves[match[3]]}"
            state[f"t_{place}_subsample_{end}"] = value
        else:
            match = re.match(r"s(\d)\.pathway([01])_res(\d+)\.branch(.*?)(_bn)?\.(\w+)$", key)
            assert match
            branch = match[4].replace(".", "")
            end = f"bn_{leaves[match[6]]}" if match[5] else "w"
            path = "t_" if match[2] == "1" else ""
            state[f"{path}res{match[1]}_{match[3]}_branch{branch}_{end}"] = value
    return state


@pytest.mark.parametrize("layout", ["pyslowfast", "caffe2"])
def test_layouts_of_the_official_code_load_strictly(layout: str) -> None:
    remapped = remap_official_keys(pyslowfast() if layout == "pyslowfast" else caffe2())
    assert remapped.layout == layout
    assert remapped.arguments == {
        "release": "pyslowfast",
        "lateral_kernel": 5,
        "lateral_norm": True,
        "slow_temporal": [0, 0, 1, 1],
        "fast_temporal": [1, 2, 1, 1],
    }
    model = narrow_slowfast(lateral_norm=True, num_classes=3)
    load_strictly(model, remapped.state, layout, "")


def test_head_of_mmaction_gets_its_columns_slow_first() -> None:
    state = {f"backbone.{k}": v for k, v in narrow_slowfast().state_dict().items()}
    head = torch.arange(float(narrow_slowfast().out_channels)).repeat(3, 1)
    fast = narrow_slowfast().fast_path.widths[-1]
    state["cls_head.fc_cls.weight"] = head
    state["cls_head.fc_cls.bias"] = torch.zeros(3)
    turned = remap_official_keys(state).state["head.weight"]
    assert torch.equal(turned[:, -fast:], head[:, :fast])


def test_lacking_strange_and_misshapen_weights_are_named() -> None:
    state = remap_official_keys(pyslowfast()).state
    del state["slow_path.layer2.1.conv2.bn.bias"]
    state["slow_path.layer9.0.conv1.conv.weight"] = torch.zeros(1)
    state["fast_path.conv1.conv.weight"] = torch.zeros(4, 3, 5, 7, 7)
    model = narrow_slowfast(lateral_norm=True, num_classes=3)
    with pytest.raises(CheckpointError) as caught:
        load_strictly(model, state, "file.pyth", "")
    text = str(caught.value)
    assert "missing (1): slow_path.layer2.1.conv2.bn.bias" in text
    assert "unexpected (1): slow_path.layer9.0.conv1.conv.weight" in text
    assert "misshapen (1): fast_path.conv1.conv.weight is [4, 3, 5, 7, 7] in the file" in text


def test_pyth_file_loads_and_tells_its_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "narrow", "tests.unit.backbones.test_slowfast:remap_and_build")
    torch.save({"model_state": pyslowfast(), "epoch": 3}, tmp_path / "sf.pyth")
    model = load_backbone("narrow", tmp_path / "sf.pyth")
    assert model.builder_arguments()["release"] == "pyslowfast"


def remap_and_build(**arguments: object) -> torch.nn.Module:
    """A builder as the published ones: what the file tells comes as arguments."""
    assert arguments["lateral_norm"]
    return narrow_slowfast(lateral_norm=True, release=str(arguments["release"]))


def test_slowonly_takes_its_layouts_and_refuses_a_slowfast() -> None:
    own = {f"backbone.{k}": v for k, v in narrow_slowonly().state_dict().items()}
    remapped = remap_slowonly_keys(own)
    assert remapped.arguments == {"release": "mmaction", "temporal": [0, 0, 1, 1]}
    load_strictly(narrow_slowonly(), remapped.state, "mmaction", "")
    with pytest.raises(CheckpointError, match="slowfast-r50"):
        remap_slowonly_keys(pyslowfast())
    flat = {key: value.squeeze(2) if value.ndim == 5 else value for key, value in own.items()}
    with pytest.raises(CheckpointError, match="convolutions over time"):
        remap_slowonly_keys(flat)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not a SlowFast in a known key layout"):
        remap_official_keys({"stem.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["slowfast-r50", "slowfast-r101", "videoswin-s", "videoswin-t"])
def test_size_is_told_by_the_weights_although_a_deep_network_holds_a_shallow_one(name: str) -> None:
    with torch.device("meta"):
        state = resolve("backbone", BACKBONES, name)().state_dict()
    found = backbones_like({f"backbone.{key}": value for key, value in state.items()})
    assert [each.name for each in found] == [name]
