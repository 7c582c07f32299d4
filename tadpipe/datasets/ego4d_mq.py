"""Ego4D Moment Queries: 110 activities in egocentric clips (Grauman et al., CVPR 2022).

An item is a clip cut out of a longer video, named by its clip id, with times from its start.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec, Split

EGO4D_MQ = DatasetSpec(
    name="ego4d_mq",
    title="Ego4D Moment Queries",
    train_subset="training",
    test_subset="validation",
    tious=(0.1, 0.2, 0.3, 0.4, 0.5),
    other_splits=(Split("train", "val"),),
)
