"""EPIC-Sounds: 44 sounds in the videos of EPIC-Kitchens-100 (Huh et al., ICASSP 2023).

Read from JSON; features are of the sound track.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec

EPIC_SOUNDS = DatasetSpec(
    name="epic_sounds",
    title="EPIC-Sounds",
    train_subset="train",
    test_subset="val",
    num_classes=44,
    tious=(0.1, 0.2, 0.3, 0.4, 0.5),
    official="epic",
)
