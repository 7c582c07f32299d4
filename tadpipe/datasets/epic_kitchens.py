"""EPIC-Kitchens-100: 97 verbs and 300 nouns in 700 long videos (Damen et al., IJCV 2022).

Verb and noun detectors are trained separately, each on an annotation file of its own.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec, Split

EPIC_KITCHENS = DatasetSpec(
    name="epic_kitchens",
    title="EPIC-Kitchens-100",
    train_subset="training",
    test_subset="validation",
    tious=(0.1, 0.2, 0.3, 0.4, 0.5),
    other_splits=(Split("train", "val"),),
)
