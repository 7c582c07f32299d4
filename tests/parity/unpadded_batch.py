"""Parity of CLTDR-GMG and DyFADet, whose cases share one format; `run` takes what differs.

A case holds an unpadded batch (`feats_i`), raw outputs of every level (`raw_*_l`), one training
step (`loss_*`, gradient norms, targets) and each video alone down to seconds (`infer_j_*`).
A detector adds a module with its `UnpaddedFamily` and a `run(case)` that calls the one here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tadpipe.detectors.parts.assign import assign, positive_mask
from tadpipe.detectors.parts.losses import regression_weight
from tadpipe.detectors.parts.nms import batched_nms
from tadpipe.detectors.protocol import AnchorFreeOutputs, Targets
from tadpipe.pipeline.official_configs import lifted, nms_config
from tadpipe.training.checkpoint import load_strictly
from tests.parity.anchor_free import (
    GRID_ATOL,
    build,
    check_detections,
    gradient_norm,
    pad,
    read_targets,
    to_seconds,
    watched,
    without_chance,
)
from tests.parity.case import Case

RAW = {"atol": 1e-4, "rtol": 1e-4}
LOSSES = {"rtol": 1e-4, "atol": 1e-7}
GRADIENTS = {"rtol": 1e-3, "atol": 1e-6}
SECONDS_ATOL = 1e-3


class Step(NamedTuple):
    """The losses of one training step."""

    final: Tensor  # what is minimised
    stored: dict[str, Tensor | float]  # array name without `loss_` -> ours


class UnpaddedFamily(NamedTuple):
    """What differs between the detectors."""

    detector: str  # name of tadpipe
    raw: Callable[[Any, Mapping[str, Any]], dict[str, Sequence[Tensor]]]  # name -> levels of
    # raw_<name>_<level>, from the outputs and what the model's children returned
    remap: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    points: Callable[[Any], AnchorFreeOutputs]  # masks and points of the outputs
    step: Callable[[nn.Module, Any, Targets], Step]
    also: tuple[str, ...] = ()  # fields of ours that the case states beside the official tables
    prepared: Callable[[nn.Module], None] = lambda model: None  # called with the loaded model


def plain_step(model: nn.Module, outputs: Any, targets: Targets) -> Step:
    """The step of a detector with one pair of losses (`loss_terms`)."""
    cls_loss, reg_loss = model.loss_terms(outputs, targets)
    weight = regression_weight(model.config.loss_weight, cls_loss, reg_loss)
    final = cls_loss + weight * reg_loss
    return Step(final, {"cls_loss": cls_loss, "reg_loss": reg_loss, "final_loss": final})


def run(case: Case, family: UnpaddedFamily) -> None:
    model = load(case, family)
    batch = pad(
        [case.tensor(f"feats_{i}") for i in range(len(case.config["batch"]["lengths"]))],
        case.config["batch"]["padded_length"],
    )
    run_outputs(case, family, model, batch)
    run_step(case, family, model, batch)
    run_detections(case, family, model)


def load(case: Case, family: UnpaddedFamily) -> nn.Module:
    """The detector with the stored weights, loaded strictly."""
    also = {name: case.config[name] for name in family.also}
    model = build(family.detector, tables(case), also)
    load_strictly(model, family.remap(case.weights()), str(case.path))
    case.claim("strict load", True)
    family.prepared(model)
    return model


def tables(case: Case) -> Mapping[str, Any]:
    """The official configuration: its `model` table alone, the rest are left-over defaults."""
    return lifted({"model": case.config["config"]["model"]})


def run_outputs(
    case: Case, family: UnpaddedFamily, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    outputs, seen = watched(model, batch)
    found = family.points(outputs)
    raw = {"backbone_feat": seen["backbone"][0], "fpn_feat": seen["neck"]}
    for name, levels in (raw | family.raw(outputs, seen)).items():
        for level, ours in enumerate(levels):
            case.check(f"raw_{name}_{level}", ours, **RAW)
    for level, (mask, points) in enumerate(zip(found.masks, found.points, strict=True)):
        case.check(f"raw_mask_{level}", mask)
        case.check(f"raw_points_{level}", points)


def run_step(
    case: Case, family: UnpaddedFamily, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """Targets, losses and gradients of one training step without chance."""
    without_chance(model).train()
    targets = read_targets(case, batch[0].shape[0])
    model.load_loss_state({"loss_norm": float(case.read("loss_normalizer_before"))})
    outputs = model(*batch)
    check_targets(case, family, model, outputs, targets)
    step = family.step(model, outputs, targets)
    step.final.backward()
    for name, ours in step.stored.items():
        case.check(f"loss_{name}", ours, **LOSSES)
    case.check("loss_normalizer_after", model.loss_state()["loss_norm"], rtol=1e-6)
    check_gradients(case, family, model)


def check_targets(
    case: Case, family: UnpaddedFamily, model: nn.Module, outputs: Any, targets: Targets
) -> None:
    found = family.points(outputs)
    config = model.config
    assigned = assign(
        torch.cat(found.points), targets, config.num_classes, centre_radius=config.centre_radius
    )
    case.check("target_cls", assigned.classes)
    where = case.read("target_cls").any(axis=2)  # elsewhere the offsets are not used
    case.check("target_offsets", assigned.offsets, where=where, atol=1e-6, rtol=1e-6)
    positive = positive_mask(assigned, torch.cat(found.masks, dim=1))
    case.check("num_pos", int(positive.sum()))


def check_gradients(case: Case, family: UnpaddedFamily, model: nn.Module) -> None:
    """Every official key: our gradient norm, -1 for dead keys and for parameters without one."""
    parameters = dict(model.named_parameters())
    weights = case.weights()
    norms = []
    for name in map(str, case.read("grad_names")):
        renamed = list(family.remap({name: weights[name]}))
        norms.append(gradient_norm(parameters.pop(renamed[0])) if renamed else -1.0)
    case.claim("every parameter has an official gradient", not parameters, ", ".join(parameters))
    stored = case.read("grad_norms")
    case.claim("gradients missing", bool(((np.array(norms) < 0) == (stored < 0)).all()))
    case.check("grad_norms", np.array(norms), **GRADIENTS)


def run_detections(case: Case, family: UnpaddedFamily, model: nn.Module) -> None:
    """Each video alone, padded by the inference rule, to seconds."""
    model.eval()
    config = nms_config(family.detector, tables(case))
    for j, video in enumerate(case.config["inference_inputs"]):
        feats = case.tensor(video["video"])
        with torch.no_grad():
            outputs = model(*pad([feats], model.padded_len(feats.shape[1])))
        candidates = model.decode(outputs)[0]
        # The release leaves the order of equal scores to an unstable sort, and at the cap it
        # decides which of them are kept: take it from the stored candidates.
        candidates = check_detections(case, f"infer_{j}_prenms_" + "{}", candidates, GRID_ATOL)
        found = batched_nms(candidates, config)
        meta = np.array(
            [video[key] for key in ("fps", "duration", "feat_stride", "feat_num_frames")]
        )
        segments = to_seconds(found.segments, meta, feats.shape[1])
        found = found._replace(segments=segments)
        check_detections(case, f"infer_{j}_" + "{}", found, SECONDS_ATOL)
