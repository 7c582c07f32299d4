"""FeatureSource: several stores as one, and which videos have both features and annotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tadpipe.datasets.sources import FeatureSource, match_videos
from tadpipe.errors import ConfigError
from tests.unit.datasets.in_memory import MemoryTable, ramp


def test_rows_come_as_channels_first_float32() -> None:
    source = FeatureSource([MemoryTable({"a": ramp(5).astype(np.float16)})])
    feats = source.open("a").read(1, 4)
    assert feats.dtype == torch.float32
    assert feats.tolist() == [[1, 2, 3], [1001, 1002, 1003]]


def test_only_the_rows_asked_for_are_read() -> None:
    table = MemoryTable({"a": ramp(100)})
    FeatureSource([table]).open("a").read(10, 20)
    assert table.videos["a"].read == [slice(10, 20)]


def test_channels_of_several_stores_are_joined() -> None:
    source = FeatureSource([MemoryTable({"a": ramp(5, 2)}), MemoryTable({"a": ramp(5, 3)})])
    assert source.channels == 5
    assert source.open("a").read(0, 5).shape == (5, 5)


def test_shorter_features_are_resized_to_the_longest_and_keep_its_time_axis() -> None:
    fine, coarse = MemoryTable({"a": ramp(8)}, stride=4), MemoryTable({"a": ramp(4)}, stride=8)
    sequence = FeatureSource([coarse, fine]).open("a")
    assert sequence.grid == fine.videos["a"].grid
    whole = sequence.read(0, 8)
    assert whole.shape == (4, 8)
    assert whole[0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
    assert torch.equal(sequence.read(2, 5), whole[:, 2:5])


def test_a_video_missing_in_one_store_is_named() -> None:
    source = FeatureSource([MemoryTable({"a": ramp(2), "b": ramp(2)}), MemoryTable({"a": ramp(2)})])
    assert source.names == ["a"]
    assert source.only_in_some == ["b"]


def test_no_store_is_an_error() -> None:
    with pytest.raises(ConfigError, match="No features"):
        FeatureSource([])


def test_matching_counts_both_sides_and_knows_the_prefix() -> None:
    annotated = {"x": None, "y": None, "z": None}
    coverage = match_videos(annotated, ["x", "y"], ["v_x", "z", "other"], prefix="v_")
    assert coverage.stored_as == {"x": "v_x"}
    assert coverage.without_features == ["y"]
    assert coverage.without_annotations == ["other"]
