"""Parity of both ETAD detectors, their feature resize and the EGS step; told apart by their arrays.

Proposals, IoU and offsets of the release are stored as [B * K, .], ours are [B, K, .].
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tadpipe.detectors.etad import (
    Etad,
    EtadConfig,
    EtadOutputs,
    boundary_peaks,
    candidates,
    extended_rois,
    forced_ends,
    mean_over_stages,
    refine,
    test_proposals,
)
from tadpipe.detectors.etad import remap_official_keys as remap_release
from tadpipe.detectors.etad_losses import (
    Draw,
    EtadTargets,
    StageOutputs,
    boundary_classes,
    offset_targets,
    stage_loss,
    tiou,
)
from tadpipe.detectors.etad_opentad import EtadOpenTad, plateau_peaks
from tadpipe.detectors.etad_opentad import remap_official_keys as remap_opentad
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.parts.nms import NmsConfig, batched_nms
from tadpipe.detectors.protocol import GridDetections
from tadpipe.pipeline.official_configs import model_config
from tadpipe.resample import resize_by_roi_align, roi_align
from tadpipe.sampling import cell_rows, grid_cells, proposal_cells
from tadpipe.training.checkpoint import load_strictly
from tadpipe.training.egs import EgsConfig, egs_backward
from tests.parity.case import Case

OFFSETS = {"start": "start", "end": "end", "center": "centre", "width": "width"}
EVERYTHING = DecodeConfig(pre_nms_threshold=-1.0, pre_nms_topk=10**9, min_length_grid=-np.inf)


def run(case: Case) -> None:
    if "roi_head" in case.config.get("config", {}):
        run_opentad(case)
    elif "parameters" in case.config:
        run_formula(case)
    elif "video" in case:
        run_egs(case)
    elif "cost" in case:
        run_losses(case)
    elif "v0_anchors" in case:
        run_detections(case)
    elif "in_0" in case:
        run_resize(case)
    elif "anchors_map" in case:
        run_cascade(case)
    else:
        run_base(case)


def close(case: Case) -> dict[str, float]:
    return {"rtol": case.config["rtol"], "atol": case.config["atol"]}


def release_config(case: Case) -> EtadConfig:
    """The official tables in our words; widths that a case does not state are the official ones."""
    widths = {"width": "width", "mid_dim": "mid", "fc_dim": "fc"}
    own = {ours: case.config[key] for ours, key in widths.items() if key in case.config}
    config: EtadConfig = model_config("etad", case.config["config"], own)
    return config


def release_model(case: Case) -> Etad:
    """The release's detector with the stored weights, loaded strictly, in eval mode."""
    model = Etad(release_config(case), EVERYTHING)
    load_strictly(model, remap_release(case.weights()), str(case.path))
    case.claim("strict load", True)
    return model.eval()


def full_mask(feats: Tensor) -> Tensor:
    return torch.ones(feats.shape[0], feats.shape[2], dtype=torch.bool)


def stored_noise(case: Case) -> tuple[Draw, Iterator[Any]]:
    """The stored draws in call order; each must be asked for with its own size."""
    names = iter(sorted(name for name in case.arrays if name.startswith("noise_")))

    def draw(count: int) -> Tensor:
        noise = case.tensor(next(names)).flatten()
        case.claim("size of a draw", len(noise) == count)
        return noise

    return draw, names


def check_stages(case: Case, stages: Sequence[StageOutputs]) -> None:
    for i, stage in enumerate(stages):
        case.check(f"anchors_{i}", stage.proposals, **close(case))
        case.check(f"iou_{i}", stage.iou.flatten(0, 1), **close(case))
        reg = torch.cat((stage.offsets, stage.boundary), dim=2).flatten(0, 1)
        case.check(f"reg_{i}", reg, **close(case))


# --- forward passes ----------------------------------------------------------------------------


