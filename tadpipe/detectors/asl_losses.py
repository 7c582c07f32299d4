"""ASL's training: which frames matter for class and boundaries, and the losses weighted by it.

Order: AslLossConfig -> SensitivityEvaluator (Sec. 3.2, Eq. 3-5) -> match -> AslCriterion (Eq. 6-10)
-> sensitive_ranges, contrast (Sec. 3.3). The criterion works on the outputs of any anchor-free
detector together with its features. No code was published; what the paper leaves open is an option.
Shapes: B batch, D channels, L levels of T_l points, N points of all levels, K classes, P positives,
G actions of a video, M actions of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tadpipe.detectors.parts.assign import PositivePairs, assign, offsets_at
from tadpipe.detectors.parts.losses import (
    LossNormalizer,
    diou_loss,
    offset_iou,
    regression_weight,
    sigmoid_focal_loss,
    smooth_labels,
)
from tadpipe.detectors.protocol import AnchorFreeOutputs, Targets
from tadpipe.errors import ConfigError

logger = logging.getLogger(__name__)

REPORT_EVERY = 200  # training batches between two lines on the mean sensitivity
ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "half-up": lambda x: torch.floor(x + 0.5),
    "down": torch.floor,
    "up": torch.ceil,
}


@dataclass(frozen=True, kw_only=True)
class AslLossConfig:
    """Action sensitivity and the losses; where the paper is silent the default is ours."""

    centre_radius: float = 0.0  # centre sampling, in level strides; 0 = all points of an action
    loss_weight: float = 1.0  # of the regression loss; <= 0 balances it with the classification
    label_smoothing: float = 0.0  # e: class targets y become y (1 - e) + e / (K + 1)
    focal_alpha: float = 0.25  # balance of the focal loss
    focal_gamma: float = 2.0  # focus of the focal loss
    loss_norm: Literal["count", "ema"] = "count"  # divide by the positives, or by their average
    init_loss_norm: float = 100.0  # "ema": start of the average, positives per batch
    class_level: Literal["learned", "fixed", "off"] = "learned"  # the Gaussians p; off: p = 1
    position: Literal["time", "index"] = "time"  # d in Eq. 3 from times, or from ranks of frames
    eq4_literal: bool = False  # divide by 2 sigma for the boundaries, as Eq. 4 is printed
    sigma_min: float = 0.05  # sigma is kept in this range
    sigma_max: float = 5.0
    detach_p_in_weights: bool = False  # p then learns from the contrast only
    instance_level: bool = True  # the evaluators q; without them q = 0
    evaluator_kernel: int = 3  # kernel of their convolution
    evaluator_dim: int = 0  # their width; 0 = that of the features
    detach_evaluator_input: bool = False  # their loss then stays away from the features
    q_grad_in_h: bool = False  # let the weighted losses reach q, which else learns by Eq. 7 only
    quality_weight: float = 1.0  # of the evaluators' loss, Eq. 7
    contrast_weight: float = 0.3  # lambda; 0 = no contrastive loss
    contrast_ratio: float = 0.2  # delta: reach of a sensitive range, in lengths of the action
    contrast_rounding: Literal["half-up", "down", "up"] = "half-up"  # of that reach, at least 1
    contrast_temperature: float = 0.1  # tau: sim = exp(cosine / tau)
    contrast_level: Literal["finest", "assigned"] = "finest"  # whose features are contrasted
    bg_exclude_actions: bool = False  # background beside an action leaves other actions out

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min <= 1 <= self.sigma_max:
            raise ConfigError(
                "The range of sigma is positive and holds its start, 1.",
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}",
            )
        if self.evaluator_kernel % 2 == 0:
            raise ConfigError("Kernels are odd.", f"evaluator_kernel = {self.evaluator_kernel}")
        if self.contrast_temperature <= 0 or self.contrast_ratio < 0:
            raise ConfigError(
                "The contrast needs a positive temperature and a reach of 0 or more.",
                f"contrast_temperature = {self.contrast_temperature}, contrast_ratio = "
                f"{self.contrast_ratio}",
            )


class ClassSensitivity(NamedTuple):
    """Class-level sensitivity, one shape for all; p_loc = p_sot + p_eot (Eq. 4)."""

    cls: Tensor
    sot: Tensor  # start of the action
    eot: Tensor  # end of the action

    @property
    def loc(self) -> Tensor:
        return self.sot + self.eot


class FrameEvaluator(nn.Module):
    """Convolution over time, one number per frame, sigmoid (Eq. 5)."""

    def __init__(self, channels: int, width: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, kernel_size, padding=kernel_size // 2)
        self.fc = nn.Linear(width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, D, T], [B, T] -> q in (0, 1), [B, T]; padded steps count as zero features."""
        hidden = F.relu(self.conv(x * mask[:, None]))
        return self.fc(hidden.transpose(1, 2)).squeeze(2).sigmoid()


