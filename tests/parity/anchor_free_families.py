"""What differs between one-stage detectors in the parity runner: one row of FAMILIES each.

A row says which detector it is, how stored raw outputs are named and how official keys are renamed;
configurations are mapped by `tadpipe.pipeline.official_configs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tadpipe.detectors import actionformer as actionformer_module
from tadpipe.detectors import tridet as tridet_module
from tadpipe.detectors.protocol import AnchorFreeOutputs

Raw = Callable[[Any, Mapping[str, Any]], dict[str, Sequence[Tensor]]]


class Family(NamedTuple):
    """What differs between detectors."""

    detector: str  # name of tadpipe
    raw: Raw  # a_<name>_l<level>, from the outputs and what the model's children returned
    remap: Callable[[dict[str, Tensor]], dict[str, Tensor]]


def actionformer_raw(
    outputs: AnchorFreeOutputs, seen: Mapping[str, Any]
) -> dict[str, Sequence[Tensor]]:
    return {"cls_logits": outputs.logits, "offsets": [x[:, :, 0] for x in outputs.offsets]}


def tridet_raw(outputs: AnchorFreeOutputs, seen: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
    """Offsets are stored before the bins are decoded."""
    raw: dict[str, Sequence[Tensor]] = {
        "cls_logits": outputs.logits,
        "offsets": [x.transpose(1, 2) for x in seen["reg_head"]],
    }
    if "start_head" in seen:
        raw |= {"start_logits": seen["start_head"], "end_logits": seen["end_head"]}
    return raw


FAMILIES = {
    "actionformer": Family(
        "actionformer", actionformer_raw, actionformer_module.remap_official_keys
    ),
    "tridet": Family("tridet", tridet_raw, tridet_module.remap_official_keys),
}
