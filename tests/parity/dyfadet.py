"""Parity of DyFADet; the format of its cases is read by `unpadded_batch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tadpipe.detectors.dyfadet import Dyfadet, remap_official_keys
from tadpipe.detectors.protocol import AnchorFreeOutputs
from tests.parity.case import Case
from tests.parity.unpadded_batch import UnpaddedFamily, plain_step
from tests.parity.unpadded_batch import run as run_unpadded


def run(case: Case) -> None:
    """Every array of the case, those inside the dynamic heads included."""
    built: list[Any] = []

    def raw(outputs: AnchorFreeOutputs, seen: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
        plain = {"cls_logits": outputs.logits, "offsets": [x[:, :, 0] for x in outputs.offsets]}
        return plain | inside_heads(built[0], seen["neck"], outputs.masks)

    run_unpadded(
        case,
        UnpaddedFamily(
            detector="dyfadet",
            raw=raw,
            remap=remap_official_keys,
            points=lambda outputs: outputs,
            step=plain_step,
            prepared=built.append,
        ),
    )


@torch.no_grad()
def inside_heads(
    model: Dyfadet, features: list[Tensor], masks: list[Tensor]
) -> dict[str, Sequence[Tensor]]:
    """Outputs of the dynamic layers, and of the scale paths of the first class layer.

    The paths are run on all levels here; the model leaves out those nobody receives from.
    """
    found: dict[str, Sequence[Tensor]] = {}
    for name, trunk in (("cls", model.cls_trunk), ("reg", model.reg_trunk)):
        if trunk is None:
            continue
        levels = features
        for depth, layer in enumerate(trunk):
            if name == "cls" and depth == 0:
                for side, path in enumerate(layer.dynamic_convs):
                    found[f"cls_layer0_dfa{side}"] = path(levels, masks)
            levels = layer(levels, masks)
            found[f"{name}_layer{depth}"] = levels
    return found
