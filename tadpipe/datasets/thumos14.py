"""THUMOS14: 20 sports in 200 + 213 untrimmed videos (Jiang et al., 2014; Idrees et al., 2017).

The challenge trains on its validation set and tests on its test set; OpenTAD's annotation file
calls the same videos training and validation.
"""

from __future__ import annotations

from tadpipe.datasets.spec import DatasetSpec, Split

THUMOS14 = DatasetSpec(
    name="thumos14",
    title="THUMOS14",
    train_subset="validation",
    test_subset="test",
    num_classes=20,
    tious=(0.3, 0.4, 0.5, 0.6, 0.7),
    other_splits=(Split("training", "validation"),),
    dropped_labels=("Ambiguous",),
    blocked={
        "video_test_0000270": "its annotations are wrong",
        "video_test_0001292": "it has no usable annotation",
    },
)
