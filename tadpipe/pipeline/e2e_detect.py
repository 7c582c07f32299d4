"""Detections on videos by a backbone and a detector as they are, in the middle of a training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tadpipe.annotations import Detections
from tadpipe.datasets.sources import FeatureSequence
from tadpipe.errors import VideoError
from tadpipe.pipeline.detect import detect_on_features
from tadpipe.pipeline.pixel_windows import FailedVideos
from tadpipe.pipeline.progress import Progress
from tadpipe.pipeline.train_plan import TrainPlan
from tadpipe.pipeline.video_features import VideoTable


def detect_on_videos(
    detector: nn.Module,
    table: VideoTable,
    plan: TrainPlan,
    videos: Mapping[str, str],
    failed: FailedVideos,
    *,
    label: str,
    progress: Progress,
) -> Detections:
    """Detections by name; videos that cannot be read have none and are noted in `failed`.

    Args:
        videos: annotated name -> name in the table, whose backbone makes the features.
        label: of the progress bar.
    """
    model = table.backbone
    assert isinstance(model, nn.Module)
    modes = [(part, part.training) for part in (model, detector)]
    for part, _ in modes:
        part.eval()
    progress.begin(label, len(videos), "video")
    found: Detections = {}
    for name, stored in videos.items():
        try:
            sequence = FeatureSequence([table.open(stored)])
            duration_sec = plan.durations_sec({name: stored})[name]
            found[name] = detect_on_features(
                detector, sequence, plan.recipe, duration_sec=duration_sec
            )
        except VideoError as error:
            failed.note(table.files[stored], stored, error)
            found[name] = []
        progress.advance()
    progress.end(f"{label}: {len(videos)} videos")
    for part, mode in modes:
        part.train(mode)
    return found
