"""MultiTHUMOS: the videos of THUMOS14 with 65 dense, overlapping actions (Yeung et al., IJCV 2018).

Features are those of THUMOS14. All 213 test videos are scored.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec, Split

MULTITHUMOS = DatasetSpec(
    name="multithumos",
    title="MultiTHUMOS",
    train_subset="training",
    test_subset="validation",
    num_classes=65,
    tious=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    other_splits=(Split("validation", "test"),),
)
