"""HACS Segments 1.1.1: the 200 activities of ActivityNet in 50,000 videos (Zhao et al., ICCV 2019).

Feature files carry no prefix. Most recipes train all 200 classes and replace the labels by those
of video-level scores; the training annotations hold repetitions and segments that end before they
start.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec

HACS = DatasetSpec(
    name="hacs",
    title="HACS Segments",
    train_subset="training",
    test_subset="validation",
    num_classes=200,
    tious=(0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    official="activitynet",
)
