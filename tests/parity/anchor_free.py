"""Parity of the one-stage detectors: models, losses, detections, optimiser steps, schedule, crops.

A case is told by its arrays: `lr` = schedule, `draws` = truncation, `t0_lr` = optimiser steps, else
a model case with parts a (outputs), b (losses and gradients) and c (detections).
What differs between detectors is one row of `anchor_free_families.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tadpipe.datasets.loader import Batch
from tadpipe.datasets.windows import choose_window
from tadpipe.detectors import DETECTORS
from tadpipe.detectors.parts.assign import assign, positive_mask
from tadpipe.detectors.parts.conv import AffineDropPath
from tadpipe.detectors.parts.losses import regression_weight
from tadpipe.detectors.parts.nms import batched_nms
from tadpipe.detectors.protocol import AnchorFreeOutputs, GridDetections, Targets
from tadpipe.pipeline.official_configs import decode_config, lifted, model_config, nms_config
from tadpipe.registry import resolve
from tadpipe.timeline import SnippetGrid
from tadpipe.training.checkpoint import load_strictly
from tadpipe.training.loop import DetectorLearner, Trainer, TrainingConfig
from tadpipe.training.optim import OptimConfig, decay_names, learning_rate_at
from tests.parity.anchor_free_families import FAMILIES, Family
from tests.parity.case import Case

OUTPUTS = {"atol": 2e-4, "rtol": 1e-4}
LOSSES = {"rtol": 1e-4, "atol": 1e-6}
GRADIENTS = {"rtol": 2e-3, "atol": 1e-6}
ZERO_GRADIENT = {"rtol": 2e-3, "atol": 1e-5}  # attention keys' shift: analytically zero
SCORE_ATOL, GRID_ATOL, SECONDS_ATOL = 1e-4, 2e-3, 2e-3


def family_of(case: Case) -> Family:
    """By the release that made the case."""
    source = str(case.config["source"]).lower()
    for name, family in FAMILIES.items():
        if name in source:
            return family
    raise ValueError(f"{case.path}: no detector for '{source}'. Known: {', '.join(FAMILIES)}.")


def run(case: Case) -> None:
    if "lr" in case:
        run_schedule(case)
    elif "draws" in case:
        run_truncate(case)
    elif "t0_lr" in case:
        run_train_steps(case)
    else:
        model = load(case)
        videos = len(case.config["valid_lengths"])
        batch = padded_batch([case.tensor(f"feats_{i}") for i in range(videos)], model)
        run_outputs(case, model, batch)
        run_losses(case, model, batch)
        run_detections(case, model)


# --- part a: outputs, and the levels of encoder and neck ---------------------------------------


def run_outputs(case: Case, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    outputs, seen = watched(model, batch)
    raw = family_of(case).raw(outputs, seen)
    for name, levels in (raw | {"backbone": seen["backbone"][0], "neck": seen["neck"]}).items():
        for level, ours in enumerate(levels):
            case.check(f"a_{name}_l{level}", ours, **OUTPUTS)
    for level, (mask, points) in enumerate(zip(outputs.masks, outputs.points, strict=True)):
        case.check(f"a_mask_l{level}", mask)
        case.check(f"a_points_l{level}", points)


def watched(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Any, dict[str, Any]]:
    """Outputs in eval mode, and what each direct child of the model returned, by its name."""
    seen: dict[str, Any] = {}
    hooks = [
        child.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name, child in model.named_children()
    ]
    model.eval()
    with torch.no_grad():
        outputs = model(*batch)
    for hook in hooks:
        hook.remove()
    return outputs, seen


# --- part b: targets, losses and gradients of two steps ----------------------------------------


def run_losses(case: Case, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    without_chance(model).train()
    targets = read_targets(case, batch[0].shape[0])
    names = our_names(case, case.read("b_param_names"))
    parameters = dict(model.named_parameters())
    case.claim("parameters", sorted(names) == sorted(parameters))
    for step in (1, 2):
        model.zero_grad(set_to_none=True)
        outputs = model(*batch)
        if step == 1:
            check_targets(case, model, outputs, targets)
        cls_loss, reg_loss = model.loss_terms(outputs, targets)
        weight = regression_weight(model.config.loss_weight, cls_loss, reg_loss)
        final = cls_loss + weight * reg_loss
        final.backward()
        for name, loss in (("cls", cls_loss), ("reg", reg_loss), ("final", final)):
            case.check(f"b_step{step}_{name}_loss", loss, **LOSSES)
        normalizer = model.loss_state()["loss_norm"]
        case.check(f"b_step{step}_loss_normalizer", normalizer, rtol=1e-6)
        check_gradients(case, step, names, parameters)
    decay, rest = decay_names(model)
    case.claim("b_decay_names", set(our_names(case, case.read("b_decay_names"))) == decay)
    case.claim("b_no_decay_names", set(our_names(case, case.read("b_no_decay_names"))) == rest)


def check_targets(
    case: Case, model: nn.Module, outputs: AnchorFreeOutputs, targets: Targets
) -> None:
    config = model.config
    assigned = assign(
        torch.cat(outputs.points),
        targets,
        config.num_classes,
        centre_radius=config.centre_radius,
    )
    positive = positive_mask(assigned, torch.cat(outputs.masks, dim=1))
    case.check("b_target_cls", assigned.classes)
    case.check("b_pos_mask", positive)
    where = case.read("b_pos_mask").astype(bool)
    case.check("b_target_offsets", assigned.offsets, where=where, atol=1e-6, rtol=1e-6)
    case.claim("positives", int(positive.sum()) == case.config["positives"])


def check_gradients(
    case: Case, step: int, names: list[str], parameters: dict[str, nn.Parameter]
) -> None:
    stored = case.read(f"b_step{step}_grad_norms")
    missing = np.array([parameters[name].grad is None for name in names])
    case.check("b_grad_is_none", missing, label=f"b_grad_is_none (step {step})")
    norms = np.array([gradient_norm(parameters[name]) for name in names])
    zero = np.array([name.endswith(("attn.key.bias", "attn.key_norm.bias")) for name in names])
    key = f"b_step{step}_grad_norms"
    case.check(key, norms, where=~zero, **GRADIENTS)
    if zero.any():
        case.compare(f"{key} (keys)", norms, stored, where=zero, **ZERO_GRADIENT)
    if step == 1:
        for name, official in zip(names, case.read("b_param_names"), strict=True):
            if (key := f"b_grad/{official}") in case:
                # Single elements may cancel: their error is that of the tensor's scale.
                largest = float(np.abs(case.read(key)).max(initial=0.0))
                case.check(key, parameters[name].grad, rtol=2e-3, atol=1e-6 + 1e-4 * largest)


def gradient_norm(parameter: nn.Parameter) -> float:
    return -1.0 if parameter.grad is None else float(parameter.grad.double().norm())


# --- part c: each video alone, to seconds ------------------------------------------------------


def run_detections(case: Case, model: nn.Module) -> None:
    model.eval()
    config = nms_config(family_of(case).detector, lifted(case.config))
    video = 0
    while f"c_scores_{video}" in case:
        feats = case.tensor(f"feats_{video}")
        length = model.padded_len(feats.shape[1])
        with torch.no_grad():
            outputs = model(*pad([feats], length))
        candidates = model.decode(outputs)[0]
        check_detections(case, "c_cand_{}_" + str(video), candidates, GRID_ATOL)
        found = batched_nms(candidates, config)
        segments = to_seconds(found.segments, case.read(f"c_meta_{video}"), feats.shape[1])
        found = found._replace(segments=segments)
        check_detections(case, "c_{}_" + str(video), found, SECONDS_ATOL)
        video += 1


def check_detections(
    case: Case, name: str, ours: GridDetections, segment_atol: float
) -> GridDetections:
    """Rows whose scores are equal to rounding may have swapped places; pair them up first.

    Args:
        name: of the stored arrays, with {} for segments, scores and labels.
    Returns:
        Ours in the stored order.
    """
    names = [name.format(kind) for kind in ("segments", "scores", "labels")]
    segments, scores, labels = (case.read(name) for name in names)
    order = np.arange(len(ours.scores))
    if len(order) == len(scores):
        order = pair_up((segments, scores, labels), [x.numpy() for x in ours])
    paired = GridDetections(*(values[order] for values in ours))
    case.check(names[0], paired.segments, atol=segment_atol)
    case.check(names[1], paired.scores, atol=SCORE_ATOL)
    case.check(names[2], paired.labels)
    return paired


def pair_up(stored: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> np.ndarray:
    """For each stored row the first free row of ours that is as near as the tolerance allows."""
    free = np.ones(len(ours[1]), bool)
    order = np.empty(len(free), np.int64)
    for row, (segment, score, label) in enumerate(zip(*stored, strict=True)):
        near = free & (ours[2] == label) & (np.abs(ours[1] - score) <= SCORE_ATOL)
        near &= np.abs(ours[0] - segment).max(axis=1) <= GRID_ATOL
        order[row] = np.flatnonzero(near)[0] if near.any() else np.flatnonzero(free)[0]
        free[order[row]] = False
    return order


def to_seconds(segments: Tensor, meta: np.ndarray, rows: int) -> Tensor:
    """Through the time axis of the store; `meta` = [fps, duration_s, stride, num_frames]."""
    fps, duration_sec, stride, span = (float(value) for value in meta)
    grid = SnippetGrid.from_convention(rows, fps=fps, stride_frames=stride, span_frames=span)
    seconds = [[grid.to_sec(position) for position in segment] for segment in segments.tolist()]
    return torch.tensor(seconds).reshape(-1, 2).clamp(0.0, duration_sec)


# --- optimiser steps, schedule, truncation -----------------------------------------------------


def run_train_steps(case: Case) -> None:
    """Successive steps of the trainer; the weights start as stored, N as `init_loss_norm`."""
    model = without_chance(load(case))
    tolerance = {"weights": {"atol": 1e-4}, "ema": {"atol": 2e-6, "rtol": 1e-6}}
    training = TrainingConfig(
        **optimiser(case.config["opt"]),
        clip_grad_norm=max(case.config["clip_grad_l2norm"], 0.0),
        ema_decay=case.config["ema_decay"],
    )
    per_epoch = case.config["num_iters_per_epoch"]
    trainer = Trainer(DetectorLearner(model, training, "cpu"), training, steps_per_epoch=per_epoch)
    terms = record_terms(model)
    for step in range(case.config["steps"]):
        feats = [case.tensor(f"t{step}_feats_{i}") for i in (0, 1)]
        batch, mask = padded_batch(feats, model)
        targets = read_targets(case, 2, prefix=f"t{step}_")
        values = trainer.train_step(
            Batch(["0", "1"], batch, mask, targets.segments, targets.labels)
        )
        cls_loss, reg_loss = terms.pop()
        case.check(f"t{step}_cls_loss", cls_loss, **LOSSES)
        case.check(f"t{step}_reg_loss", reg_loss, **LOSSES)
        case.check(f"t{step}_final_loss", values["loss"], **LOSSES)
        case.check(f"t{step}_loss_normalizer", model.loss_state()["loss_norm"], rtol=1e-6)
        case.check(f"t{step}_grad_norm", values["grad_norm"], rtol=1e-3)
        case.check(f"t{step}_lr", values["learning_rate"], rtol=1e-5, atol=1e-12)
        if step + 1 in case.config["snapshots"]:
            states = {"w": model.state_dict(), "ema": trainer.ema.state}
            for kind, state in states.items():
                close = tolerance["ema" if kind == "ema" else "weights"]
                check_snapshot(case, f"{kind}{step + 1}/", state, close)


def check_snapshot(
    case: Case, prefix: str, state: dict[str, Tensor], close: dict[str, float]
) -> None:
    """Every state-dict entry; tensors whose gradient is analytically zero are only noted."""
    noise = set(case.config["not_compared"])
    stored = sorted(name.removeprefix(prefix) for name in case.arrays if name.startswith(prefix))
    ours = our_names(case, stored)
    case.claim(f"{prefix}*", set(ours) == set(state))
    for name, official in zip(ours, stored, strict=True):
        if official in noise:
            case.read(prefix + official)
        elif name in state:
            case.check(prefix + official, state[name], **close)


def record_terms(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The unweighted losses of every call, newest last."""
    terms: list[tuple[Tensor, Tensor]] = []
    inner = model.loss_terms

    def loss_terms(outputs: Any, targets: Targets) -> tuple[Tensor, Tensor]:
        terms.append(inner(outputs, targets))
        return terms[-1]

    model.loss_terms = loss_terms
    return terms


