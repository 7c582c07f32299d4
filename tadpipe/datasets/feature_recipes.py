"""Feature recipes: how released features were made, as far as `tadpipe extract` can do it again.

A recipe decides backbone, clips, rate and pixels; weights, stores and devices stay options. Its
numbers are those of `conventions.py`, which describes the same features for importing. Where a
release has two streams, each has a recipe and training joins the stores.
Standard library only, so that the names can be listed at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FeatureRecipe:
    """One released set of features."""

    title: str  # whose, as printed
    backbone: str
    stride: int  # frames between snippets
    clip_len: int = 16
    frame_interval: int = 1
    anchor: Literal["start", "centre", "cell"] = "start"
    fps: float | None = None  # None = each file's own, whatever detectors assume it to be
    pixels: str | None = None  # a key of `PIXEL_RECIPES`; None = not published, the backbone's own

    def line(self) -> str:
        """The recipe in a line."""
        rate = "the file's rate" if self.fps is None else f"{self.fps:g} fps"
        return (
            f"{self.title}: {self.backbone}, {self.clip_len} frames every {self.stride} at {rate}"
        )


FEATURE_RECIPES = {
    "thumos14-videomaev2-g": FeatureRecipe(
        "THUMOS14, VideoMAE v2", "videomae-g", 4, pixels="videomaev2-tad"
    ),
    "thumos14-videomaev2-g-opentad": FeatureRecipe(
        "THUMOS14, VideoMAE v2 as OpenTAD extracts it",
        "videomae-g",
        4,
        anchor="cell",
        pixels="mmaction",
    ),
    "thumos14-i3d-rgb": FeatureRecipe("THUMOS14, I3D on colours", "i3d-rgb", 4, pixels="i3d"),
    "thumos14-i3d-flow": FeatureRecipe("THUMOS14, I3D on flow", "i3d-flow", 4, pixels="i3d-flow"),
    "thumos14-slowfast-r101": FeatureRecipe("THUMOS14, SlowFast", "slowfast-r101", 4, clip_len=32),
    "multithumos-i3d-rgb": FeatureRecipe("MultiTHUMOS, I3D on colours", "i3d-rgb", 4, pixels="i3d"),
    "multithumos-i3d-flow": FeatureRecipe(
        "MultiTHUMOS, I3D on flow", "i3d-flow", 4, pixels="i3d-flow"
    ),
    "activitynet-tsp": FeatureRecipe(
        "ActivityNet-1.3, TSP", "r2plus1d-34", 16, fps=15.0, pixels="tsp"
    ),
    "activitynet-i3d-rgb": FeatureRecipe(
        "ActivityNet-1.3, I3D on colours", "i3d-rgb", 16, fps=25.0, pixels="i3d"
    ),
    "activitynet-i3d-flow": FeatureRecipe(
        "ActivityNet-1.3, I3D on flow",
        "i3d-flow",
        16,
        fps=25.0,
        pixels="i3d-flow",
    ),
    "hacs-slowfast": FeatureRecipe(
        "HACS Segments, SlowFast", "slowfast-r101", 8, clip_len=32, fps=15.0
    ),
    "hacs-videomaev2": FeatureRecipe("HACS Segments, VideoMAE v2", "videomae-g", 8),
    "fineaction-videomae-h": FeatureRecipe("FineAction, VideoMAE", "videomae-h", 16),
    "fineaction-videomaev2-g": FeatureRecipe(
        "FineAction, VideoMAE v2",
        "videomae-g",
        16,
        pixels="videomaev2-tad",
    ),
    "charades-videomae-l": FeatureRecipe(
        "Charades, VideoMAE",
        "videomae-l",
        4,
        anchor="cell",
        fps=30.0,
        pixels="mmaction",
    ),
    # the weights were trained on pictures as OpenCV reads them
    "epic-slowfast": FeatureRecipe(
        "EPIC-Kitchens-100, SlowFast",
        "slowfast-r50",
        16,
        clip_len=32,
        fps=30.0,
        pixels="epic-slowfast",
    ),
    # the release has one row more where frames are left: a clip that ends with the video
    "ego4d-slowfast": FeatureRecipe(
        "Ego4D Moment Queries, SlowFast",
        "slowfast-r101",
        16,
        clip_len=32,
        fps=30.0,
        pixels="pyslowfast",
    ),
}
