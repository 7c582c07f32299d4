"""From features to action segments in seconds: forward, decode, NMS, time.

A video goes through the detector whole as long as its points reach that far, and otherwise in
overlapping windows whose last one ends with the video, so that no tail is lost. Seconds appear
only here, after NMS, through the video's SnippetGrid.
Shapes: B = 1, C channels, T grid length, N detections.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tadpipe.annotations import Detection, Detections
from tadpipe.datasets.sources import FeatureSequence, FeatureSource
from tadpipe.datasets.windows import (
    covering_windows,
    fitted_features,
    fitted_grid,
    stack_padded,
)
from tadpipe.detectors.parts.decode import join
from tadpipe.detectors.parts.nms import batched_nms
from tadpipe.detectors.protocol import GridDetections
from tadpipe.errors import StoreError
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.recipe import Recipe
from tadpipe.timeline import SnippetGrid


def detect_on_features(
    model: nn.Module,
    sequence: FeatureSequence,
    recipe: Recipe,
    *,
    duration_sec: float | None = None,
) -> list[Detection]:
    """Detections of one video, best first.

    Args:
        model: in eval mode, on any device.
        sequence: the video's features, of the kind the recipe expects.
        duration_sec: detections are clipped to [0, duration]; without it, to the end of the
            last snippet.
    """
    grid = fitted_grid(sequence.grid, recipe.windows, recipe.window_len, duration_sec)
    feats = fitted_features(sequence, recipe.windows, recipe.window_len)  # [C, T]
    kept = batched_nms(candidates(model, feats, recipe.windows.overlap), recipe.nms)
    end_sec = _end_sec(grid) if duration_sec is None else duration_sec
    return _in_seconds(kept, grid, recipe.labels, end_sec)


def candidates(model: nn.Module, feats: Tensor, overlap: float) -> GridDetections:
    """Candidates of one video before NMS; positions count from its first row.

    Args:
        feats: [C, T], on the CPU.
        overlap: share of neighbouring windows, where the video is longer than one.
    """
    total = feats.shape[-1]
    window = min(model.max_len(), max(total, 1))  # type: ignore[operator]  # a Detector
    device = next(model.parameters()).device
    found = []
    with torch.inference_mode():
        for start in covering_windows(total, window, overlap):
            part = feats[:, start : start + window]
            padded_len = model.padded_len(part.shape[-1])  # type: ignore[operator]  # a Detector
            batch, mask = stack_padded([part], padded_len)  # [1, C, T], [1, T]
            outputs = model(batch.to(device), mask.to(device))
            (dets,) = model.decode(outputs)  # type: ignore[operator]  # a Detector
            found.append(
                GridDetections(dets.segments.cpu() + start, dets.scores.cpu(), dets.labels.cpu())
            )
    return join(found)


def detect_on_source(
    model: nn.Module,
    source: FeatureSource,
    videos: Mapping[str, str],
    recipe: Recipe,
    *,
    durations_sec: Mapping[str, float | None],
    label: str = "detect",
    progress: Progress = SILENT,
) -> Detections:
    """Detections of many videos.

    Args:
        videos: name in the result -> name in the source.
        durations_sec: by name in the result.
        label: of the progress bar.
    Raises:
        StoreError: the source does not hold one of the videos.
    """
    missing = sorted(set(videos.values()) - set(source.names))
    if missing:
        raise StoreError("Features are missing.", ", ".join(missing[:5]), "Extract them first.")
    was_training = model.training
    model.eval()
    progress.begin(label, len(videos), "video")
    detections: Detections = {}
    for name, stored in videos.items():
        detections[name] = detect_on_features(
            model, source.open(stored), recipe, duration_sec=durations_sec.get(name)
        )
        progress.advance()
    progress.end(f"{label}: {len(videos)} videos, {sum(map(len, detections.values()))} detections")
    model.train(was_training)
    return detections


def _in_seconds(
    kept: GridDetections, grid: SnippetGrid, labels: tuple[str, ...], end_sec: float
) -> list[Detection]:
    """Grid -> seconds, clipped to the video."""
    rows = zip(kept.segments.tolist(), kept.labels.tolist(), kept.scores.tolist(), strict=True)
    return [
        Detection(
            min(max(grid.to_sec(start), 0.0), end_sec),
            min(max(grid.to_sec(end), 0.0), end_sec),
            labels[label],
            score,
        )
        for (start, end), label, score in rows
    ]


def _end_sec(grid: SnippetGrid) -> float:
    """Where the last snippet ends."""
    return grid.to_sec(grid.rows - 1 + grid.offset_grid)