@torch.no_grad()
def run_base(case: Case) -> None:
    """Enhanced features and boundaries; this case stores no weights of the proposal heads."""
    model = Etad(release_config(case)).eval()
    loaded = model.load_state_dict(remap_release(case.weights()), strict=False)
    heads = all(
        name.startswith("stage_pem.") and ".reduce_dim_before." not in name
        for name in loaded.missing_keys
    )
    case.claim("load but for the proposal heads", heads and not loaded.unexpected_keys)
    base, seen = model.temporal_enhance, {}
    for name in ("layer1", "layer2_f", "layer2_d", "layer2_b", "mem_f", "mem_b"):
        module = getattr(base, name)
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    feats = case.tensor("features")
    x = base(feats)
    for name in ("layer1", "layer2_f", "layer2_d", "layer2_b"):
        case.check(name, seen[name], **close(case))
    case.check("lstm_f", seen["mem_f"][0], **close(case))
    case.check("lstm_b_reversed_time", seen["mem_b"][0], **close(case))
    case.check("enhanced", x, **close(case))
    case.check("tem", model.tem(x), **close(case))
    for i, (conv, head) in enumerate(zip(model.stage_conv, model.stage_pem, strict=True)):
        feat = x + conv(x)
        case.check(f"stage_feat_{i}", feat, **close(case))
        case.check(f"stage_reduced_{i}", head.reduce_dim_before(feat), **close(case))


@torch.no_grad()
def run_cascade(case: Case) -> None:
    """All proposals through the stages, with the map, the RoIs and their features."""
    model = release_model(case)
    config, feats = model.config, case.tensor("features")
    length, durations = config.window_len, config.max_duration
    check_map(case, length, durations)
    reduced: list[Tensor] = []
    for head in model.stage_pem:
        head.reduce_dim_before.register_forward_hook(lambda _m, _i, out: reduced.append(out))
    outputs = model(feats, full_mask(feats))
    case.check("tem", outputs.boundary, **close(case))
    case.check("roi_input_0", reduced[0], **close(case))
    check_stages(case, outputs.stages)
    for i, stage in enumerate(outputs.stages):
        rois = extended_rois(stage.proposals, config.extend_ratio, length)
        flat = rois.flatten(0, 1)
        video = torch.arange(len(feats)).repeat_interleave(rois.shape[1])
        case.check(f"ext_rois_{i}", torch.cat((video[:, None], flat), 1), **close(case))
        aligned = roi_align(reduced[i], rois, config.roi_bins, shifted=False).transpose(2, 3)
        if f"roi_feat_{i}" in case:
            case.check(f"roi_feat_{i}", aligned.flatten(0, 1), **close(case))
        some = f"roi_feat_{i}_first_video_first_20"
        if some in case:
            case.check(some, aligned[0, :20], **close(case))
        case.check(f"refined_{i}", refine(stage.proposals, stage.offsets), **close(case))
    segments, iou = mean_over_stages(outputs.stages)
    case.check("final_anchors", segments, **close(case))
    case.check("final_iou", iou, **close(case))


def check_map(case: Case, length: int, durations: int) -> None:
    cells = proposal_cells(length, durations)
    anchors, valid = torch.zeros(durations, length, 2), torch.zeros(durations, length)
    anchors[cells[:, 0], cells[:, 1]] = (test_proposals(length, durations, 1.0) / length).float()
    valid[cells[:, 0], cells[:, 1]] = 1
    case.check("anchors_map", anchors, atol=1e-6)
    case.check("valid_mask", valid)
    grid = grid_cells(length, durations, case.config["dps_ratio_for_grid_mask"])
    chosen = torch.zeros(durations, length)
    chosen[grid[:, 0], grid[:, 1]] = 1
    case.check("grid_mask", chosen)
    listed = torch.equal(cell_rows(cells, length), torch.arange(len(cells)))
    case.claim("rows of cells", listed)


def formula_weight(name: str, shape: Sequence[int]) -> Tensor:
    """A tensor of a case that states how its weights are made instead of storing them."""
    modulus = np.uint64(2**32)
    seed = np.uint64(zlib.crc32(name.encode()))
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    h = (index * np.uint64(2654435761) + seed * np.uint64(40503) + np.uint64(12345)) % modulus
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(2246822519)) % modulus
    h ^= h >> np.uint64(13)
    u = 2 * (h.astype(np.float64) / 2**32 - 0.5)
    if len(shape) >= 2:
        values = u * np.sqrt(3 / np.prod(shape[1:]))
    else:
        values = 1 + 0.2 * u if name.endswith("weight") else 0.1 * u
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


