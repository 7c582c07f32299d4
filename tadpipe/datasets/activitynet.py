"""ActivityNet 1.3: 200 activities in about 15,000 untrimmed videos (Heilbron et al., CVPR 2015).

Video and feature files carry the prefix `v_`, the annotations do not. Detectors are class-agnostic
and take their labels from video-level scores.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec

ACTIVITYNET = DatasetSpec(
    name="activitynet",
    title="ActivityNet 1.3",
    train_subset="training",
    test_subset="validation",
    num_classes=200,
    tious=(0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    feature_prefix="v_",
    official="activitynet",
)