def run_schedule(case: Case) -> None:
    params = case.config["params"]
    config = OptimConfig(**optimiser(params))
    steps = range(len(case.arrays["lr"]))
    rates = [learning_rate_at(step, params["num_iters_per_epoch"], config) for step in steps]
    case.check("lr", np.array(rates), rtol=1e-5, atol=1e-12)


def run_truncate(case: Case) -> None:
    """The stored draws stand in for the random ones and must all be used, within their bounds."""
    params = case.config["params"]
    draws: Iterator[Any] = iter(case.read("draws").tolist())

    def draw(low: int, high: int) -> int:
        stored_low, stored_high, value = next(draws)
        case.claim("bounds of a draw", (low, high) == (stored_low, stored_high), f"{low}, {high}")
        return int(value)

    crop = params["crop_ratio"]
    feats = case.tensor("feats")
    window = choose_window(
        feats.shape[-1],
        case.tensor("segments"),
        case.tensor("labels"),
        max_len=params["max_seq_len"],
        keep_ratio=params["trunc_thresh"],
        crop_ratio=None if crop is None else (crop[0], crop[1]),
        offset_grid=params.get("offset", 0.0),
        draw=draw,
    )
    case.claim("all draws used", next(draws, None) is None)
    stop = window.start + window.length
    case.check("out_feats", feats[:, window.start : stop], atol=1e-5)
    case.check("out_segments", window.segments, atol=1e-5)
    case.check("out_labels", window.labels)