@torch.no_grad()
def run_formula(case: Case) -> None:
    weights = {}
    for name, (shape, total) in case.config["parameters"].items():
        weights[name] = formula_weight(name, shape)
        sum64 = float(weights[name].double().sum())
        case.compare(f"sum of {name}", sum64, total, rtol=1e-6, atol=1e-5)
    model = Etad(release_config(case)).eval()
    load_strictly(model, remap_release(weights), str(case.path))
    count = sum(p.numel() for p in model.parameters())
    case.claim("parameters", count == case.config["n_parameters"], str(count))
    x = model.temporal_enhance(case.tensor("features"))
    case.check("tem", model.tem(x), **close(case))
    proposals = case.tensor("anchors")
    config = model.config
    ours = test_proposals(config.window_len, config.max_duration, 1.0) / config.window_len
    case.check("anchors", ours[case.tensor("proposal_index")][None], atol=1e-6)
    check_stages(case, model.cascade(x, proposals))


# --- losses ------------------------------------------------------------------------------------


def run_losses(case: Case) -> None:
    model = release_model(case)
    feats = case.tensor("features").requires_grad_()
    x = model.temporal_enhance(feats)
    proposals = case.tensor("anchors_init")
    outputs = EtadOutputs(x, model.tem(x), full_mask(feats), model.cascade(x, proposals))
    case.check("tem", outputs.boundary, **close(case))
    check_stages(case, outputs.stages)
    rows = case.tensor("gt_video_start_end_normalised").float()
    truths = [rows[rows[:, 0] == b, 1:] for b in range(len(feats))]
    targets = model.targets(outputs, truths)
    case.check("gt_start", targets.boundary[:, 0], **close(case))
    case.check("gt_end", targets.boundary[:, 1], **close(case))
    case.check("gt_bbox", targets.matched, **close(case))
    check_stage_targets(case, outputs, targets)
    draw, left = stored_noise(case)
    boundary, stages = model.loss_terms(outputs, targets, draw)
    case.claim("all draws used", next(left, None) is None)
    for side in ("start", "end"):
        case.check(f"tem_{side}", boundary[side], **close(case))
    for i, terms in enumerate(stages):
        names = {f"reg_{theirs}": ours for theirs, ours in OFFSETS.items()}
        names |= {"iou_cls": "iou_cls", "iou_reg": "iou_reg"}
        names |= {"cls_start": "start_class", "cls_end": "end_class"}
        for theirs, ours in names.items():
            case.check(f"s{i}_{theirs}", terms[ours], **close(case))
    cost = total_loss(model, boundary, stages)
    case.check("cost", cost, **close(case))
    cost.backward()
    case.check("grad_features", feats.grad, **close(case))
    check_gradients(case, model, remap_release(case.config["grad_norms"]))
    for name in case.arrays:
        if name.startswith("grad__"):
            (ours,) = remap_release({name.removeprefix("grad__"): torch.empty(0)})
            case.check(name, model.get_parameter(ours).grad, **close(case))


def check_stage_targets(case: Case, outputs: EtadOutputs, targets: EtadTargets) -> None:
    for i, stage in enumerate(outputs.stages):
        overlaps = tiou(stage.proposals, targets.matched)
        offsets = offset_targets(stage.proposals, targets.matched)
        classes = boundary_classes(stage.proposals, targets.boundary, targets.boundary.shape[2])
        case.check(f"target_s{i}_iou", overlaps.flatten(), **close(case))
        case.check(f"target_s{i}_delta", offsets.flatten(0, 1), **close(case))
        case.check(f"target_s{i}_cls", classes.flatten(0, 1), **close(case))


