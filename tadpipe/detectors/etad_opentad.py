"""ETAD as re-implemented in OpenTAD: no convolution per stage, one trunk, shifted RoI align, masks.

Source: ETAD (Liu et al., 2022) and the OpenTAD release. What both versions share is imported from
`etad.py`; here are the proposal head, the masks, the unit of proposals and the boundary loss.
Shapes: B batch, C channels, W hidden width, T grid length, D longest duration, K proposals, R RoI
bins, G ground truths. Proposals are in snippets, 0..T.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tadpipe.detectors.etad import (
    CONV_GROUPS,
    NORM_GROUPS,
    EtadOutputs,
    Strategy,
    TemporalEnhancement,
    boundary_head,
    candidates,
    check_class_agnostic,
    check_dps,
    check_length,
    extended_rois,
    fc_layers,
    forced_ends,
    initialise,
    linear_on_bins,
    mean_over_stages,
    refine,
    test_proposals,
    train_proposals,
)
from tadpipe.detectors.etad_losses import (
    EPS,
    Draw,
    EtadTargets,
    StageOutputs,
    balanced_loss,
    boundary_targets,
    matched_truths,
    stage_loss,
    stage_terms,
    tiou,
    uniform_draw,
)
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.protocol import GridDetections, Targets
from tadpipe.errors import ConfigError
from tadpipe.resample import roi_align
from tadpipe.sampling import check_sampling


@dataclass(frozen=True)
class EtadOpenTadConfig:
    """Model, sampling and losses; the defaults are OpenTAD's for ActivityNet."""

    in_channels: int  # C of the features
    num_classes: int  # 1: labels come from scores of the whole video
    window_len: int = 128  # T, snippets of every sequence
    max_duration: int = 128  # D, snippets of the longest proposal
    width: int = 256  # W
    trunk_dim: int = 512  # layer on the RoI features that all heads share
    fc_dim: int = 128  # further layers of the heads
    fc_layers: int = 3  # of each head, before its last one
    roi_bins: int = 16  # R over the extended proposal
    extend_ratio: float = 0.5  # context on each side, in lengths of the proposal
    stage_tious: tuple[float, ...] = (0.7, 0.8, 0.9)  # regression trains above it, per stage
    stage_weights: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the stages' losses
    positive_tiou: float = 0.9  # positives of the IoU classification
    positive_snippet: float = 0.5  # startness from which a snippet is a start
    iou_cls_weight: float = 1.0
    iou_reg_weight: float = 5.0
    offset_weight: float = 10.0  # of start, end, centre and width together
    cell_offset_grid: float = 0.5  # snippet 0 begins this far before grid position 0
    dps_ratio: float = 0.06  # share of the proposals that a training step sees
    dps_strategy: Strategy = "random"
    dps_at_test: float = 1.0  # share scored at test; below 1 the grid pattern

    def __post_init__(self) -> None:
        check_class_agnostic(self.num_classes)
        check_dps(self.window_len, self.max_duration, self.dps_ratio, self.dps_strategy)
        check_sampling(self.dps_at_test, "grid", ("grid",), "dps_at_test: ")
        if self.width % (2 * NORM_GROUPS) or self.in_channels % CONV_GROUPS:
            raise ConfigError(
                f"The width is a multiple of {2 * NORM_GROUPS}, the channels of {CONV_GROUPS}.",
                f"width = {self.width}, in_channels = {self.in_channels}",
            )
        if not self.stage_tious or len(self.stage_tious) != len(self.stage_weights):
            raise ConfigError(
                "Each stage needs a tIoU and a weight.",
                f"stage_tious = {self.stage_tious}, stage_weights = {self.stage_weights}",
            )


class SharedTrunkHead(nn.Module):
    """Scores and refines proposals from one layer on all RoI features."""

    def __init__(self, config: EtadOpenTadConfig) -> None:
        super().__init__()
        self.bins, self.extend_ratio = config.roi_bins, config.extend_ratio
        dims = (config.trunk_dim, *(config.fc_dim,) * config.fc_layers)
        self.trunk = nn.Linear(config.width * config.roi_bins, config.trunk_dim)
        self.iou_head = fc_layers(*dims, 2)
        self.se_head = fc_layers(*dims, 2)
        self.reg_head = fc_layers(*dims, 4)

    def forward(self, x: Tensor, proposals: Tensor) -> StageOutputs:
        """x [B, W, T], proposals [B, K, 2] in snippets."""
        roi = roi_align(x, extended_rois(proposals, self.extend_ratio), self.bins, shifted=True)
        trunk = F.relu(linear_on_bins(self.trunk, roi.flatten(0, 1)))  # [N, trunk]
        per_proposal = (
            self.iou_head(trunk).sigmoid(),
            self.reg_head(trunk),
            self.se_head(trunk).sigmoid(),
        )
        return StageOutputs(
            proposals, *(value.float().view(*proposals.shape[:2], -1) for value in per_proposal)
        )