# --- reading a case ----------------------------------------------------------------------------


def load(case: Case) -> nn.Module:
    """The detector with the stored weights, loaded strictly."""
    family = family_of(case)
    model = build(family.detector, lifted(case.config))
    load_strictly(model, family.remap(case.weights()), str(case.path))
    entries = case.config.get("state_dict_parameters", len(model.state_dict()))
    case.claim("strict load", len(model.state_dict()) == entries)
    return model


def build(
    detector: str, tables: Mapping[str, Any], also: Mapping[str, Any] | None = None
) -> nn.Module:
    """The detector of an official configuration that says everything."""
    config = model_config(detector, tables, also)
    model: nn.Module = resolve("detector", DETECTORS, detector)(
        config, decode_config(detector, tables)
    )
    return model


def our_names(case: Case, official: Iterable[Any]) -> list[str]:
    """Official names of parameters under ours, in the same order."""
    names = [str(name) for name in official]
    renamed = list(family_of(case).remap(dict.fromkeys(names, torch.empty(0))))
    case.claim("names stay apart", len(renamed) == len(names))
    return renamed


def without_chance(model: nn.Module) -> nn.Module:
    """Set every drop probability to 0; the affine scales stay."""
    for module in model.modules():
        if isinstance(module, AffineDropPath):
            module.drop_prob = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def optimiser(opt: dict[str, Any]) -> dict[str, Any]:
    """The official `opt` table in our words."""
    words = {
        "learning_rate": "learning_rate",
        "weight_decay": "weight_decay",
        "momentum": "momentum",
        "warmup_epochs": "warmup_epochs",
        "epochs": "epochs",
        "schedule_type": "schedule",
        "schedule_gamma": "gamma",
        "eta_min": "eta_min",
    }
    table = {ours: opt[theirs] for theirs, ours in words.items() if theirs in opt}
    table["optimizer"] = opt.get("type", "AdamW").lower()
    table["milestones"] = tuple(opt.get("schedule_steps", ()))
    return table


def read_targets(case: Case, count: int, prefix: str = "") -> Targets:
    return Targets(
        [case.tensor(f"{prefix}gt_segments_{i}") for i in range(count)],
        [case.tensor(f"{prefix}gt_labels_{i}") for i in range(count)],
    )


def padded_batch(feats: list[Tensor], model: nn.Module) -> tuple[Tensor, Tensor]:
    return pad(feats, model.config.window_len)


def pad(feats: list[Tensor], length_grid: int) -> tuple[Tensor, Tensor]:
    """Sequences [C, T_i] -> features [B, C, T] padded with zeros, mask [B, T]."""
    batch = torch.zeros(len(feats), feats[0].shape[0], length_grid)
    mask = torch.zeros(len(feats), length_grid, dtype=torch.bool)
    for i, x in enumerate(feats):
        batch[i, :, : x.shape[1]] = x
        mask[i, : x.shape[1]] = True
    return batch, mask