def total_loss(model: Etad, boundary: dict[str, Tensor], stages: list[dict[str, Tensor]]) -> Tensor:
    config = model.config
    weights = config.iou_cls_weight, config.iou_reg_weight, config.offset_weight
    per_stage = torch.stack([stage_loss(terms, *weights) for terms in stages])
    return boundary["start"] + boundary["end"] + per_stage.sum()


def check_gradients(case: Case, model: nn.Module, stored: dict[str, Any]) -> None:
    """Norms by name; a parameter that is not listed, or listed below 0, has no gradient."""
    parameters = dict(model.named_parameters())
    case.claim("names of gradients", set(stored) <= set(parameters))
    for name, parameter in parameters.items():
        norm = 0.0 if parameter.grad is None else float(parameter.grad.double().norm())
        case.compare(f"norm of gradient {name}", norm, max(stored.get(name, 0), 0), **close(case))


# --- detections --------------------------------------------------------------------------------


def run_detections(case: Case) -> None:
    """From averaged proposals to segments in seconds with the classes of the video."""
    post = case.config["config"]
    length = post["tscale"]
    nms = NmsConfig(
        method="soft",
        sigma=post["soft_nms"]["sigma"],
        iou_threshold=post["soft_nms"]["iou_threshold"],
        min_score=0.0,
        max_segments=post["soft_nms"]["max_num"],
        multiclass=False,
        vote_threshold=0.0,
        drop_last=True,
    )
    video = 0
    while f"v{video}_anchors" in case:
        v = f"v{video}_"
        boundary = torch.stack((case.tensor(f"{v}start"), case.tensor(f"{v}end")))
        peaks = forced_ends(boundary_peaks(boundary))
        case.check(f"{v}start_mask_raw", peaks[0])
        case.check(f"{v}end_mask_raw", peaks[1])
        segments = case.tensor(f"{v}anchors") * length
        scores = case.tensor(f"{v}iou").prod(1)
        dets = candidates(segments, scores, peaks, length, EVERYTHING)
        kept = case.tensor(f"{v}kept")
        by_score = kept[scores[kept].argsort(descending=True, stable=True)]
        case.claim(f"{v}kept", torch.equal(dets.segments, segments[by_score]))
        check_fused(case, v, batched_nms(dets, nms), length)
        video += 1


def check_fused(case: Case, v: str, found: GridDetections, length: int) -> None:
    post = case.config["config"]
    duration_sec = float(case.read(f"{v}duration"))
    classes = case.read(f"{v}class_scores")
    best = np.argsort(-classes, kind="stable")[: post["topk_classes"]]
    count = min(post["num_prop"], len(found.scores))
    seconds = (found.segments[:count].double() / length).clamp(0, 1) * duration_sec
    scores = found.scores[:count].double().numpy()[:, None] * classes[best]
    case.check(f"{v}det_segment", seconds.repeat_interleave(len(best), 0), **close(case))
    case.check(f"{v}det_score", scores.reshape(-1), **close(case))
    case.check(f"{v}det_label", np.tile(best, count))


def run_resize(case: Case) -> None:
    for i in range(len(case.config["lengths"])):
        ours = resize_by_roi_align(case.tensor(f"in_{i}"), case.config["tscale"])
        case.check(f"out_{i}", ours, **close(case))


# --- EGS ---------------------------------------------------------------------------------------