class SensitivityEvaluator(nn.Module):
    """What Sec. 3.2 learns: Gaussians per class and an evaluator per sub-task. Training only.

    Args:
        channels: D of the features the evaluators read.
    """

    def __init__(self, channels: int, num_classes: int, config: AslLossConfig) -> None:
        super().__init__()
        self.config = config
        if config.class_level != "off":
            learned = config.class_level == "learned"
            for name, centre in (("cls", 0.0), ("sot", -0.5), ("eot", 0.5)):
                mu, sigma = torch.full((num_classes,), centre), torch.ones(num_classes)
                self.register_parameter(f"mu_{name}", nn.Parameter(mu, learned))
                self.register_parameter(f"sigma_{name}", nn.Parameter(sigma, learned))
        if config.instance_level:
            width = config.evaluator_dim or channels
            self.eval_cls = FrameEvaluator(channels, width, config.evaluator_kernel)
            self.eval_loc = FrameEvaluator(channels, width, config.evaluator_kernel)

    def class_sensitivity(self, position: Tensor, labels: Tensor) -> ClassSensitivity:
        """Eq. 3-4 at normalised positions d, with the Gaussians of `labels` of the same shape."""
        if self.config.class_level == "off":
            one = torch.ones_like(position)
            return ClassSensitivity(one, one / 2, one / 2)  # p_cls = p_loc = 1
        values = []
        for name in ("cls", "sot", "eot"):
            mu = self.get_parameter(f"mu_{name}")[labels]
            sigma = self.get_parameter(f"sigma_{name}")[labels]
            sigma = sigma.clamp(self.config.sigma_min, self.config.sigma_max)
            # Eq. 4 prints 2 sigma; we read 2 sigma^2 as in Eq. 3.
            literal = self.config.eq4_literal and name != "cls"
            spread = sigma if literal else sigma**2
            values.append(torch.exp(-((position - mu) ** 2) / (2 * spread)))
        return ClassSensitivity(*values)

    def instance_sensitivity(
        self, features: list[Tensor], masks: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """q_cls and q_loc of all points, L x [B, D, T_l], L x [B, T_l] -> [B, N] each."""
        if not self.config.instance_level:
            zero = torch.zeros_like(torch.cat([x[:, 0] for x in features], dim=1))
            return zero, zero
        if self.config.detach_evaluator_input:
            features = [x.detach() for x in features]
        pairs = list(zip(features, masks, strict=True))
        return (
            torch.cat([self.eval_cls(x, mask) for x, mask in pairs], dim=1),
            torch.cat([self.eval_loc(x, mask) for x, mask in pairs], dim=1),
        )

    @torch.no_grad()
    def project(self) -> None:
        """Bring every sigma back into its range, where the clamp of the forward pass has a slope.

        The paper bounds sigma from above "to prevent very small p"; only a lower bound can.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("sigma_"):
                parameter.clamp_(self.config.sigma_min, self.config.sigma_max)


def time_position(position_grid: Tensor, segments: Tensor) -> Tensor:
    """d: place in the segment [..., 2], -0.5 at its start and 0.5 at its end."""
    start, end = segments.unbind(-1)
    return (position_grid - (start + end) / 2) / (end - start)


def index_position(rank: Tensor, count: Tensor) -> Tensor:
    """d of frame `rank` (from 0) among `count` frames; 0 for a single one."""
    return torch.where(count > 1, rank / (count - 1).clamp(min=1) - 0.5, 0.0)


class Matched(NamedTuple):
    """The positive points, and the action each answers for."""

    pairs: PositivePairs  # sequence, point and class of the action, [P] each
    instance: Tensor  # [P] row among the video's actions
    offsets: Tensor  # [P, 2] to start and end in strides of the level
    position: Tensor  # [P] d in [-0.5, 0.5]


def match(outputs: AnchorFreeOutputs, targets: Targets, config: AslLossConfig) -> Matched:
    """One action and one class per point: the shortest one, the first of equals."""
    points, mask = torch.cat(outputs.points), torch.cat(outputs.masks, dim=1)  # [N, 4], [B, N]
    classes = outputs.logits[0].shape[2]
    assigned = assign(points, targets, classes, centre_radius=config.centre_radius)
    sequence, point = torch.nonzero((assigned.instances >= 0) & mask, as_tuple=True)  # [P]
    instance = assigned.instances[sequence, point]
    counts = [len(labels) for labels in targets.labels]
    first_row = torch.tensor([0, *counts], device=point.device).cumsum(0)[sequence]
    label = torch.cat(targets.labels)[first_row + instance]
    segments = torch.cat(targets.segments)[first_row + instance]  # [P, 2]
    if config.position == "time":
        position = time_position(points[point, 0], segments).clamp(-0.5, 0.5)
    else:
        sizes = [len(level) for level in outputs.points]
        level = torch.arange(len(sizes), device=point.device).repeat_interleave(
            torch.tensor(sizes, device=point.device)
        )
        valid = torch.stack([m.sum(1) for m in outputs.masks], dim=1)  # [B, L]
        position = _rank_position(points[point], segments, valid[sequence, level[point]])
    pairs = PositivePairs(sequence, point, label)
    return Matched(pairs, instance, assigned.offsets[sequence, point], position)


def _rank_position(points: Tensor, segments: Tensor, valid: Tensor) -> Tensor:
    """Paper's d: rank of a point among the real points of its level inside the action, [P]."""
    position, stride = points[:, 0], points[:, 3]
    first = (torch.floor(segments[:, 0] / stride) + 1).clamp(min=0)
    last = torch.minimum(torch.ceil(segments[:, 1] / stride) - 1, valid - 1)
    return index_position(position / stride - first, last - first + 1)


class Sensitivity(NamedTuple):
    """At the positive points, [P] each."""

    p: ClassSensitivity
    q_cls: Tensor
    q_loc: Tensor
    quality_cls: Tensor  # what q_cls should be, Eq. 6
    quality_loc: Tensor
    h_cls: Tensor  # Eq. 8
    h_loc: Tensor


class AslCriterion:
    """The losses of one batch, for any detector with anchor-free outputs and features.

    Args:
        evaluator: registered by the detector, so that it trains along.
    """

    def __init__(self, evaluator: SensitivityEvaluator, config: AslLossConfig) -> None:
        self.evaluator = evaluator
        self.config = config
        self.normalizer = LossNormalizer(config.init_loss_norm)
        self._watched: list[Tensor] = []  # means of p and h of recent batches

    def __call__(
        self, outputs: AnchorFreeOutputs, features: list[Tensor], targets: Targets
    ) -> dict[str, Tensor]:
        """Weighted terms of Eq. 15: cls, reg, quality, contrast.

        Args:
            features: L x [B, D, T_l], the levels the heads read.
        """
        if self.evaluator.training:
            self.evaluator.project()
        config = self.config
        with torch.autocast(features[0].device.type, enabled=False):
            outputs, features = _at_least_single(outputs, features)
            matched = match(outputs, targets, config)
            sensitivity = self.sensitivity(outputs, features, matched)
            self._watch(sensitivity)
            count = float(max(len(matched.instance), 1))
            divisor = count if config.loss_norm == "count" else self.normalizer.update(int(count))
            focal, mask = self.focal(outputs, matched)
            weights = mask.to(focal.dtype).index_put(  # [B, N]; background counts once
                (matched.pairs.sequence, matched.pairs.point), sensitivity.h_cls.to(focal.dtype)
            )
            cls_loss = (weights * focal).sum() / divisor  # Eq. 9
            reg_loss = (sensitivity.h_loc * self.diou(outputs, matched)).sum() / divisor  # Eq. 10
            terms = {
                "cls": cls_loss,
                "reg": reg_loss * regression_weight(config.loss_weight, cls_loss, reg_loss),
            }
            if config.instance_level:
                terms["quality"] = config.quality_weight * quality_loss(sensitivity)
            if config.contrast_weight > 0:
                contrast_loss = self.contrastive_loss(outputs, features, targets)
                terms["contrast"] = config.contrast_weight * contrast_loss
        return terms

    def sensitivity(
        self, outputs: AnchorFreeOutputs, features: list[Tensor], matched: Matched
    ) -> Sensitivity:
        """p, q and h at the positive points, and the quality q is to learn."""
        sequence, point, label = matched.pairs
        p = self.evaluator.class_sensitivity(matched.position, label)
        q_cls, q_loc = (
            q[sequence, point] for q in self.evaluator.instance_sensitivity(features, outputs.masks)
        )
        with torch.no_grad():
            logits = torch.cat(outputs.logits, dim=1)
            offsets = offsets_at(torch.cat(outputs.offsets, dim=1), matched.pairs)
            quality_cls = logits[sequence, point, label].sigmoid()
            quality_loc = offset_iou(offsets, matched.offsets)
        detached = self.config.detach_p_in_weights
        p_cls, p_loc = (x.detach() if detached else x for x in (p.cls, p.loc))
        kept = self.config.q_grad_in_h
        h_cls, h_loc = (
            p_x + (q_x if kept else q_x.detach()) for p_x, q_x in ((p_cls, q_cls), (p_loc, q_loc))
        )
        return Sensitivity(p, q_cls, q_loc, quality_cls, quality_loc, h_cls, h_loc)

    def focal(self, outputs: AnchorFreeOutputs, matched: Matched) -> tuple[Tensor, Tensor]:
        """Focal loss of every point, summed over the classes, and the mask, [B, N] each."""
        logits, mask = torch.cat(outputs.logits, dim=1), torch.cat(outputs.masks, dim=1)
        wanted = torch.zeros_like(logits).index_put(
            (matched.pairs.sequence, matched.pairs.point, matched.pairs.label),
            torch.ones((), dtype=logits.dtype, device=logits.device),
        )
        wanted = smooth_labels(wanted, self.config.label_smoothing)
        focal = sigmoid_focal_loss(
            logits, wanted, alpha=self.config.focal_alpha, gamma=self.config.focal_gamma
        )
        return focal.sum(-1), mask

    def diou(self, outputs: AnchorFreeOutputs, matched: Matched) -> Tensor:
        """1 - DIoU of the positive points, [P]."""
        offsets = offsets_at(torch.cat(outputs.offsets, dim=1), matched.pairs)
        return diou_loss(offsets, matched.offsets)

    def contrastive_loss(
        self, outputs: AnchorFreeOutputs, features: list[Tensor], targets: Targets
    ) -> Tensor:
        """Mean of Eq. 14 over all anchors of the batch; 0 without any action."""
        vectors = self.instance_vectors(outputs, features, targets)
        if not len(vectors.labels):
            return torch.zeros_like(vectors.actions.sum())
        return contrast(vectors, self.config.contrast_temperature).mean()

    def instance_vectors(
        self, outputs: AnchorFreeOutputs, features: list[Tensor], targets: Targets
    ) -> InstanceVectors:
        """Features of all actions and of what lies beside them (Eq. 12-13)."""
        actions, labels = [features[0].new_zeros(0, features[0].shape[1])], [targets.labels[0][:0]]
        background = [actions[0]]
        for b, (segments, classes) in enumerate(zip(targets.segments, targets.labels, strict=True)):
            level_of = self._level_of(outputs.points, segments)  # [G]
            for level in level_of.unique().tolist():
                rows = torch.nonzero(level_of == level).squeeze(1)
                ranges = sensitive_ranges(
                    self.evaluator,
                    outputs.points[level],
                    outputs.masks[level][b],
                    segments,
                    classes,
                    rows,
                )
                f = features[level][b].T  # [T_l, D]
                pair = (_mean(ranges.cls * ranges.p.cls, ranges.cls, f),
                        _mean(ranges.loc * ranges.p.loc, ranges.loc, f))  # fmt: skip
                actions.append(torch.stack(pair, dim=1).flatten(0, 1))  # [2 G, D], cls before loc
                labels.append(classes[ranges.rows].repeat_interleave(2))
                beside = ranges.background[ranges.background.any(1)]
                background.append(_mean(beside.to(f.dtype), beside, f))
        return InstanceVectors(torch.cat(actions), torch.cat(labels), torch.cat(background))

    def _level_of(self, points: list[Tensor], segments: Tensor) -> Tensor:
        """The level whose features describe each action, [G]."""
        if self.config.contrast_level == "finest" or not len(segments):
            return torch.zeros(len(segments), dtype=torch.int64, device=segments.device)
        # The level that answers for the action's centre: half the length lies in its range.
        half = (segments[:, 1] - segments[:, 0])[:, None] / 2  # [G, 1]
        ranges = torch.stack([level[0, 1:3] for level in points])  # [L, 2]
        return ((half >= ranges[:, 0]) & (half <= ranges[:, 1])).to(torch.uint8).argmax(1)

    def _watch(self, sensitivity: Sensitivity) -> None:
        """Log now and then how large p and h are: the losses they weigh could shrink them."""
        if not self.evaluator.training or not len(sensitivity.h_cls):
            return
        p, h = sensitivity.p, sensitivity
        means = torch.stack([x.detach().mean() for x in (p.cls, p.loc, h.h_cls, h.h_loc)])
        self._watched.append(means)
        if len(self._watched) == REPORT_EVERY:
            values = torch.stack(self._watched).mean(0).tolist()
            logger.info("mean sensitivity: p_cls %.3f, p_loc %.3f, h_cls %.3f, h_loc %.3f", *values)
            self._watched.clear()


def quality_loss(sensitivity: Sensitivity) -> Tensor:
    """Eq. 7 for both evaluators, a mean over the positive points each; 0 without any."""
    count = max(len(sensitivity.q_cls), 1)
    cls_gap = sensitivity.q_cls - sensitivity.quality_cls
    loc_gap = sensitivity.q_loc - sensitivity.quality_loc
    return (cls_gap.square().sum() + loc_gap.square().sum()) / count


class InstanceVectors(NamedTuple):
    """What is contrasted."""

    actions: Tensor  # [2 M, D] f_cls and f_loc of each action in turn
    labels: Tensor  # [2 M]
    background: Tensor  # [<= M, D] actions without any frame beside them have none


class SensitiveRanges(NamedTuple):
    """Frames of one level around the actions of one video that have any, [G, T] each."""

    rows: Tensor  # [G] which of the video's actions these are
    p: ClassSensitivity
    inside: Tensor  # bool
    reach: Tensor  # [G] r, frames
    peaks: Tensor  # [G, 3] frames with the largest p_cls, p_sot, p_eot (Eq. 11)
    cls: Tensor  # bool T_cls
    loc: Tensor  # bool T_loc
    background: Tensor  # bool


def sensitive_ranges(
    evaluator: SensitivityEvaluator,
    points: Tensor,
    mask: Tensor,
    segments: Tensor,
    labels: Tensor,
    rows: Tensor,
) -> SensitiveRanges:
    """Where the class and the boundaries of each action show, and what lies beside it.

    Args:
        points: [T, 4] of one level; mask: [T]; segments, labels: all actions of the video.
        rows: which of them are wanted.
    """
    config = evaluator.config
    t = points[:, 0]  # [T]
    all_inside = (t > segments[:, :1]) & (t < segments[:, 1:]) & mask  # [all G, T]
    rows = rows[all_inside[rows].any(1)]
    inside = all_inside[rows]  # [G, T]
    frame = torch.arange(len(t), device=t.device)
    count = inside.sum(1, keepdim=True)  # N_f, [G, 1]
    first = inside.to(torch.uint8).argmax(1, keepdim=True)  # the frames inside are consecutive
    last = first + count - 1
    if config.position == "time":
        position = time_position(t, segments[rows, None]).clamp(-0.5, 0.5)
    else:
        position = index_position((frame - first).to(t.dtype), count)
    p = evaluator.class_sensitivity(position, labels[rows, None].expand_as(position))
    # Without Gaussians the ranges lie around the centre.
    guides = (-position.abs(),) * 3 if config.class_level == "off" else p
    peaks = torch.cat([_peak(guide, inside) for guide in guides], dim=1)  # [G, 3]
    length = config.contrast_ratio * count.double()
    reach = ROUNDING[config.contrast_rounding](length).clamp(min=1).to(frame.dtype)  # r, [G, 1]
    near = (frame - peaks[..., None]).abs() <= reach[..., None]  # [G, 3, T]
    beside = (frame >= first - reach) & (frame <= last + reach) & ~inside & mask
    if config.bg_exclude_actions:
        beside &= ~all_inside.any(0)
    return SensitiveRanges(
        rows=rows,
        p=p,
        inside=inside,
        reach=reach.flatten(),
        peaks=peaks,
        cls=near[:, 0] & inside,
        loc=near[:, 1:].any(1) & inside,
        background=beside,
    )


def contrast(vectors: InstanceVectors, temperature: float) -> Tensor:
    """Eq. 14 of every anchor, [2 M]; sim = exp(cosine / temperature), as a log-sum-exp.

    Positives are all others of the class, the sibling of the same action included.
    """
    anchors = F.normalize(vectors.actions, dim=1)
    others = torch.cat((anchors, F.normalize(vectors.background, dim=1)))
    logits = anchors @ others.T / temperature  # [2 M, 2 M + backgrounds]
    itself = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    same = F.pad(vectors.labels[:, None] == vectors.labels, (0, len(vectors.background)))
    every = logits.masked_fill(itself, -torch.inf).logsumexp(1)
    return every - logits.masked_fill(itself | ~same, -torch.inf).logsumexp(1)


def _peak(sensitivity: Tensor, inside: Tensor) -> Tensor:
    """First frame with the largest value inside each action, [G, 1]."""
    return sensitivity.detach().masked_fill(~inside, -torch.inf).argmax(1, keepdim=True)


def _mean(weights: Tensor, frames: Tensor, features: Tensor) -> Tensor:
    """Weighted sums over frames [G, T] of [T, D], over the number of frames: [G, D]."""
    return weights.to(features.dtype) @ features / frames.sum(1, keepdim=True)


def _at_least_single(
    outputs: AnchorFreeOutputs, features: list[Tensor]
) -> tuple[AnchorFreeOutputs, list[Tensor]]:
    """Out of half precision, which is too coarse for the losses."""

    def lift(levels: list[Tensor]) -> list[Tensor]:
        return [x if x.dtype == torch.float64 else x.float() for x in levels]

    lifted = outputs._replace(logits=lift(outputs.logits), offsets=lift(outputs.offsets))
    return lifted, lift(features)
