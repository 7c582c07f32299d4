"""Feature conventions: what released features of the public data sets are, as their authors state.

A row i describes the snippet centred on frame i * stride + offset of a video at `fps`. None means
that the release does not say (or that it differs from video to video): whoever imports must.
Sources: the releases' configs and documentation, see docs/import.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FeatureConvention:
    """One released set of features."""

    name: str  # as in `--convention`
    title: str  # as printed
    dataset: str  # its public name
    backbone: str  # what the features were computed with
    channels: int | None
    stride: int  # frames between rows
    clip_len: int | None  # frames of a snippet
    fps: float | Literal["native"] | None  # "native": each video's own, from the annotations
    offset: float | None  # frame of the centre of row 0
    prefix: str = ""  # of file names, absent in the annotations
    key: str = "feats"  # of the array inside an .npz file


def _thumos14() -> tuple[FeatureConvention, ...]:
    title = "THUMOS14"
    return (
        FeatureConvention(
            "thumos14-i3d", "I3D, RGB and flow", title, "i3d-rgb+flow", 2048, 4, 16, "native", 8
        ),
        FeatureConvention(
            "thumos14-videomaev2-g", "VideoMAE v2", title, "videomae-g", 1408, 4, 16, "native", 8
        ),
        FeatureConvention(
            "thumos14-videomaev2-g-opentad",
            "VideoMAE v2 as OpenTAD extracts it, centred on the stride",
            title,
            "videomae-g",
            1408,
            4,
            16,
            "native",
            2,
        ),
        FeatureConvention(
            "thumos14-slowfast-r101", "SlowFast", title, "slowfast-r101", 2304, 4, 32, "native", 16
        ),
        FeatureConvention("thumos14-tsn", "TSN", title, "tsn", 2048, 1, None, "native", 0),
        FeatureConvention(
            "multithumos-i3d", "I3D, RGB and flow", "MultiTHUMOS", "i3d-rgb+flow", 2048, 4, 16,
            "native", 8,
        ),
    )  # fmt: skip


def _web_videos() -> tuple[FeatureConvention, ...]:
    return (
        FeatureConvention(
            "activitynet-tsp", "TSP, R(2+1)D-34", "ActivityNet-1.3", "tsp-r2plus1d-34", 512, 16, 16,
            15.0, 8, prefix="v_",
        ),
        FeatureConvention(
            "activitynet-i3d", "I3D", "ActivityNet-1.3", "i3d-rgb+flow", 2048, 16, 16, 25.0, 8,
            prefix="v_",
        ),
        FeatureConvention(
            "hacs-slowfast", "SlowFast", "HACS Segments", "slowfast-r101", 2304, 8, 32, 15.0, 16
        ),
        FeatureConvention(
            "hacs-i3d", "I3D, 2 rows a second", "HACS Segments", "i3d-rgb+flow", 2048, 1, 1, 2.0,
            None,
        ),
        FeatureConvention(
            "hacs-videomaev2", "VideoMAE v2", "HACS Segments", "videomae-g", 1408, 8, 16, None, 8
        ),
        FeatureConvention(
            "fineaction-videomae-h", "VideoMAE", "FineAction", "videomae-h", 1280, 16, 16, 30.0, 8
        ),
        FeatureConvention(
            "fineaction-videomaev2-g", "VideoMAE v2", "FineAction", "videomae-g", 1408, 16, 16,
            30.0, 8,
        ),
        FeatureConvention(
            "charades-i3d", "I3D, fine-tuned", "Charades", "i3d-rgb", 1024, 8, None, 24.0, 0
        ),
        FeatureConvention(
            "charades-videomae-l", "VideoMAE", "Charades", "videomae-l", 1024, 4, 16, 30.0, 2
        ),
    )  # fmt: skip


def _egocentric() -> tuple[FeatureConvention, ...]:
    ego4d = "Ego4D Moment Queries"
    return (
        FeatureConvention(
            "epic-slowfast", "SlowFast, fine-tuned", "EPIC-Kitchens-100", "slowfast", 2304, 16, 32,
            30.0, 16,
        ),
        FeatureConvention(
            "epic-internvideo2-1b", "InternVideo2", "EPIC-Kitchens-100", "internvideo2-1b", None, 8,
            16, 30.0, 4,
        ),
        FeatureConvention(
            "epic-sounds-slowfast", "auditory SlowFast", "EPIC-Sounds", "auditory-slowfast", None,
            6, 32, 30.0, 16,
        ),
        FeatureConvention("ego4d-slowfast", "SlowFast", ego4d, "slowfast", 2304, 16, 32, 30.0, 16),
        FeatureConvention("ego4d-omnivore", "Omnivore", ego4d, "omnivore", 1536, 16, 32, 30.0, 16),
        FeatureConvention("ego4d-egovlp", "EgoVLP", ego4d, "egovlp", 256, 16, None, 30.0, 16),
        FeatureConvention(
            "ego4d-internvideo", "InternVideo", ego4d, "internvideo-l", 1024, 8, 16, None, 4
        ),
    )  # fmt: skip


CONVENTIONS: dict[str, FeatureConvention] = {
    convention.name: convention for convention in (*_thumos14(), *_web_videos(), *_egocentric())
}
