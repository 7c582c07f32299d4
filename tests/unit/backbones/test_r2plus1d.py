"""R(2+1)D: widths between the two halves of a convolution, and TSP's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.r2plus1d import R2Plus1d, conv2plus1d, r2plus1d_34, remap_official_keys
from tadpipe.errors import CheckpointError


def meta_model() -> R2Plus1d:
    with torch.device("meta"):
        return r2plus1d_34()


@pytest.mark.parametrize(
    ("inputs", "outputs", "middle"), [(64, 64, 144), (64, 128, 230), (128, 128, 288)]
)
def test_middle_width_comes_from_the_convolution_itself(
    inputs: int, outputs: int, middle: int
) -> None:
    both = conv2plus1d(inputs, outputs, 2)
    assert both[0].weight.shape == (middle, inputs, 1, 3, 3)
    assert both[3].weight.shape == (outputs, middle, 3, 1, 1)
    assert both[0].stride == (1, 2, 2)
    assert both[3].stride == (2, 1, 1)


def test_only_the_first_blocks_of_the_later_stages_project_their_input() -> None:
    projecting = {
        key.rsplit(".downsample")[0] for key in meta_model().state_dict() if "downs" in key
    }
    assert projecting == {"layer2.0", "layer3.0", "layer4.0"}


def test_map_is_an_eighth_in_time_and_a_sixteenth_in_space() -> None:
    with torch.device("meta"):
        cells = r2plus1d_34().feature_map(torch.empty(1, 3, 16, 112, 112))
    assert cells.shape == (1, 512, 2, 7, 7)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "features.", "module.backbone."])
def test_prefixes_are_removed_and_heads_told_apart(prefix: str) -> None:
    state = {f"{prefix}{key}": value for key, value in meta_model().state_dict().items()}
    state |= {
        "fc1.weight": torch.zeros(3, 512),
        f"{prefix}stem.1.num_batches_tracked": torch.ones(1),
    }
    remapped = remap_official_keys(state)
    assert remapped.state.keys() == {*meta_model().state_dict(), "head.fc1.weight"}


def test_file_of_the_wrong_depth_lists_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "tsp.pth"
    state = {"stem.0.weight": torch.zeros(45, 3, 1, 7, 7), "layer9.x": torch.zeros(1)}
    torch.save({"model": {f"backbone.{key}": value for key, value in state.items()}}, path)
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        load_backbone("r2plus1d-34", path)
    assert "missing (344)" in str(caught.value)
    assert "unexpected (1): layer9.x" in str(caught.value)


def test_other_networks_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"not an R\(2\+1\)D"):
        remap_official_keys({"decoder.stem.0.weight": torch.zeros(1)})
