"""Ego4D Moment Queries: 110 activities in egocentric clips (Grauman et al., CVPR 2022).

An item is a clip cut out of a longer video, named by its clip id, with times from its start. The
official moments_*.json load as they are. ActionFormer, and the detectors built on it, start a clip
at a multiple of the features' stride and leave actions below 0.25 s out; OpenTAD does neither.
"""

from __future__ import annotations

from dataclasses import replace

from tadpipe.datasets.spec import ClipRules, DatasetSpec, Split

EGO4D_MQ = DatasetSpec(
    name="ego4d_mq",
    title="Ego4D Moment Queries",
    train_subset="training",
    test_subset="validation",
    num_classes=110,
    tious=(0.1, 0.2, 0.3, 0.4, 0.5),
    other_splits=(Split("train", "val"),),
    clips=ClipRules(start_multiple_frames=16, min_action_sec=0.25),
)
"""Ego4D Moment Queries: 110 activities in egocentric clips, as ActionFormer converts them."""
EGO4D_MQ_OPENTAD = replace(EGO4D_MQ, name="ego4d_mq_opentad", clips=ClipRules())
"""Ego4D Moment Queries, clips and actions as annotated, as OpenTAD converts them."""