class EtadOpenTad(nn.Module):
    """Two-stage detector without classes: every proposal of a map is scored and refined."""

    Config: ClassVar[type] = EtadOpenTadConfig

    def __init__(self, config: EtadOpenTadConfig, decode: DecodeConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.decode_config = decode or DecodeConfig()
        self.temporal_enhance = TemporalEnhancement(config.in_channels, config.width)
        self.tem = boundary_head(config.width)
        self.stages = nn.ModuleList(SharedTrunkHead(config) for _ in config.stage_tious)
        initialise(self)

    def forward(
        self, feats: Tensor, mask: Tensor, *, generator: Generator | None = None
    ) -> EtadOutputs:
        """feats [B, C, T], mask [B, T]; only the convolutions of the enhancement are masked.

        In training mode DPS chooses proposals with `generator`; sampling by tIoU waits for `loss`.
        """
        check_length(feats, self.config.window_len)
        x = self.temporal_enhance(feats, mask[:, None].to(feats.dtype))  # [B, W, T]
        outputs = EtadOutputs(x, self.tem(x).float(), mask, [])
        config = self.config
        if not self.training:
            proposals = test_proposals(x.shape[2], config.max_duration, config.dps_at_test)
            proposals = proposals.to(x.device, torch.float32).expand(len(x), -1, -1)
            return outputs._replace(stages=self.cascade(x, proposals))
        if config.dps_strategy == "iou-balanced":
            return outputs
        return self._sampled(outputs, generator)

    def cascade(self, x: Tensor, proposals: Tensor) -> list[StageOutputs]:
        """Run proposals [B, K, 2] in snippets through all stages on x [B, W, T]."""
        stages = []
        for head in self.stages:
            stages.append(head(x, proposals))
            proposals = refine(proposals, stages[-1].offsets.detach())
        return stages

    def loss(
        self, outputs: EtadOutputs, targets: Targets, *, generator: Generator | None = None
    ) -> dict[str, Tensor]:
        """Boundary loss and one loss per stage; negatives are drawn with `generator`."""
        truths = [segments + self.config.cell_offset_grid for segments in targets.segments]
        if not outputs.stages:
            outputs = self._sampled(outputs, generator, truths)
        wanted = self.targets(outputs, truths)
        draw = uniform_draw(generator, outputs.boundary.device)
        boundary, stages = self.loss_terms(outputs, wanted, draw)
        config = self.config
        weights = config.iou_cls_weight, config.iou_reg_weight, config.offset_weight
        losses = {
            f"stage_{i}": weight * stage_loss(terms, *weights)
            for i, (terms, weight) in enumerate(zip(stages, config.stage_weights, strict=True))
        }
        return {"boundary": boundary["start"] + boundary["end"], **losses}

    def targets(self, outputs: EtadOutputs, truths: Sequence[Tensor]) -> EtadTargets:
        """Targets for B x [G, 2] ground truth in snippets."""
        length = outputs.boundary.shape[2]
        matched = [
            matched_truths(tiou(p[:, None], g[None], least=EPS), g)
            for p, g in zip(outputs.stages[0].proposals, truths, strict=True)
        ]
        boundary = [boundary_targets(g, length, 1) for g in truths]
        return EtadTargets(torch.stack(boundary), torch.stack(matched))

    def loss_terms(
        self, outputs: EtadOutputs, targets: EtadTargets, draw: Draw
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Terms of the boundary head and of every stage, without weights."""
        config, boundary = self.config, {}
        for side, name in enumerate(("start", "end")):
            positive = targets.boundary[:, side] > config.positive_snippet  # [B, T]
            errors = _cross_entropy(outputs.boundary[:, side], positive)
            boundary[name] = balanced_loss(errors, positive)
        stages = [
            stage_terms(
                stage,
                targets,
                tiou(stage.proposals, targets.matched, least=EPS),
                per_unit=1,
                stage_tiou=threshold,
                positive_tiou=config.positive_tiou,
                draw=draw,
            )
            for stage, threshold in zip(outputs.stages, config.stage_tious, strict=True)
        ]
        return boundary, stages

    @torch.no_grad()
    def decode(self, outputs: EtadOutputs) -> list[GridDetections]:
        """Candidates of each sequence before NMS, all with label 0."""
        found = []
        refined, iou = mean_over_stages(outputs.stages)
        for segments, ious, boundary, mask in zip(
            refined, iou, outputs.boundary, outputs.mask, strict=True
        ):
            peaks = forced_ends(plateau_peaks(boundary))
            real_len = int(mask.sum())
            dets = candidates(segments, ious.prod(1), peaks, real_len, self.decode_config)
            segments = dets.segments - self.config.cell_offset_grid
            found.append(dets._replace(segments=segments))
        return found

    def padded_len(self, length_grid: int) -> int:
        """Always a whole window: norms, LSTMs and the proposal map run over the padded axis."""
        return self.config.window_len

    def max_len(self) -> int:
        """The longest sequence that is taken in one piece: a window."""
        return self.config.window_len

    def loss_state(self) -> dict[str, float]:
        """The losses keep nothing between steps."""
        return {}

    def load_loss_state(self, state: dict[str, float]) -> None:
        """Take back what `loss_state` gave: nothing."""

    def _sampled(
        self, outputs: EtadOutputs, generator: Generator | None, truths: list[Tensor] | None = None
    ) -> EtadOutputs:
        """The outputs with the stages for sampled proposals."""
        config, x = self.config, outputs.features
        proposals = train_proposals(
            x, config.max_duration, config.dps_ratio, config.dps_strategy, generator, truths
        )
        return outputs._replace(stages=self.cascade(x, proposals))


def plateau_peaks(p: Tensor) -> Tensor:
    """Snippets [2, T] above half the maximum or equal to the maximum of their neighbourhood."""
    return (F.max_pool1d(p, 3, stride=1, padding=1) == p) | (p > 0.5 * p.amax(-1, keepdim=True))


def _cross_entropy(p: Tensor, positive: Tensor) -> Tensor:
    """Plain binary cross entropy with logarithms held at -100; autocast has no such kernel."""
    with torch.autocast(p.device.type, enabled=False):
        return F.binary_cross_entropy(p.float(), positive.float(), reduction="none")


# Official name -> ours, as patterns; every key matches exactly one.
RENAMES = (
    (r"projection\.convs\.0\.conv\.", "temporal_enhance.layer1.0."),
    (r"projection\.convs\.0\.norm\.", "temporal_enhance.layer1.1."),
    (r"neck\.(mem_[fb])\.", r"temporal_enhance.\1."),
    (r"neck\.(layer\w+)\.conv\.", r"temporal_enhance.\1.0."),
    (r"neck\.(layer\w+)\.norm\.", r"temporal_enhance.\1.1."),
    (r"rpn_head\.tem\.0\.conv\.", "tem.0."),
    (r"rpn_head\.tem\.1\.conv\.", "tem.2."),
    (r"roi_head\.proposal_heads\.(\d+)\.shared_conv_fc\.fcs\.0\.0\.", r"stages.\1.trunk."),
)
HEAD_LAYER = re.compile(
    r"roi_head\.proposal_heads\.(\d+)\.(iou|se|reg)_head\.(?:fcs\.(\d+)\.0|head)\.(\w+)"
)


def remap_official_keys(checkpoint: Mapping[str, Any], *, ema: bool = True) -> dict[str, Tensor]:
    """Weights of an OpenTAD checkpoint under our names; the values are not touched.

    Args:
        checkpoint: with `state_dict_ema` or `state_dict`, or a bare state dict.
        ema: take the averaged weights where there are some.
    """
    wanted = "state_dict_ema" if ema else "state_dict"
    state = checkpoint.get(wanted, checkpoint.get("state_dict", checkpoint))
    names = {name: name.removeprefix("module.") for name in state}
    # The last layer of a head follows its numbered ones.
    numbers = [int(m[3]) for m in map(HEAD_LAYER.fullmatch, names.values()) if m and m[3]]
    last = max(numbers, default=-1) + 1
    return {_our_name(names[name], last): value for name, value in state.items()}


def _our_name(name: str, last_layer: int) -> str:
    match = HEAD_LAYER.fullmatch(name)
    if match is not None:
        stage, head, number, kind = match.groups()
        layer = last_layer if number is None else int(number)
        return f"stages.{stage}.{head}_head.{2 * layer}.{kind}"
    for pattern, ours in RENAMES:
        if re.match(pattern, name):
            return re.sub(pattern, ours, name)
    return name  # unknown: strict loading names it
