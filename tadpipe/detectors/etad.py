"""ETAD: A Sampling-Based Approach for Efficient Temporal Action Detection (Liu et al., 2022).

Order: EtadConfig -> TemporalEnhancement (App. A.1) -> boundary head -> proposal map and sampling
(Sec. 3.3) -> RoI align, ProposalHead, refine (App. A.2) -> candidates (App. B) -> Etad, with the
losses of App. A.3 from `etad_losses.py` -> remap_official_keys. Where paper and release differ
(RoI bins, a convolution per stage, shared trunk, loss weights, score) this is the release;
docs/detectors/etad.md lists all of it.
Shapes: B batch, C channels, W hidden width, T grid length, D longest duration, K proposals, R RoI
bins, G ground truths, N = B * K. Proposals are shares of the sequence, 0..1; on the feature grid
row i is the middle of the cell [i / T, (i + 1) / T].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tadpipe.detectors.etad_losses import (
    EPS,
    POSITIVE_SNIPPET,
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
from tadpipe.detectors.parts.decode import DecodeConfig, drop_short, top_candidates
from tadpipe.detectors.protocol import GridDetections, Targets
from tadpipe.errors import ConfigError
from tadpipe.resample import roi_align
from tadpipe.sampling import (
    FEATURE_GUIDED,
    PROPOSAL_STRATEGIES,
    cell_segments,
    check_sampling,
    grid_cells,
    proposal_cells,
    select_proposals,
)

NORM_GROUPS = 16  # of every group norm
CONV_GROUPS = 4  # of most convolutions

Strategy = Literal["random", "grid", "block", "fps", "dpp", "iou-balanced", "scale-balanced"]


@dataclass(frozen=True)
class EtadConfig:
    """ETAD's model, sampling and losses; the defaults are those of the release."""

    in_channels: int  # C of the features
    num_classes: int  # 1: labels come from scores of the whole video
    window_len: int = 128  # T, snippets of every sequence
    max_duration: int = 128  # D, snippets of the longest proposal
    width: int = 256  # W
    mid_dim: int = 512  # first layers on RoI features
    fc_dim: int = 128  # further layers of the heads
    roi_bins: int = 24  # R over the extended proposal; the outer quarters are start and end
    extend_ratio: float = 0.5  # context on each side, in lengths of the proposal
    stage_tious: tuple[float, ...] = (0.7, 0.8, 0.9)  # regression trains above it, per stage
    positive_tiou: float = 0.9  # positives of the IoU classification
    iou_cls_weight: float = 1.0
    iou_reg_weight: float = 5.0
    offset_weight: float = 10.0  # of start, end, centre and width together
    dps_ratio: float = 0.06  # share of the proposals that a training step sees
    dps_strategy: Strategy = "random"
    dps_at_test: float = 1.0  # share scored at test; below 1 the grid pattern (Table 9)
    score: Literal["release", "paper"] = "release"  # both IoU outputs; "paper": and boundaries

    def __post_init__(self) -> None:
        check_class_agnostic(self.num_classes)
        check_dps(self.window_len, self.max_duration, self.dps_ratio, self.dps_strategy)
        check_sampling(self.dps_at_test, "grid", ("grid",), "dps_at_test: ")
        if self.width % (2 * NORM_GROUPS) or self.in_channels % CONV_GROUPS:
            raise ConfigError(
                f"The width is a multiple of {2 * NORM_GROUPS}, the channels of {CONV_GROUPS}.",
                f"width = {self.width}, in_channels = {self.in_channels}",
            )
        if self.roi_bins % 4 or self.roi_bins < 4:
            raise ConfigError("roi_bins is a multiple of 4.", f"roi_bins = {self.roi_bins}")
        if not self.stage_tious:
            raise ConfigError("At least one stage is needed.", "stage_tious = []")


def check_class_agnostic(num_classes: int) -> None:
    """Raise a ConfigError unless all labels are one."""
    if num_classes != 1:
        raise ConfigError(
            "ETAD is class-agnostic: it knows one class.",
            f"num_classes = {num_classes}",
            "Set windows.class_agnostic=true and give class scores of the videos.",
        )


