"""How the public evaluators differ, as switches of one evaluator.

`activitynet` is the ActivityNet toolkit, `actionformer` the ActionFormer release and what inherits
from it, `opentad` OpenTAD's mAP (the default), `epic` the EPIC-Kitchens-100 detection challenge.
`official` stands for one of them: whose rules a data set's published scores follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tadpipe.errors import ConfigError
from tadpipe.registry import nearest


@dataclass(frozen=True)
class Protocol:
    """The rules of one public evaluator."""

    name: str
    # Seconds: a ground truth is dropped when one of the same label was kept whose ends are both
    # this near; None keeps all.
    dedup_gt: float | None
    # Seconds: a ground truth is kept when it is at least this long and longer than nothing; None
    # keeps all.
    min_gt_length: float | None
    # A predicted label that the kept ground truth does not have: an error, left out, or counted
    # for whatever class has that number once the labels present are renumbered.
    unknown_label: Literal["error", "ignore", "collide"]
    # tIoU 0/0 of two empty segments: a match, or 0.
    nan_tiou: Literal["match", "zero"]
    # Columns of the AP table: as labels first appear in the kept ground truth, or by label_id.
    class_order: Literal["appearance", "id"]


ACTIVITYNET = Protocol("activitynet", None, None, "error", "match", "appearance")
ACTIONFORMER = Protocol("actionformer", 1e-3, 1e-3, "collide", "match", "id")
OPENTAD = Protocol("opentad", 1e-3, 0.0, "ignore", "zero", "appearance")
EPIC = Protocol("epic", None, None, "ignore", "match", "id")

PROTOCOLS = {p.name: p for p in (ACTIVITYNET, ACTIONFORMER, OPENTAD, EPIC)}


OFFICIAL = "official"


def protocol_named(name: str, official: str | None = None) -> Protocol:
    """The protocol of that name.

    Args:
        official: what the data set calls official; None without a data set.
    Raises:
        ConfigError: there is none; the message has the nearest names.
    """
    if name == OFFICIAL:
        if official is None:
            raise ConfigError(
                "Whose rules are the official ones depends on the data set.",
                f"--protocol {name}",
                "Name the data set with --dataset.",
            )
        name = official
    if name not in PROTOCOLS:
        guesses = nearest(name, PROTOCOLS) or list(PROTOCOLS)
        raise ConfigError(
            f"No evaluation protocol '{name}'.", "", f"Did you mean {' or '.join(guesses)}?"
        )
    return PROTOCOLS[name]
