"""RoI align against a plain loop in float64, its gradient, its memory and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tadpipe import resample
from tadpipe.resample import resize_by_roi_align, roi_align


def one_bin(row: Tensor, start: float, end: float, index: int, bins: int, shifted: bool) -> float:
    """Mean over the sample points of one bin, point by point."""
    length = len(row)
    if shifted:
        start, end = start - 0.5, end - 0.5
    extent = end - start if shifted else max(end - start, 1.0)
    bin_len = extent / bins
    points = math.ceil(bin_len)
    total = 0.0
    for j in range(points):
        t = start + index * bin_len + (j + 0.5) * bin_len / points
        if t < -1 or t > length:
            continue
        low = math.floor(max(t, 0.0))
        if low >= length - 1:
            total += float(row[-1])
        else:
            share = max(t, 0.0) - low
            total += float(row[low]) * (1 - share) + float(row[low + 1]) * share
    return total / points if points > 0 else 0.0


def plain(feats: Tensor, rois: Tensor, bins: int, shifted: bool) -> Tensor:
    batch, channels, _ = feats.shape
    out = torch.zeros(batch, rois.shape[1], bins, channels, dtype=torch.float64)
    for b in range(batch):
        for k, (start, end) in enumerate(rois[b].tolist()):
            for r in range(bins):
                for c in range(channels):
                    out[b, k, r, c] = one_bin(feats[b, c], start, end, r, bins, shifted)
    return out


ROIS = torch.tensor(
    [
        [[0.0, 9.0], [2.25, 2.5], [-4.0, 30.0], [8.0, 8.0], [-20.0, -10.0], [5.0, 3.0]],
        [[3.1, 7.7], [-0.75, 0.25], [8.9, 9.9], [100.0, 140.0], [-50.0, 90.0], [1.0, 2.0]],
    ],
    dtype=torch.float64,
)


def random_features() -> Tensor:
    return torch.randn(2, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("bins", [1, 4, 7])
def test_bins_are_those_of_a_plain_loop(bins: int, shifted: bool) -> None:
    feats = random_features()
    ours = roi_align(feats, ROIS, bins, shifted=shifted)
    assert torch.allclose(ours, plain(feats, ROIS, bins, shifted), atol=1e-12)


@pytest.mark.parametrize("shifted", [False, True])
def test_gradient_is_that_of_the_linear_map(shifted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "ROI_WEIGHTS", 100)  # several blocks of segments
    feats = random_features().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, ROIS, 4, shifted=shifted), (feats,))


def test_blocks_of_segments_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix product may sum in another order when it has more rows."""
    whole = roi_align(random_features(), ROIS, 4, shifted=False)
    monkeypatch.setattr(resample, "ROI_WEIGHTS", 1)
    parts = roi_align(random_features(), ROIS, 4, shifted=False)
    torch.testing.assert_close(parts, whole, rtol=0.0, atol=1e-14)


def test_a_huge_or_undefined_segment_neither_fails_nor_fills_the_memory() -> None:
    wild = torch.tensor([[[-1e30, 1e30], [0.0, 1e9], [float("nan"), 2.0], [-1e8, 1e8]]])
    aligned = roi_align(torch.ones(1, 2, 9), wild, 4, shifted=False)
    assert aligned.shape == (1, 4, 4, 2)
    assert torch.isfinite(aligned[0, 1]).all()


def test_segments_get_no_gradient_and_none_are_allowed() -> None:
    feats, rois = random_features(), ROIS.clone().requires_grad_()
    assert not roi_align(feats, rois, 4, shifted=True).requires_grad
    assert roi_align(feats, ROIS[:, :0], 4, shifted=True).shape == (2, 0, 4, 3)


def test_what_is_kept_for_the_gradient_does_not_grow_with_the_weights() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    feats = random_features().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        roi_align(feats, ROIS, 32, shifted=False)
    assert sum(kept) == ROIS.numel()


def test_resize_rounds_to_half_precision_and_keeps_the_shape() -> None:
    x = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(1))
    resized = resize_by_roi_align(x, 8)
    rounded = x.half().double().reshape(6, 1, 20)
    rois = torch.tensor([[[0.0, 20.0]]], dtype=torch.float64).expand(6, 1, 2)
    assert torch.allclose(resized.double().reshape(6, 8), plain(rounded, rois, 8, True)[:, 0, :, 0])
    assert resize_by_roi_align(x[0], 30).shape == (3, 30)
