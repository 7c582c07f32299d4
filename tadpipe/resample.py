"""Resampling on the feature grid: linear resize, and RoI align in plain torch.

Shapes: B batch, C channels, T length, K segments, R bins. Only torch; used by datasets, detectors
and backbones. RoI align: ETAD (Liu et al., 2022), App. A.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tadpipe.errors import ConfigError

ROI_WEIGHTS = 1 << 23  # interpolation weights held at once


def resize_linear(feats: Tensor, length_grid: int) -> Tensor:
    """Linearly resize the last axis, [..., C, T] -> [..., C, length_grid].

    Rows are taken as cells (`align_corners` false): both axes span the same extent, so new row i
    sits at old position (i + 0.5) * T / length_grid - 0.5, held inside [0, T - 1].

    Raises:
        ConfigError: nothing to resize from, or a length below 1.
    """
    if length_grid < 1 or feats.shape[-1] < 1:
        raise ConfigError(
            "Features of length 0 cannot be resized.",
            f"from {feats.shape[-1]} to {length_grid} rows",
            "Leave the video out or extract it again.",
        )
    if feats.shape[-1] == length_grid:
        return feats
    flat = feats.reshape(-1, *feats.shape[-2:]) if feats.dim() != 3 else feats
    resized = F.interpolate(flat, size=length_grid, mode="linear", align_corners=False)
    return resized.reshape(*feats.shape[:-1], length_grid)


def resize_by_roi_align(feats: Tensor, length_grid: int) -> Tensor:
    """Resize the last axis as ETAD does for ActivityNet, [..., C, T] -> [..., C, length_grid].

    RoI align over the whole extent, half-pixel shifted. The release rounds values and coordinates
    to float16 before it computes in float64, and so does this.
    """
    flat = feats.reshape(-1, 1, feats.shape[-1]).half().double()  # [N, 1, T]
    whole = flat.new_tensor([0.0, feats.shape[-1]]).half().double()
    bins = roi_align(flat, whole.expand(len(flat), 1, 2), length_grid, shifted=True)
    return bins.reshape(*feats.shape[:-1], length_grid).to(feats.dtype)


def roi_align(feats: Tensor, rois: Tensor, bins: int, *, shifted: bool) -> Tensor:
    """Average linearly interpolated features over equal bins of segments, in plain torch.

    A segment of L grid steps has ceil(L / bins) equally spaced sample points per bin. Points
    further out than one step before row 0 or behind the last row's end are 0, and count.

    Args:
        feats: [B, C, T]; gradients flow to them only.
        rois: [B, K, 2] start and end in grid steps; computed in their own precision.
        bins: R.
        shifted: position t reads the features at t - 0.5 (rows are cells) and a segment without
            length is 0; else position t reads row t and segments are at least one step long.
    Returns:
        [B, K, R, C], bins before channels: the R' first bins of a segment are then one strided
        view.
    """
    with torch.autocast(feats.device.type, enabled=False):
        values = feats if feats.dtype == torch.float64 else feats.float()
        aligned: Tensor = _RoiAlign.apply(values, rois.detach(), bins, shifted)
        return aligned


class _RoiAlign(torch.autograd.Function):
    """RoI align as products with interpolation matrices that are rebuilt for the gradient.

    Only the segments are kept between forward and backward, and a matrix holds a bounded number of
    weights, so memory grows with the result alone.
    """

    @staticmethod
    def forward(ctx: Any, feats: Tensor, rois: Tensor, bins: int, shifted: bool) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.bins, ctx.shifted, ctx.length = bins, shifted, feats.shape[2]
        batch, channels, length = feats.shape
        rows = feats.transpose(1, 2).contiguous()  # [B, T, C]
        out = feats.new_empty(batch, rois.shape[1], bins, channels)
        for part in _roi_blocks(batch, rois.shape[1], bins * length):
            matrix = _interpolation(rois[:, part], bins, length, shifted).to(feats.dtype)
            out[:, part] = (matrix @ rows).view(batch, -1, bins, channels)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (rois,) = ctx.saved_tensors
        batch, count, bins, channels = grad.shape
        total = grad.new_zeros(batch, ctx.length, channels)
        for part in _roi_blocks(batch, count, bins * ctx.length):
            matrix = _interpolation(rois[:, part], bins, ctx.length, ctx.shifted).to(grad.dtype)
            total.baddbmm_(matrix.transpose(1, 2), grad[:, part].reshape(batch, -1, channels))
        return total.transpose(1, 2), None, None, None


def _roi_blocks(batch: int, count: int, weights_each: int) -> list[slice]:
    """Slices of the K segments whose matrices together stay within ROI_WEIGHTS."""
    step = max(1, ROI_WEIGHTS // (batch * weights_each))
    return [slice(first, first + step) for first in range(0, count, step)]


def _interpolation(rois: Tensor, bins: int, length: int, shifted: bool) -> Tensor:
    """The linear map from T rows to the bins of K segments, [B, K * R, T]."""
    batch, count, _ = rois.shape
    start, end = rois.reshape(-1, 2).unbind(1)  # [N], N = B * K
    if shifted:
        start, end = start - 0.5, end - 0.5
    extent = end - start if shifted else (end - start).clamp(min=1.0)
    bin_len = extent / bins
    points = bin_len.ceil().nan_to_num(0.0).clamp(0, 2**31)  # per bin
    # Points of one segment are equally spaced; only those that can reach a row are listed.
    step = bin_len.double() / points
    last = points.double() * bins
    first = ((-1 - start.double()) / step).floor().nan_to_num(0.0) - 2
    first = first.clamp(min=0.0).minimum(last).long()
    stop = ((length - start.double()) / step).ceil().nan_to_num(0.0) + 2
    stop = stop.clamp(min=0.0).minimum(last).long()
    counts = (stop - first).clamp(min=0)
    roi = torch.repeat_interleave(counts)  # [P] which segment a point belongs to
    behind = counts.cumsum(0) - counts - first
    index = torch.arange(len(roi), device=rois.device) - behind[roi]  # point of the segment
    per_bin = points[roi]
    cell = torch.div(index, per_bin.long(), rounding_mode="floor")  # bin of the point
    inner = (index - cell * per_bin.long()).to(rois.dtype)
    at = start[roi] + cell * bin_len[roi] + (inner + 0.5) * bin_len[roi] / per_bin  # [P]
    weight = ((at >= -1) & (at <= length)).to(rois.dtype) / per_bin
    low = at.clamp(min=0.0).floor().clamp(max=length - 1)
    share = (at.clamp(min=0.0) - low).clamp(max=1.0) * (low < length - 1)
    matrix = rois.new_zeros(batch * count * bins * length)
    base = (roi * bins + cell) * length + low.long()
    matrix.scatter_add_(0, base, weight * (1 - share))
    # The neighbour of the last row has no share, so it may point anywhere.
    matrix.scatter_add_(0, base + (low < length - 1), weight * share)
    return matrix.view(batch, count * bins, length)