def check_dps(length: int, max_duration: int, ratio: float, strategy: str) -> None:
    """Raise a ConfigError for a map or a sampling that cannot be."""
    check_sampling(ratio, strategy, PROPOSAL_STRATEGIES, "dps_ratio, dps_strategy: ")
    if not 1 <= max_duration <= length:
        raise ConfigError(
            "The longest proposal has between one snippet and the whole window.",
            f"max_duration = {max_duration}, window_len = {length}",
        )


class EtadOutputs(NamedTuple):
    """Enhanced features, snippet boundaries and the stages of the cascade."""

    features: Tensor  # [B, W, T]
    boundary: Tensor  # [B, 2, T] start and end probability of each snippet
    mask: Tensor  # [B, T] bool
    stages: list[StageOutputs]  # empty while proposals wait for the ground truth (see Etad.loss)


# --- feature enhancement (App. A.1) and boundary head (Sec. 3.1) -------------------------------


class ConvNorm(nn.Sequential):
    """Grouped convolution, group norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        conv = nn.Conv1d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=CONV_GROUPS,
            bias=False,
        )
        super().__init__(conv, nn.GroupNorm(NORM_GROUPS, out_channels), nn.ReLU())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, C, T] -> [B, C', T]; a mask [B, 1, T] acts before the norm and at the end."""
        conv, norm, act = self
        if mask is None:
            return act(norm(conv(x)))
        return act(norm(conv(x) * mask)) * mask


class TemporalEnhancement(nn.Module):
    """A forward and a backward LSTM beside a residual branch (Fig. 5)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.layer1 = ConvNorm(in_channels, width, 3)
        self.mem_f = nn.LSTM(width, width)
        self.mem_b = nn.LSTM(width, width)
        self.layer2_f = ConvNorm(width, width // 2, 3)
        self.layer2_b = ConvNorm(width, width // 2, 3)
        self.layer2_d = ConvNorm(width, width, 3)
        self.layer3 = ConvNorm(2 * width, width, 1)

    def forward(self, feats: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, C, T] -> [B, W, T]; the mask [B, 1, T] reaches the convolutions, not the LSTMs."""
        x = self.layer1(feats, mask)  # [B, W, T]
        steps = x.permute(2, 0, 1)  # [T, B, W]
        ahead = self.mem_f(steps)[0].permute(1, 2, 0)  # [B, W, T]
        back = self.mem_b(steps.flip(0))[0].flip(0).permute(1, 2, 0)
        branches = (
            self.layer2_f(ahead, mask),  # [B, W / 2, T]
            self.layer2_d(x, mask),  # [B, W, T]
            self.layer2_b(back, mask),  # [B, W / 2, T]
        )
        # layer3 has groups, so the order of the branches is part of the model.
        return self.layer3(torch.cat(branches, dim=1), mask)


def boundary_head(width: int) -> nn.Sequential:
    """[B, W, T] -> start and end probability of each snippet, [B, 2, T]."""
    return nn.Sequential(
        nn.Conv1d(width, width, 3, padding=1, groups=CONV_GROUPS),
        nn.ReLU(),
        nn.Conv1d(width, 2, 1),
        nn.Sigmoid(),
    )


# --- proposal map and sampling (Sec. 3.3) ------------------------------------------------------


def train_proposals(
    x: Tensor,
    max_duration: int,
    ratio: float,
    strategy: str,
    generator: Generator | None,
    truths: Sequence[Tensor] | None = None,
) -> Tensor:
    """Proposals of a training step in snippets, [B, K, 2]; each sequence draws its own (DPS).

    Args:
        x: [B, W, T]; guides the feature-guided strategies by its mean inside each proposal.
        truths: B x [G, 2] ground truth in snippets, for the strategy that balances tIoU.
    """
    length = x.shape[2]
    segments = cell_segments(proposal_cells(length, max_duration))  # [all, 2]
    chosen = []
    for b, sequence in enumerate(x.detach()):
        guided = strategy in FEATURE_GUIDED
        rows = select_proposals(
            length,
            max_duration,
            ratio,
            strategy,
            features=_mean_inside(sequence.cpu(), segments) if guided else None,
            truths=None if truths is None else truths[b],
            generator=generator or torch.default_generator,
        )
        chosen.append(segments[rows])
    return torch.stack(chosen).to(x.device, torch.float32)


