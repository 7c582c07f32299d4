"""The pyramid: sources, position table, necks and points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tadpipe.detectors.parts.conv import sinusoid_table
from tadpipe.detectors.parts.pyramid import PyramidEncoder, TopDownNeck, make_neck, make_points
from tadpipe.detectors.tridet import TriDetConfig
from tadpipe.errors import ConfigError


class Halve(nn.Module):
    """Every second step."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., ::2], mask[:, ::2]


def encoder(**changes: object) -> PyramidEncoder:
    settings: dict[str, object] = {
        "in_channels": 4,
        "embed_dim": 4,
        "embed_layers": 0,
        "embed_kernel": 3,
        "embed_norm": True,
        "position_len": None,
        "stem": [],
        "branch": [Halve(), Halve()],
    }
    return PyramidEncoder(**{**settings, **changes})  # type: ignore[arg-type]


def test_levels_are_the_stem_and_every_branch_block() -> None:
    x = torch.randn(1, 4, 8)
    levels, masks = encoder()(x, torch.ones(1, 8, dtype=torch.bool))
    assert [level.shape[2] for level in levels] == [8, 4, 2]
    assert [mask.shape[1] for mask in masks] == [8, 4, 2]
    assert torch.equal(levels[0], x)


def test_sources_are_projected_apart_and_joined() -> None:
    model = encoder(in_channels=(3, 2), embed_dim=(4, 6))
    x, mask = torch.randn(1, 5, 8), torch.ones(1, 8, dtype=torch.bool)
    changed = x.clone()
    changed[:, 3:] += 1
    first, second = model(x, mask)[0][0], model(changed, mask)[0][0]
    assert first.shape == (1, 10, 8)
    assert torch.equal(first[:, :4], second[:, :4])
    assert not torch.equal(first[:, 4:], second[:, 4:])


def test_positions_are_added_at_real_steps_only() -> None:
    mask = torch.tensor([[True] * 5 + [False] * 3])
    levels, _ = encoder(position_len=8)(torch.zeros(1, 4, 8), mask)
    torch.testing.assert_close(levels[0][0, :, :5], sinusoid_table(8, 4)[:, :5])
    assert (levels[0][0, :, 5:] == 0).all()


def test_position_table_is_stretched_over_longer_sequences_in_evaluation_only() -> None:
    model, mask = encoder(position_len=8), torch.ones(1, 16, dtype=torch.bool)
    levels, _ = model.eval()(torch.zeros(1, 4, 16), mask)
    # Cells of half the size: step 0 holds the first entry, step 1 a quarter of the way on.
    table = sinusoid_table(8, 4)
    torch.testing.assert_close(levels[0][0, :, 0], table[:, 0])
    torch.testing.assert_close(levels[0][0, :, 1], 0.75 * table[:, 0] + 0.25 * table[:, 1])
    with pytest.raises(ConfigError, match="16 grid steps"):
        model.train()(torch.zeros(1, 4, 16), mask)


def test_top_down_neck_adds_coarse_levels_to_finer_ones_in_a_chain() -> None:
    neck = TopDownNeck(1, 1, 3, scale_factor=2, norm=False)
    for conv in neck.lateral_convs:
        nn.init.ones_(conv.conv.weight)
    for conv in neck.fpn_convs:
        nn.init.zeros_(conv.conv.weight)
        conv.conv.weight.data[0, 0, 1] = 1
    levels = [torch.full((1, 1, 4), 1.0), torch.full((1, 1, 2), 10.0), torch.tensor([[[100.0]]])]
    masks = [torch.ones(1, n, dtype=torch.bool) for n in (4, 2, 1)]
    merged = neck(levels, masks)
    assert [level.flatten().tolist() for level in merged] == [[111.0] * 4, [110.0] * 2, [100.0]]


def test_identity_neck_keeps_the_width() -> None:
    config = TriDetConfig(in_channels=6, num_classes=3, embed_dim=16, neck_dim=8)
    with pytest.raises(ConfigError, match="neck_dim = 8"):
        make_neck(config)


def test_points_sit_on_multiples_of_their_stride() -> None:
    points = make_points([3, 2], [2, 4], [(0.0, 4.0), (4.0, 10000.0)])
    assert points[0].tolist() == [[0, 0, 4, 2], [2, 0, 4, 2], [4, 0, 4, 2]]
    assert points[1].tolist() == [[0, 4, 10000, 4], [4, 4, 10000, 4]]
