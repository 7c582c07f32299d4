"""Parity of ASL with the stored formulas: attention fusion, class-level sensitivity, all losses.

A case is told by its arrays: `fused` = attention, `time_d` = class level, `gts` = losses. There are
no weight files; everything runs in float64, and tolerances are those of `case.json`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tadpipe.detectors.asl import TimeChannelAttention, channel_map
from tadpipe.detectors.asl_losses import (
    AslCriterion,
    AslLossConfig,
    Matched,
    Sensitivity,
    SensitivityEvaluator,
    contrast,
    index_position,
    match,
    quality_loss,
    sensitive_ranges,
    time_position,
)
from tadpipe.detectors.protocol import AnchorFreeOutputs, Targets
from tests.parity.case import Case

FINITE_DIFFERENCES = {"rtol": 1e-4, "atol": 1e-7}  # the stored derivatives are no better
GAUSSIANS = ("mu_cls", "mu_sot", "mu_eot", "sigma_cls", "sigma_sot", "sigma_eot")


def run(case: Case) -> None:
    if "fused" in case:
        run_attention(case)
    elif "time_d" in case:
        run_class_level(case)
    else:
        run_losses(case)


def run_attention(case: Case) -> None:
    """One head, all keys, plain linear maps, before the output projection."""
    x, mask = case.tensor("x").T[None], case.tensor("mask")[None]  # [1, D, T], [1, T]
    theta = case.config["theta"]
    attention = TimeChannelAttention(
        x.shape[1],
        1,
        window=-1,
        stride=1,
        convs=False,
        channel_share=theta,
        channel_heads=1,
        dropout=0.0,
    ).double()
    kinds = [f"{kind}_{branch}" for kind in "qkv" for branch in "td"]
    state = {f"{kind}.weight": case.tensor(f"w_{kind}") for kind in kinds}
    state |= {f"{kind}.bias": case.tensor(f"b_{kind}") for kind in kinds}
    state |= {"proj.weight": torch.eye(x.shape[1])[..., None], "proj.bias": torch.zeros(x.shape[1])}
    attention.load_state_dict(state)
    close = tolerance(case)
    with torch.no_grad():
        temporal, channel = attention.branches(x, mask)
        fused, _ = attention(x, mask)
        query, key, _ = attention.channel_inputs(*attention.inputs(x, mask), mask[..., None])
        attended = channel_map(query, key, mask, 1)
    case.claim("valid_frames", int(mask.sum()) == case.config["valid_frames"])
    case.check("temporal", temporal[0], **close)
    case.check("channel", channel[0], **close)
    case.check("channel_attention_map", attended[0, 0], **close)
    case.check("fused", fused[0].T, **close)


def run_class_level(case: Case) -> None:
    close = tolerance(case)
    evaluators = {
        suffix: evaluator(case, loss_config(case.config, square=suffix == "sq"), channels=1)
        for suffix in ("sq", "lit")
    }
    for i, instance in enumerate(case.config["instances"]):
        count = torch.tensor(instance["n_frames"])
        position = index_position(torch.arange(int(count), dtype=torch.float64), count)
        case.check(f"i{i}_d", position, **close)
        labels = torch.full((int(count),), instance["category"])
        for suffix, model in evaluators.items():
            with torch.no_grad():
                p = model.class_sensitivity(position, labels)
            case.check(f"i{i}_p_cls", p.cls, label=f"i{i}_p_cls ({suffix})", **close)
            case.check(f"i{i}_p_sot_{suffix}", p.sot, **close)
            case.check(f"i{i}_p_eot_{suffix}", p.eot, **close)
            case.check(f"i{i}_p_loc_{suffix}", p.loc, **close)
    position = time_position(case.tensor("time_points"), case.tensor("time_segments"))
    case.check("time_d", position, **close)


def run_losses(case: Case) -> None:
    config = loss_config(case.config["config"], focal=case.config["focal"])
    feats = case.tensor("feats")  # [B, T, D]
    ase = evaluator(case, config, channels=feats.shape[2]).eval()
    criterion = AslCriterion(ase, config)
    outputs, targets = outputs_of(case), targets_of(case)
    features = [feats.transpose(1, 2)]
    matched = match(outputs, targets, config)
    sensitivity = criterion.sensitivity(outputs, features, matched)
    check_points(case, criterion, outputs, features, matched, sensitivity)
    check_contrast(case, criterion, outputs, features, targets)
    close = tolerance(case)
    terms = criterion(outputs, features, targets)
    case.check("L_cls", terms["cls"], **close)
    case.check("L_loc", terms["reg"], **close)
    for name in ("cls", "loc"):
        gap = getattr(sensitivity, f"q_{name}") - getattr(sensitivity, f"quality_{name}")
        case.check(f"L_s_{name}", gap.square().sum() / max(len(gap), 1), **close)
    case.check("L_s", terms["quality"], **close)
    case.compare("L_s (mean of both)", quality_loss(sensitivity), case.arrays["L_s"], **close)
    case.check("L_ascl", terms["contrast"] / config.contrast_weight, **close)
    case.check("total", torch.stack(list(terms.values())).sum(), **close)
    (terms["cls"] + terms["reg"] + terms["contrast"]).backward()
    for name in GAUSSIANS:
        parameter = ase.get_parameter(name)
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        case.check(f"fdgrad_{name}", gradient, **FINITE_DIFFERENCES)


def check_points(
    case: Case,
    criterion: AslCriterion,
    outputs: AnchorFreeOutputs,
    features: list[Tensor],
    matched: Matched,
    sensitivity: Sensitivity,
) -> None:
    """What every frame has; frames without an action hold NaN."""
    close = tolerance(case)
    shape = case.arrays["assignment"].shape
    sequence, point = matched.pairs.sequence, matched.pairs.point

    def spread(values: Tensor, fill: float) -> Tensor:
        return torch.full(shape, fill, dtype=values.dtype).index_put((sequence, point), values)

    case.claim("n_pos", len(point) == case.config["n_pos"])
    case.check("assignment", spread(matched.instance, -1))
    p, s = sensitivity.p, sensitivity
    values = {
        "d": matched.position,
        "p_cls": p.cls,
        "p_sot": p.sot,
        "p_eot": p.eot,
        "p_loc": p.loc,
        "Q_cls": s.quality_cls,
        "Q_loc": s.quality_loc,
        "h_cls": s.h_cls,
        "h_loc": s.h_loc,
        "diou": criterion.diou(outputs, matched),
    }
    for name, value in values.items():
        case.check(name, spread(value.detach(), float("nan")), **close)
    everywhere = criterion.evaluator.instance_sensitivity(features, outputs.masks)
    for name, q in zip(("q_cls", "q_loc"), everywhere, strict=True):
        at_positives = spread(getattr(s, name).detach(), float("nan"))
        case.check(f"{name}_all", q, **close)
        # `q_*` is stored either everywhere or at positive points only.
        ours = q if np.isfinite(case.arrays[name]).all() else at_positives
        case.check(name, ours, **close)
    case.check("focal", criterion.focal(outputs, matched)[0], **close)


def check_contrast(
    case: Case,
    criterion: AslCriterion,
    outputs: AnchorFreeOutputs,
    features: list[Tensor],
    targets: Targets,
) -> None:
    close = tolerance(case)
    vectors = criterion.instance_vectors(outputs, features, targets)
    count = len(vectors.labels) // 2
    rows = ranges_of(criterion, outputs, targets)
    # Ours come video by video, the stored ones in the order of `gts`.
    by_video = np.argsort(case.read("gts")[:, 0], kind="stable")
    first = np.searchsorted(case.arrays["gts"][by_video, 0], rows[:, 0].numpy())
    order = np.argsort(by_video[first + rows[:, 1].numpy()])
    pairs = torch.from_numpy((2 * order[:, None] + np.arange(2)).ravel())
    case.check("ascl_vectors", vectors.actions[pairs], **close)
    case.check("ascl_labels", vectors.labels[pairs])
    case.check("ascl_kind", torch.arange(2).repeat(count))
    case.check("ascl_instance", torch.arange(count).repeat_interleave(2))
    beside = torch.from_numpy(order[rows[order, -1].numpy() > 0])
    kept = (rows[:, -1] > 0).cumsum(0)[beside] - 1  # actions without background have no row
    case.check("ascl_background", vectors.background[kept], **close)
    per_anchor = contrast(vectors, criterion.config.contrast_temperature)
    case.check("ascl_per_anchor", per_anchor[pairs], **close)
    case.check("ascl_ranges", rows[order])


def ranges_of(criterion: AslCriterion, outputs: AnchorFreeOutputs, targets: Targets) -> Tensor:
    """The columns of `ascl_ranges`, video by video."""
    rows = []
    for video, (segments, labels) in enumerate(zip(targets.segments, targets.labels, strict=True)):
        ranges = sensitive_ranges(
            criterion.evaluator,
            outputs.points[0],
            outputs.masks[0][video],
            segments,
            labels,
            torch.arange(len(labels)),
        )
        columns = (
            torch.full_like(ranges.rows, video),
            ranges.rows,
            labels[ranges.rows],
            ranges.inside.sum(1),
            ranges.reach,
            *ranges.peaks.T,
            ranges.cls.sum(1),
            ranges.loc.sum(1),
            ranges.background.sum(1),
        )
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows)


def outputs_of(case: Case) -> AnchorFreeOutputs:
    """One level of stride 1 that answers for every distance."""
    logits, offsets = case.tensor("logits"), case.tensor("offsets")  # [B, T, K], [B, T, 2]
    batch, steps = logits.shape[:2]
    points = torch.zeros(steps, 4, dtype=torch.float64)
    points[:, 0] = torch.arange(steps)
    points[:, 2:] = torch.tensor([torch.inf, 1.0])
    mask = torch.ones(batch, steps, dtype=torch.bool)
    return AnchorFreeOutputs([mask], [points], [logits], [offsets[:, :, None]])


def targets_of(case: Case) -> Targets:
    """Rows (video, start, end, category), by rising video."""
    truths = case.tensor("gts")
    videos = range(case.arrays["logits"].shape[0])
    rows = [truths[truths[:, 0] == video] for video in videos]
    return Targets([x[:, 1:3] for x in rows], [x[:, 3].long() for x in rows])


def evaluator(case: Case, config: AslLossConfig, *, channels: int) -> SensitivityEvaluator:
    """Ours with the stored parameters; only the class level where no evaluators are stored."""
    model = SensitivityEvaluator(channels, len(case.arrays["mu_cls"]), config).double()
    state = {name: case.tensor(name) for name in GAUSSIANS}
    if config.instance_level:
        for kind in ("cls", "loc"):
            for layer in ("conv", "fc"):
                state[f"eval_{kind}.{layer}.weight"] = case.tensor(f"{layer}_w_{kind}")
                state[f"eval_{kind}.{layer}.bias"] = case.tensor(f"{layer}_b_{kind}")
    model.load_state_dict(state)
    return model


def loss_config(
    stored: dict[str, Any], *, square: bool | None = None, focal: dict[str, Any] | None = None
) -> AslLossConfig:
    """The stored switches in our words; what a case does not name keeps its default."""
    words = {
        "sigma_min": "sigma_min",
        "sigma_max": "sigma_max",
        "delta": "contrast_ratio",
        "tau": "contrast_temperature",
        "lambda": "contrast_weight",
    }
    table = {ours: stored[theirs] for theirs, ours in words.items() if theirs in stored}
    squared = stored.get("square", True) if square is None else square
    shape = {} if focal is None else {f"focal_{k}": focal[k] for k in ("alpha", "gamma")}
    return AslLossConfig(
        **table, **shape, eq4_literal=not squared, instance_level=focal is not None
    )


def tolerance(case: Case) -> dict[str, float]:
    return {"rtol": float(case.config["rtol"]), "atol": float(case.config["atol"])}
