"""Which published key layout a state dict has, and what stands before its names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from tadpipe.backbones.conv_parts import without_counters
from tadpipe.errors import CheckpointError

PREFIX = re.compile(r"(module\.)?((backbone\.)?model\.)?(backbone\.)?")
DETECTOR = re.compile(r"(module\.)?backbone\.model\.backbone\.")  # prefix in a whole detector
HEAD = re.compile(r"(module\.)?cls_head\.fc_cls\.")


def layout_of(
    state: Mapping[str, Tensor], anchors: Mapping[str, str], name: str
) -> tuple[str, str]:
    """The layout and what stands before its keys.

    Args:
        anchors: a key that each layout must have.
        name: of the network, for the message.
    Raises:
        CheckpointError: none of the anchors is there.
    """
    for layout, anchor in anchors.items():
        for key in state:
            prefix = key.removesuffix(anchor)
            if key.endswith(anchor) and PREFIX.fullmatch(prefix):
                return layout, prefix
    raise CheckpointError(
        f"These weights are not a {name} in a known key layout.",
        f"{len(state)} entries, the first are {', '.join(sorted(state)[:4])}",
        f"A {name} has {' or '.join(anchors.values())}.",
    )


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The backbone's entries under their own names, mmaction2's head under `head.`.

    Batch counters and, in the checkpoint of a whole detector, its other parts are left out.
    """
    kept = without_counters(state)
    if DETECTOR.fullmatch(prefix):
        kept = {key: value for key, value in kept.items() if key.startswith(prefix)}
    return {HEAD.sub("head.", key).removeprefix(prefix): value for key, value in kept.items()}