def test_proposals(length: int, max_duration: int, ratio: float) -> Tensor:
    """Proposals scored at test in snippets, float64 [K, 2]: all, or the grid pattern."""
    if ratio < 1:
        return cell_segments(grid_cells(length, max_duration, ratio))
    return cell_segments(proposal_cells(length, max_duration))


def _mean_inside(x: Tensor, segments: Tensor) -> Tensor:
    """Mean of x [W, T] over whole-snippet segments [M, 2] -> [M, W]."""
    sums = F.pad(x.double().cumsum(1), (1, 0)).T  # [T + 1, W]
    start, end = segments.long().unbind(1)
    return (sums[end] - sums[start]) / (end - start)[:, None]


# --- proposal evaluation (App. A.2) ------------------------------------------------------------


def extended_rois(proposals: Tensor, extend_ratio: float, length: int = 1) -> Tensor:
    """Proposals with context on both sides, in snippets when `length` turns shares into them."""
    start, end = (proposals * length).unbind(-1)
    context = (end - start) * extend_ratio
    return torch.stack((start - context, end + context), dim=-1)


def fc_layers(*dims: int) -> nn.Sequential:
    """Linear layers of these dimensions with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(dims):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def linear_on_bins(layer: nn.Linear, bins: Tensor) -> Tensor:
    """A layer whose weight counts channel * bins + bin, on RoI bins [N, R', C] -> [N, out].

    The weight is brought into the order of the bins, not the other way round: it is the smaller
    one, and a run of bins stays a view of the whole RoI.
    """
    _, count, channels = bins.shape
    weight = layer.weight.view(-1, channels, count).transpose(1, 2).flatten(1)
    return F.linear(bins.flatten(1), weight, layer.bias)


class ProposalHead(nn.Module):
    """Scores and refines proposals from their RoI features (Table 6, as in the release)."""

    def __init__(self, width: int, mid: int, fc: int, bins: int, extend_ratio: float) -> None:
        super().__init__()
        self.bins, self.extend_ratio = bins, extend_ratio
        roi = width // 2
        self.reduce_dim_before = nn.Sequential(nn.Conv1d(width, roi, 3, padding=1), nn.ReLU())
        self.reduce_dim_ext = nn.Sequential(nn.Linear(roi * bins, mid), nn.ReLU())
        self.iou_fc = fc_layers(mid, fc, fc, fc, 2)
        self.cls_se_fc = fc_layers(mid, fc, fc, fc, 2)
        self.reg_cw_fc = fc_layers(mid, fc, fc, fc, 2)
        self.reg_s_fc = fc_layers(roi * bins // 4, mid, fc, fc, fc, 1)
        self.reg_e_fc = fc_layers(roi * bins // 4, mid, fc, fc, fc, 1)

    def forward(self, x: Tensor, proposals: Tensor) -> StageOutputs:
        """x [B, W, T], proposals [B, K, 2] in 0..1."""
        rois = extended_rois(proposals, self.extend_ratio, x.shape[2])  # snippets
        roi = roi_align(self.reduce_dim_before(x), rois, self.bins, shifted=False)
        bins = roi.flatten(0, 1)  # [N, R, W / 2]
        side = self.bins // 4
        trunk = F.relu(linear_on_bins(self.reduce_dim_ext[0], bins))  # type: ignore[arg-type]  # a Linear
        start = self.reg_s_fc[1:](linear_on_bins(self.reg_s_fc[0], bins[:, :side]))  # type: ignore[arg-type]
        end = self.reg_e_fc[1:](linear_on_bins(self.reg_e_fc[0], bins[:, -side:]))  # type: ignore[arg-type]
        centre_width = self.reg_cw_fc(trunk) / 2
        per_proposal = (
            self.iou_fc(trunk).sigmoid(),
            torch.cat((start, end, centre_width), dim=1),
            self.cls_se_fc(trunk).sigmoid(),
        )
        return StageOutputs(
            proposals, *(value.float().view(*proposals.shape[:2], -1) for value in per_proposal)
        )


def refine(proposals: Tensor, offsets: Tensor) -> Tensor:
    """Mean of moving both boundaries and of moving centre and width, [..., 2] and [..., 4].

    Neither clamped to the sequence nor put in order.
    """
    start, end = proposals.unbind(-1)
    d_start, d_end, d_centre, d_width = offsets.unbind(-1)
    length, centre = end - start, (start + end) / 2
    length_a = length + length * (d_end - d_start)
    centre_a = centre + length * (d_start + d_end) / 2
    length_b = length * d_width.exp()
    centre_b = centre + d_centre * length
    left = (centre_a - length_a / 2 + centre_b - length_b / 2) / 2
    right = (centre_a + length_a / 2 + centre_b + length_b / 2) / 2
    return torch.stack((left, right), dim=-1)


# --- from stages to candidates -----------------------------------------------------------------


def mean_over_stages(stages: Sequence[StageOutputs]) -> tuple[Tensor, Tensor]:
    """Mean refined proposals [B, K, 2] and mean IoU outputs [B, K, 2]."""
    refined = torch.stack([refine(stage.proposals, stage.offsets) for stage in stages])
    return refined.mean(0), torch.stack([stage.iou for stage in stages]).mean(0)


def boundary_peaks(p: Tensor) -> Tensor:
    """Snippets [..., T] above half the maximum or strictly above both neighbours."""
    padded = F.pad(p, (1, 1))
    peak = (p > padded[..., :-2]) & (p > padded[..., 2:])
    return peak | (p > 0.5 * p.amax(-1, keepdim=True))


def forced_ends(peaks: Tensor) -> Tensor:
    """Peaks [2, T] with the first snippet as a start and the last one as an end."""
    forced = peaks.clone()
    forced[0, 0] = forced[1, -1] = True
    return forced


def at_boundaries(segments: Tensor, values: Tensor) -> Tensor:
    """Values [2, T] at start and end of segments in snippets, [K, 2] -> [K, 2]."""
    index = segments.long().clamp(0, values.shape[1] - 1)  # truncated
    return torch.stack((values[0, index[:, 0]], values[1, index[:, 1]]), dim=1)


def candidates(
    segments: Tensor, scores: Tensor, peaks: Tensor, real_len: int, config: DecodeConfig
) -> GridDetections:
    """Proposals of one sequence that start and end at peaks, by falling score.

    Args:
        segments: [K, 2] in snippets; scores: [K]; peaks: [2, T] with `forced_ends`.
        real_len: snippets that are not padding; proposals that start behind them are dropped.
    """
    keep = at_boundaries(segments, peaks).all(1) & (segments[:, 0] < real_len)
    segments, scores = segments[keep], scores[keep]
    rows, labels, scores = top_candidates(scores[:, None], config)
    return drop_short(GridDetections(segments[rows], scores, labels), config)


# --- the detector ------------------------------------------------------------------------------


class Etad(nn.Module):
    """Two-stage detector without classes: every proposal of a map is scored and refined."""

    Config: ClassVar[type] = EtadConfig

    def __init__(self, config: EtadConfig, decode: DecodeConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.decode_config = decode or DecodeConfig()
        width, stages = config.width, range(len(config.stage_tious))
        self.temporal_enhance = TemporalEnhancement(config.in_channels, width)
        self.tem = boundary_head(width)
        self.stage_conv = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, width, 3, padding=1, groups=CONV_GROUPS), nn.ReLU())
            for _ in stages
        )
        self.stage_pem = nn.ModuleList(
            ProposalHead(width, config.mid_dim, config.fc_dim, config.roi_bins, config.extend_ratio)
            for _ in stages
        )
        initialise(self)

    def forward(
        self, feats: Tensor, mask: Tensor, *, generator: Generator | None = None
    ) -> EtadOutputs:
        """feats [B, C, T], mask [B, T]; padded steps are features like any other (no mask).

        In training mode DPS chooses proposals with `generator`; sampling by tIoU waits for `loss`.
        """
        check_length(feats, self.config.window_len)
        x = self.temporal_enhance(feats)  # [B, W, T]
        outputs = EtadOutputs(x, self.tem(x).float(), mask, [])
        config, length = self.config, x.shape[2]
        if not self.training:
            proposals = test_proposals(length, config.max_duration, config.dps_at_test) / length
            proposals = proposals.to(x.device, torch.float32).expand(len(x), -1, -1)
            return outputs._replace(stages=self.cascade(x, proposals))
        if config.dps_strategy == "iou-balanced":
            return outputs
        return self._sampled(outputs, generator)

    def cascade(self, x: Tensor, proposals: Tensor) -> list[StageOutputs]:
        """Run proposals [B, K, 2] in 0..1 through all stages on x [B, W, T]."""
        stages = []
        for conv, head in zip(self.stage_conv, self.stage_pem, strict=True):
            stages.append(head(x + conv(x), proposals))  # residual: release only
            # Proposals are data for the next stage, no gradient goes through them.
            proposals = refine(proposals, stages[-1].offsets.detach())
        return stages

    def loss(
        self, outputs: EtadOutputs, targets: Targets, *, generator: Generator | None = None
    ) -> dict[str, Tensor]:
        """Boundary loss and one loss per stage (Eq. 1); negatives are drawn with `generator`."""
        length = outputs.boundary.shape[2]
        cells = [segments + 0.5 for segments in targets.segments]  # B x [G, 2] in snippets
        if not outputs.stages:
            outputs = self._sampled(outputs, generator, cells)
        wanted = self.targets(outputs, [(x / length).clamp(0, 1) for x in cells])
        draw = uniform_draw(generator, outputs.boundary.device)
        boundary, stages = self.loss_terms(outputs, wanted, draw)
        config = self.config
        weights = config.iou_cls_weight, config.iou_reg_weight, config.offset_weight
        losses = {f"stage_{i}": stage_loss(t, *weights) for i, t in enumerate(stages)}
        return {"boundary": boundary["start"] + boundary["end"], **losses}

    def targets(self, outputs: EtadOutputs, truths: Sequence[Tensor]) -> EtadTargets:
        """Targets for B x [G, 2] ground truth in 0..1."""
        length = outputs.boundary.shape[2]
        first = outputs.stages[0].proposals
        matched = [
            matched_truths(tiou(p[:, None], g[None], add=EPS), g)
            for p, g in zip(first, truths, strict=True)
        ]
        boundary = [boundary_targets(g, length, length) for g in truths]
        return EtadTargets(torch.stack(boundary), torch.stack(matched))

    def loss_terms(
        self, outputs: EtadOutputs, targets: EtadTargets, draw: Draw
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Terms of the boundary head and of every stage, without weights."""
        config, boundary = self.config, {}
        for side, name in enumerate(("start", "end")):
            positive = targets.boundary[:, side] > POSITIVE_SNIPPET  # [B, T]
            p = outputs.boundary[:, side]
            errors = -(torch.where(positive, p, 1 - p) + EPS).log()
            boundary[name] = balanced_loss(errors, positive)
        stages = [
            stage_terms(
                stage,
                targets,
                tiou(stage.proposals, targets.matched),
                per_unit=p.shape[1],
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
        length = outputs.boundary.shape[2]
        found = []
        refined, iou = mean_over_stages(outputs.stages)
        for segments, ious, boundary, mask in zip(
            refined * length, iou, outputs.boundary, outputs.mask, strict=True
        ):
            scores = ious.prod(1)
            if self.config.score == "paper":
                scores = scores * at_boundaries(segments, boundary).prod(1)
            peaks = forced_ends(boundary_peaks(boundary))
            dets = candidates(segments, scores, peaks, int(mask.sum()), self.decode_config)
            found.append(dets._replace(segments=dets.segments - 0.5))
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
        return outputs._replace(stages=self.cascade(x, proposals / x.shape[2]))


def check_length(feats: Tensor, window_len: int) -> None:
    """Raise a ConfigError for a sequence that is not exactly one window."""
    if feats.shape[2] != window_len:
        raise ConfigError(
            "ETAD takes sequences of exactly one window.",
            f"{feats.shape[2]} grid steps, window_len = {window_len}",
            "Pad or resize them to detector.padded_len(length).",
        )


def initialise(model: nn.Module) -> None:
    """Xavier weights and zero biases of convolutions and linear layers, as in the release."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def remap_official_keys(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of an official checkpoint under our names; the values are not touched.

    Unwraps `state_dict`, the data-parallel prefix and the detector's own. End-to-end checkpoints
    also hold the encoder (`feature_extractor.`), which is no part of the detector.
    """
    state = checkpoint.get("state_dict", checkpoint)
    names = {name.removeprefix("module."): value for name, value in state.items()}
    return {
        name.removeprefix("base_detector."): value
        for name, value in names.items()
        if not name.startswith("feature_extractor.")
    }
