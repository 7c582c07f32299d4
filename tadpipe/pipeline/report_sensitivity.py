"""What ASL (Shao et al., ICCV 2023) learned about frames: by class, and in single actions.

The class-level curves are the Gaussians p of Eq. 3-4. The frame sensitivity h = p + q of Eq. 8,
drawn over an action as in Fig. 4, adds what the instance-level evaluators q say of its own frames.
It is read at the points that answer for the action in training. P positive points of a video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from tadpipe.datasets.sources import FeatureSource
from tadpipe.datasets.windows import fitted_features, fitted_grid, stack_padded
from tadpipe.detectors.asl import Asl
from tadpipe.detectors.asl_losses import match
from tadpipe.detectors.protocol import Targets
from tadpipe.evaluation.tables import TruthTable
from tadpipe.pipeline.recipe import TrainedDetector
from tadpipe.report.systems import FrameSensitivity, SensitivityCurves
from tadpipe.timeline import SnippetGrid

CURVE_POINTS = 41
MOST_ACTIONS = 24  # on the page, of all classes in turn
FEWEST_POINTS = 4  # of an action that is shown


def class_curves(model: Asl, labels: tuple[str, ...]) -> SensitivityCurves:
    """The learned Gaussians of every class over an action."""
    position = torch.linspace(-0.5, 0.5, CURVE_POINTS)
    classes = torch.arange(len(labels))
    with torch.no_grad():
        found = model.ase.class_sensitivity(
            position.expand(len(labels), -1), classes[:, None].expand(-1, CURVE_POINTS)
        )
    return SensitivityCurves(labels, listed(position), listed(found.cls), listed(found.loc))


def frame_sensitivity(
    trained: TrainedDetector, truth: TruthTable, source: FeatureSource, videos: Sequence[str]
) -> tuple[FrameSensitivity, ...]:
    """Of actions of these videos, the classes in turn, those with most points first.

    Args:
        trained: an `Asl`; source: the features of the videos.
    """
    by_label: dict[str, list[FrameSensitivity]] = {label: [] for label in truth.labels}
    for video in videos:
        for action in _of_video(trained, truth, source, video):
            by_label[action.label].append(action)
    ranked = [sorted(each, key=lambda a: -len(a.time_sec)) for each in by_label.values()]
    in_turn = chain.from_iterable(zip_longest(*ranked))
    return tuple([action for action in in_turn if action is not None][:MOST_ACTIONS])


def _of_video(
    trained: TrainedDetector, truth: TruthTable, source: FeatureSource, video: str
) -> Iterator[FrameSensitivity]:
    """Every action of the video that enough points answer for."""
    model, recipe = trained.model, trained.recipe
    assert isinstance(model, Asl)
    sequence = source.open(video)
    feats = fitted_features(sequence, recipe.windows, recipe.window_len)  # [C, T]
    feats = feats[:, : model.max_len()]
    grid = fitted_grid(sequence.grid, recipe.windows, recipe.window_len)
    rows = [
        row
        for row in (truth.video == truth.videos.index(video)).nonzero()[0].tolist()
        if truth.labels[truth.label[row]] in recipe.labels
        and grid.to_grid(float(truth.end_sec[row])) <= feats.shape[1]
    ]
    if not rows:
        return
    segments = [
        [grid.to_grid(float(truth.start_sec[row])), grid.to_grid(float(truth.end_sec[row]))]
        for row in rows
    ]
    labels = [recipe.labels.index(truth.labels[truth.label[row]]) for row in rows]
    values = _at_points(model, feats, grid, torch.tensor(segments), torch.tensor(labels))
    for number, row in enumerate(rows):
        own = values[:, values[0] == number][1:]
        own = own[:, own[0].argsort()]
        if own.shape[1] >= FEWEST_POINTS:
            yield FrameSensitivity(
                video,
                truth.labels[truth.label[row]],
                float(truth.start_sec[row]),
                float(truth.end_sec[row]),
                *map(listed, own),
            )


def _at_points(
    model: Asl, feats: Tensor, grid: SnippetGrid, segments: Tensor, labels: Tensor
) -> Tensor:
    """[6, P]: number of the action, seconds, h and p of the class, h and p of the boundaries."""
    with torch.inference_mode():
        outputs = model(*stack_padded([feats], model.padded_len(feats.shape[1])))
        targets = Targets([segments.float()], [labels])
        matched = match(outputs.predictions, targets, model.config)
        found = model.criterion.sensitivity(outputs.predictions, outputs.features, matched)
    points = torch.cat(outputs.predictions.points)[matched.pairs.point, 0]
    seconds = torch.tensor([grid.to_sec(place) for place in points.tolist()])
    columns = (matched.instance, seconds, found.h_cls, found.p.cls, found.h_loc, found.p.loc)
    return torch.stack([column.double() for column in columns])


def listed(values: Tensor) -> list[Any]:
    """Three digits; nested as deep as the tensor."""
    rounded: list[Any] = values.double().mul(1000).round().div(1000).tolist()
    return rounded
