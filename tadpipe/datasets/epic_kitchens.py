"""EPIC-Kitchens-100: 97 verbs and 300 nouns in 700 long videos (Damen et al., IJCV 2022).

Verb and noun detectors are trained separately; each task is a data set of its own, and reads the
challenge's CSV files as well as JSON of that task. `epic_kitchens` is the challenge with its three
scores, or JSON of either task. Some nouns never occur; their numbers stay.
"""

from __future__ import annotations

from dataclasses import replace

from tadpipe.datasets.spec import DatasetSpec, Split
from tadpipe.epic_csv import NUM_NOUNS, NUM_VERBS

EPIC_KITCHENS = DatasetSpec(
    name="epic_kitchens",
    title="EPIC-Kitchens-100",
    train_subset="training",
    test_subset="validation",
    num_classes=NUM_NOUNS,
    tious=(0.1, 0.2, 0.3, 0.4, 0.5),
    other_splits=(Split("train", "val"),),
    official="epic",
)
"""EPIC-Kitchens-100, the challenge: a submission's verbs, nouns and actions; JSON of a task."""
EPIC_KITCHENS_VERB = replace(
    EPIC_KITCHENS, name="epic_kitchens_verb", num_classes=NUM_VERBS, task="verb"
)
"""EPIC-Kitchens-100, 97 verbs, from the challenge's CSV files or JSON."""
EPIC_KITCHENS_NOUN = replace(EPIC_KITCHENS, name="epic_kitchens_noun", task="noun")
"""EPIC-Kitchens-100, 300 nouns, from the challenge's CSV files or JSON."""
