"""FineAction: 106 fine-grained actions in 17,000 untrimmed videos (Liu et al., TIP 2022).

Detectors are class-agnostic and take their labels from video-level scores.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec

FINEACTION = DatasetSpec(
    name="fineaction",
    title="FineAction",
    train_subset="training",
    test_subset="validation",
    num_classes=106,
    tious=(0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    official="activitynet",
)
