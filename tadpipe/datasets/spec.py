"""DatasetSpec: what is fixed about a public data set and cannot be read from its files.

Subset names differ between releases of the same data set, so a spec lists the pairs that occur and
picks the one an annotation file really has. Names are compared without case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tadpipe.errors import AnnotationError, ConfigError, Defect


class Split(NamedTuple):
    """The subset to train on and the subset to test on."""

    train: str
    test: str


class ClipRules(NamedTuple):
    """How clips are cut out of longer videos where a clip is an item (Ego4D)."""

    start_multiple_frames: int = 1  # a clip begins at a whole multiple of this, as its features do
    min_action_sec: float = 0.0  # shorter actions are left out for good


@dataclass(frozen=True)
class DatasetSpec:
    """One public data set."""

    name: str  # as in `--dataset`
    title: str  # as printed
    train_subset: str  # of the most common annotation file
    test_subset: str
    num_classes: int
    tious: tuple[float, ...]  # thresholds of the published mAP
    other_splits: tuple[Split, ...] = ()  # names used by other releases of the annotations
    feature_prefix: str = ""  # of video and feature file names, absent in the annotations
    dropped_labels: tuple[str, ...] = ()  # never trained or scored
    blocked: Mapping[str, str] = field(default_factory=dict)  # video -> why it is not scored
    blocked_under: tuple[str, ...] = ("opentad",)  # protocols that leave `blocked` out
    protocol: str = "opentad"  # of evaluation, unless another is asked for
    official: str = "actionformer"  # the protocol that "official" means here
    task: Literal["verb", "noun"] | None = None  # which class of an action is its label (EPIC)
    clips: ClipRules | None = None  # None: items are whole videos

    def __post_init__(self) -> None:
        if not self.tious or any(not 0 < tiou < 1 for tiou in self.tious):
            raise ConfigError("tIoU thresholds lie between 0 and 1.", f"{self.name}: {self.tious}")

    def split(self, subset_names: Sequence[str], source: str = "") -> Split:
        """The pair of subsets that an annotation file with these subsets is split by.

        Raises:
            AnnotationError: the file has none of the pairs; the message lists its subsets.
        """
        known = {name.lower(): name for name in subset_names}
        pairs = (Split(self.train_subset, self.test_subset), *self.other_splits)
        for pair in pairs:
            if pair.train.lower() in known and pair.test.lower() in known:
                return Split(known[pair.train.lower()], known[pair.test.lower()])
        expected = " or ".join(f"{pair.train} -> {pair.test}" for pair in pairs)
        raise AnnotationError(
            f"The annotations do not have the subsets of {self.title}.",
            [Defect(source, "$.database", f"subsets: {', '.join(subset_names)}")],
            f"Expected {expected}; or name them with --subset and --test-subset.",
        )

    def blocked_videos(self, protocol: str) -> Mapping[str, str]:
        """Videos that are not scored under `protocol`, with the reason."""
        return self.blocked if protocol in self.blocked_under else {}

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The labels of classes that are known by number: id_000, id_001, ..."""
        return tuple(f"id_{number:03d}" for number in range(self.num_classes))

    def annotation_name(self, file_stem: str) -> str:
        """The annotated video a file belongs to: its name without the prefix."""
        return file_stem.removeprefix(self.feature_prefix) if self.feature_prefix else file_stem