class ToyEncoder(nn.Module):
    """The encoder of the stored step: a strided convolution, batch norm, ReLU, a head, a mean."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, hidden, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(hidden)
        self.head = nn.Conv3d(hidden, channels, 1)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.stem(clips)))).mean((2, 3, 4))


def run_egs(case: Case) -> None:
    model = release_model(case)
    own = {
        name.removeprefix("feature_extractor."): value
        for name, value in case.weights().items()
        if name.startswith("feature_extractor.")
    }
    encoder = ToyEncoder(own["stem.weight"].shape[0], model.config.in_channels)
    load_strictly(encoder, own, str(case.path))
    clips, official = case.tensor("video"), case.config["config"]
    egs = EgsConfig(
        ratio=official["SAMPLING_RATIO"]["snippet"],
        micro_batch=official["E2E_SETTING"]["chunk_size"],
        whole_micro_batches=True,
    )
    count = clips.shape[1]
    kept = round(count * egs.effective_ratio(count))
    snippets = case.tensor("snippet_noise").argsort(1)[:, :kept]
    case.check("selected_snippets", snippets)
    proposals = case.tensor("anchors_init")
    targets = EtadTargets(
        torch.stack((case.tensor("gt_start"), case.tensor("gt_end")), 1), case.tensor("gt_bbox")
    )
    draw, left = stored_noise(case)

    def loss_of_features(feats: Tensor) -> dict[str, Tensor]:
        x = model.temporal_enhance(feats)
        outputs = EtadOutputs(x, model.tem(x), full_mask(feats), model.cascade(x, proposals))
        return {"cost": total_loss(model, *model.loss_terms(outputs, targets, draw))}

    optimizers = [
        torch.optim.AdamW(module.parameters(), lr=official["SOLVER"][rate], weight_decay=1e-4)
        for module, rate in ((model, "tal_lr"), (encoder, "backbone_lr"))
    ]
    done = egs_backward(
        encoder, clips, loss_of_features, egs, generator=torch.Generator(), snippets=snippets
    )
    case.claim("all draws used", next(left, None) is None)
    case.check("features", done.features, **close(case))
    case.check("cost", done.losses["cost"], **close(case))
    case.check("feature_grad", done.feature_grad, **close(case))
    check_gradients(case, model, remap_release(case.config["detector_grad_norms"]))
    for optimizer in optimizers:
        optimizer.step()
    for name in case.arrays:
        kind, _, parameter = name.partition("__")
        if kind not in ("grad", "after"):
            continue
        module = encoder if parameter.startswith("feature_extractor.") else model
        parameter = parameter.removeprefix("feature_extractor.").removeprefix("base_detector.")
        value = module.get_parameter(parameter)
        case.check(name, value.grad if kind == "grad" else value, **close(case))


# --- OpenTAD -----------------------------------------------------------------------------------


def run_opentad(case: Case) -> None:
    model = EtadOpenTad(
        model_config("etad-opentad", case.config["config"], {"cell_offset_grid": 0.0})
    ).eval()
    load_strictly(model, remap_opentad(case.weights()), str(case.path))
    case.claim("strict load", True)
    feats, mask = case.tensor("features"), case.tensor("masks")
    with torch.no_grad():
        outputs = model(feats, mask)
    segments, iou = mean_over_stages(outputs.stages)
    case.check("tem_sigmoid", outputs.boundary, **close(case))
    case.check("test_iou_mean", iou, **close(case))
    case.check("test_proposals_mean", segments, **close(case))
    peaks = torch.stack([plateau_peaks(boundary) for boundary in outputs.boundary])
    case.check("start_mask_raw", peaks[:, 0])
    case.check("end_mask_raw", peaks[:, 1])
    model.train()
    x = model.temporal_enhance(feats, mask[:, None].float())
    stages = model.cascade(x, case.tensor("train_proposals"))
    outputs = EtadOutputs(x, model.tem(x), mask, stages)
    targets = model.targets(outputs, [case.tensor(f"gt_{b}") for b in range(len(feats))])
    draw, left = stored_noise(case)
    boundary, terms = model.loss_terms(outputs, targets, draw)
    case.claim("all draws used", next(left, None) is None)
    config = model.config
    weights = config.iou_cls_weight, config.iou_reg_weight, config.offset_weight
    losses = [boundary["start"] + boundary["end"]]
    case.check("loss_tem", losses[0], **close(case))
    for i, (stage, weight) in enumerate(zip(terms, config.stage_weights, strict=True)):
        losses.append(weight * stage_loss(stage, *weights))
        case.check(f"loss_pem_s{i}", losses[-1], **close(case))
    cost = torch.stack(losses).sum()
    case.check("cost", cost, **close(case))
    cost.backward()
    check_gradients(case, model, remap_opentad(case.config["grad_norms"]))
