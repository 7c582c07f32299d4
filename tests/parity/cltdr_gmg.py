"""Parity of CLTDR-GMG: outputs of every module, two groups of losses, gradients, detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tadpipe.detectors.cltdr_gmg import CltdrGmgOutputs, remap_official_keys
from tadpipe.detectors.parts.losses import regression_weight
from tadpipe.detectors.protocol import Targets
from tests.parity import unpadded_batch
from tests.parity.case import Case

REFINED, COARSE = 0.7, 0.3  # shares as published


def raw(outputs: CltdrGmgOutputs, seen: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
    refinement = seen["refine_head"]
    maps = {
        "offsets": seen["reg_head"],  # before the bins are decoded
        "refine_cls_logits": refinement.factors,
        "refine_start": refinement.start_shifts,
        "refine_end": refinement.end_shifts,
    }
    if "start_head" in seen:
        maps |= {"start_logits": seen["start_head"], "end_logits": seen["end_head"]}
    arrays: dict[str, Sequence[Tensor]] = {
        name: [x.transpose(1, 2) for x in levels] for name, levels in maps.items()
    }
    return arrays | {
        "cls_feat": seen["cls_decoupling"],
        "reg_feat": seen["reg_decoupling"],
        "cross_feat": seen["fusion"],
        "coarse_cls_logits": outputs.coarse_logits,
        "cls_logits": outputs.logits,
    }


def step(model: nn.Module, outputs: CltdrGmgOutputs, targets: Targets) -> unpadded_batch.Step:
    """Both groups and their mixture, as stored; `loss` itself is checked against the mixture."""
    before = model.loss_state()
    whole = sum(model.loss(outputs, targets).values())
    model.load_loss_state(before)
    stored: dict[str, Tensor | float] = {}
    mixed = {"cls_loss": 0.0, "reg_loss": 0.0, "final_loss": 0.0}
    groups = model.loss_groups(outputs, targets)
    for name, share, group in zip(("refined", "coarse"), (REFINED, COARSE), groups, strict=True):
        weight = regression_weight(model.config.loss_weight, group.cls, group.reg)
        final = group.cls + weight * group.reg
        for term, loss in zip(mixed, (group.cls, group.reg, final), strict=True):
            stored[f"{name}_{term}"] = loss
            mixed[term] = mixed[term] + share * loss
    stored |= mixed | {"normalizer_mid": groups[0].norm, "final_loss": whole}
    return unpadded_batch.Step(whole, stored)


def run(case: Case) -> None:
    family = unpadded_batch.UnpaddedFamily(
        detector="cltdr-gmg",
        raw=raw,
        remap=remap_official_keys,
        points=lambda x: x.refined,
        step=step,
        also=("cls_loss",),
    )
    unpadded_batch.run(case, family)
