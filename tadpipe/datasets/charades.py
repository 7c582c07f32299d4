"""Charades: 157 household actions, many at a time, in 9,848 videos (Sigurdsson et al., ECCV 2016).

Videos are half a minute long; detectors are trained on all classes at once.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec

CHARADES = DatasetSpec(
    name="charades",
    title="Charades",
    train_subset="training",
    test_subset="testing",
    num_classes=157,
    tious=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
)
