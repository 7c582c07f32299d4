"""What a report reads from the models of runs: their cost, and what they have learned to see.

The similarity of features follows DyFADet (Yang et al., ECCV 2024, Fig. 5): the cosine between the
features of a pyramid level at two times, as a matrix and as its mean. What ASL learned of frames is
in `report_sensitivity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tadpipe.datasets.sources import FeatureSource
from tadpipe.datasets.windows import fitted_features, fitted_grid, stack_padded
from tadpipe.detectors.asl import Asl
from tadpipe.errors import StoreError
from tadpipe.evaluation.tables import TruthTable
from tadpipe.pipeline.compare_run import read_cost, window_flops
from tadpipe.pipeline.feature_tables import StoreTable, open_tables
from tadpipe.pipeline.recipe import MODEL_FILE, TrainedDetector, load_detector
from tadpipe.pipeline.report_sensitivity import class_curves, frame_sensitivity, listed
from tadpipe.pipeline.run_settings import run_stores
from tadpipe.report.systems import Cost, FrameSensitivity, LevelSimilarity, SensitivityCurves

SIMILARITY_VIDEOS = 5  # that the mean is taken over
MOST_ROWS = 120  # of a matrix on the page: the finest level that is no longer


class ModelViews(NamedTuple):
    """What a model shows, and why it does not."""

    similarity: LevelSimilarity | None = None
    sensitivity: SensitivityCurves | None = None
    frame_sensitivity: tuple[FrameSensitivity, ...] = ()
    notes: tuple[str, ...] = ()


def measured_cost(run: Path, minutes: float) -> Cost:
    """What `compare` measured; for other runs the size of the model and its FLOPs.

    Args:
        minutes: of video that was detected on.
    Raises:
        CheckpointError: the weights or the measurement are damaged.
    """
    cost = read_cost(run)
    if cost is not None:
        return Cost(
            parameters=cost.parameters,
            gflops=cost.flops / 1e9,
            train_sec=cost.train_sec,
            peak_bytes=cost.peak_bytes,
            peak_of=cost.peak_of,
            detect_sec_per_minute=cost.detect_sec / minutes if minutes else None,
        )
    if not (run / MODEL_FILE).is_file():
        return Cost()
    model, recipe, _ = load_detector(run)
    flops, _ = window_flops(model, recipe)
    return Cost(parameters=sum(p.numel() for p in model.parameters()), gflops=flops / 1e9)


def model_views(run: Path, truth: TruthTable) -> ModelViews:
    """Feature similarity and sensitivity curves, as far as the run has what they need.

    Raises:
        CheckpointError: the weights are damaged.
    """
    if not (run / MODEL_FILE).is_file():
        return ModelViews(notes=(f"No {MODEL_FILE}: nothing is shown of the model.",))
    trained = load_detector(run)
    views = ModelViews()
    if isinstance(trained.model, Asl) and trained.model.config.class_level == "learned":
        views = views._replace(sensitivity=class_curves(trained.model, trained.recipe.labels))
    if not hasattr(trained.model, "neck"):
        note = f"{trained.recipe.detector} has no feature pyramid: no similarity by level."
        return views._replace(notes=(note,))
    try:
        source = _source(trained)
    except StoreError as error:
        note = f"Nothing that needs the features of the videos is shown of the model: {error}"
        return views._replace(notes=(note,))
    videos = _with_most_actions(truth, set(source.names))
    views = views._replace(similarity=_similarity(trained, truth, source, videos))
    if isinstance(trained.model, Asl) and trained.model.config.instance_level:
        found = frame_sensitivity(trained, truth, source, videos)
        views = views._replace(frame_sensitivity=found)
    return views


def _source(trained: TrainedDetector) -> FeatureSource:
    """The features that the run was trained on.

    Raises:
        StoreError: a store is not there or holds no such features.
    """
    tables: list[StoreTable] = []
    for store, spec in zip(run_stores(trained.run), trained.recipe.features, strict=False):
        tables += open_tables([store], backbone=spec.backbone, stride=spec.stride)
    if not tables:
        raise StoreError("The run has no store of features.", str(trained.run))
    return FeatureSource(tables)


def _similarity(
    trained: TrainedDetector, truth: TruthTable, source: FeatureSource, videos: Sequence[str]
) -> LevelSimilarity | None:
    """Mean over these videos, and the matrix of the first; None without any."""
    recipe = trained.recipe
    totals: list[list[float]] = []
    shown: tuple[str, int, list[list[float]], list[tuple[float, float]]] | None = None
    for video in videos:
        sequence = source.open(video)
        feats = fitted_features(sequence, recipe.windows, recipe.window_len)  # [C, T]
        feats = feats[:, : trained.model.max_len()]  # type: ignore[operator]  # a Detector
        levels = [_cosines(level) for level in level_features(trained.model, feats)]
        totals.append([_mean_off_diagonal(matrix) for matrix in levels])
        if shown is None:
            fitting = [n for n, matrix in enumerate(levels) if len(matrix) <= MOST_ROWS]
            number = fitting[0] if fitting else len(levels) - 1
            config: Any = trained.model.config  # of any detector with a neck
            stride = int(config.strides[number])
            grid = fitted_grid(sequence.grid, recipe.windows, recipe.window_len)
            rows = truth.video == truth.videos.index(video)
            actions = [
                (grid.to_grid(start) / stride, grid.to_grid(end) / stride)
                for start, end in zip(
                    truth.start_sec[rows].tolist(), truth.end_sec[rows].tolist(), strict=True
                )
            ]
            shown = (video, stride, listed(levels[number]), actions)
    if shown is None:
        return None
    average = torch.tensor(totals, dtype=torch.float64).nanmean(dim=0)
    return LevelSimilarity(listed(average), *shown)


def level_features(model: nn.Module, feats: Tensor) -> list[Tensor]:
    """What a detector's neck hands to its heads: L x [C, T_l], without padding.

    Args:
        feats: [C, T] of one video, no longer than `max_len`.
    """
    caught: list[list[Tensor]] = []
    hook = model.get_submodule("neck").register_forward_hook(
        lambda _module, _inputs, levels: caught.append(list(levels))
    )
    length = feats.shape[-1]
    try:
        with torch.inference_mode():
            padded_len = model.padded_len(length)  # type: ignore[operator]  # a Detector
            model(*stack_padded([feats], padded_len))
    finally:
        hook.remove()
    finest = caught[0][0].shape[-1]
    return [level[0, :, : -(-length * level.shape[-1] // finest)].clone() for level in caught[0]]


def _with_most_actions(truth: TruthTable, stored: set[str]) -> list[str]:
    counts = torch.bincount(torch.as_tensor(truth.video), minlength=len(truth.videos)).tolist()
    order = sorted(range(len(truth.videos)), key=lambda v: -counts[v])
    return [truth.videos[v] for v in order if truth.videos[v] in stored][:SIMILARITY_VIDEOS]


def _cosines(level: Tensor) -> Tensor:
    """[C, T] -> [T, T]."""
    unit = F.normalize(level.float(), dim=0)
    return unit.T @ unit


def _mean_off_diagonal(matrix: Tensor) -> float:
    size = len(matrix)
    pairs = size * (size - 1)
    return float((matrix.sum() - matrix.diagonal().sum()) / pairs) if pairs else float("nan")
