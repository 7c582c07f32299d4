"""Encoder gradient sampling: end-to-end training that back-propagates some of the snippets.

Source: ETAD (Liu et al., 2022), Sec. 3.2, in the three stages of its release: encode everything
without a graph; detector forward and backward down to the features; encode the chosen snippets
once more, in micro-batches, and pass the features' gradient on. The encoder's gradient equals that
of one pass over the chosen snippets, at the memory of one micro-batch. Where one micro-batch holds
all snippets and all get gradients, the graph of the first pass is kept instead.
Ours, not the paper's: `strategy = "gradient"`, which draws by the gradients of the second stage
and divides them by the probability of the draw, so that their mean is the full gradient.
Order: EgsConfig -> Clips -> choose_snippets, draw_by_gradient -> encode, backward_sampled ->
egs_backward.
Shapes: B videos, M snippets of each, A chosen ones, C channels, F x H x W pixels of a clip, N
clips of any videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from tadpipe.errors import ConfigError
from tadpipe.sampling import (
    FEATURE_GUIDED,
    SNIPPET_STRATEGIES,
    check_sampling,
    select_snippets,
    snippet_count,
)

STRATEGIES = (*SNIPPET_STRATEGIES, "gradient")
LossOfFeatures = Callable[[Tensor], Mapping[str, Tensor]]  # [B, C, M] -> loss terms by name
NONE = -1  # fills the list of chosen snippets of a video that has fewer than the others


@dataclass(frozen=True)
class EgsConfig:
    """Which snippets train the encoder, and how many pass through it at once."""

    ratio: float = 0.3  # share of the snippets of each video; 1 = all, the full gradient
    strategy: Literal["random", "grid", "block", "fps", "dpp", "gradient"] = "random"
    micro_batch: int = 4  # snippets of every video that pass through the encoder together
    whole_micro_batches: bool = False  # round the number of snippets up to whole micro-batches

    def __post_init__(self) -> None:
        check_sampling(self.ratio, self.strategy, STRATEGIES, "egs: ")
        if self.micro_batch < 1:
            raise ConfigError(
                "A micro-batch holds at least one snippet.", f"micro_batch = {self.micro_batch}"
            )

    def effective_ratio(self, count: int) -> float:
        """The share of `count` snippets that is chosen.

        With whole micro-batches of c it is floor(count * ratio / c + 0.99) of them, as in the
        release, but never more than there are snippets.
        """
        if not self.whole_micro_batches:
            return self.ratio
        batches = int(count * self.ratio / self.micro_batch + 0.99)
        return min(max(batches, 1) * self.micro_batch, count) / count


class Clips(Protocol):
    """The clips of a batch, made when they are asked for."""

    @property
    def mask(self) -> Tensor:
        """Which snippets there are, bool [B, M]; features of the others are 0."""

    def take(self, videos: Tensor, snippets: Tensor) -> Tensor:
        """The clips at these places, int64 [N] each -> [N, 3, F, H, W] on the encoder's device."""


class StackedClips:
    """Clips [B, M, 3, F, H, W] in one tensor."""

    def __init__(self, clips: Tensor, device: torch.device) -> None:
        self.clips = clips
        self.device = device
        self.mask = torch.ones(clips.shape[:2], dtype=torch.bool)

    def take(self, videos: Tensor, snippets: Tensor) -> Tensor:
        place = self.clips.device
        return self.clips[videos.to(place), snippets.to(place)].to(self.device)


class EgsPass(NamedTuple):
    """What one pass computed, all of it detached."""

    losses: dict[str, Tensor]
    features: Tensor  # [B, C, M]
    feature_grad: Tensor  # [B, C, M], of the scaled sum of the losses
    snippets: Tensor  # [B, A] int64, those that reached the encoder's gradient; NONE fills up


def choose_snippets(
    features: Tensor,
    config: EgsConfig,
    generator: Generator,
    mask: Tensor | None = None,
) -> Tensor:
    """Snippets of each video that get gradients, int64 [B, A], sorted.

    Args:
        features: [B, C, M].
        mask: [B, M], the first ones of each video; shorter videos keep the share of what they
            have, and NONE fills their rows up.
    Raises:
        ConfigError: "gradient", for which features alone do not do.
    """
    if config.strategy == "gradient":
        raise ConfigError(
            "Snippets are chosen by gradients only after the detector's backward pass.",
            "egs.strategy = gradient, with features known before",
            "Use another strategy, or encode all snippets.",
        )
    guided = config.strategy in FEATURE_GUIDED
    chosen = [
        select_snippets(
            count,
            config.effective_ratio(count),
            config.strategy,
            features=video.T[:count].cpu() if guided else None,
            generator=generator,
        )
        for video, count in zip(features.detach(), _counts(features, mask), strict=True)
    ]
    return nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=NONE)


def draw_by_gradient(
    feature_grad: Tensor, config: EgsConfig, generator: Generator, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Snippets with probabilities proportional to the norms of their features' gradients.

    Importance sampling: unbiased, and of independent draws the ones of least variance where all
    snippets change the encoder alike.

    Args:
        feature_grad: [B, C, M].
        mask: [B, M], the first ones of each video.
    Returns:
        int64 [B, A], sorted, NONE fills up; and the gradients [B, C, M], those of the chosen
        divided by the probability of being chosen.
    """
    scaled, chosen = feature_grad.clone(), []
    norms = feature_grad.norm(dim=1).nan_to_num(nan=0.0, posinf=1e30)  # [B, M]; float16 overflows
    for video, count in enumerate(_counts(feature_grad, mask)):
        kept = snippet_count(count, config.effective_ratio(count))
        places, chance = sample_by_size(norms[video, :count], kept, generator)
        chosen.append(places)
        scaled[video][:, places.to(scaled.device)] /= chance.to(scaled)
    return nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=NONE), scaled


@torch.no_grad()
def sample_by_size(sizes: Tensor, k: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """k items with probabilities proportional to their sizes; where that is above 1, they are sure.

    The draws are systematic (Madow 1949): one random offset, then equal steps along the sizes
    added up, so that neighbours are seldom drawn together.

    Args:
        sizes: [N] >= 0, N >= k; all 0 counts as all equal.
    Returns:
        int64 [k] sorted, and float64 [k], the probability with which each was to be drawn.
    """
    rest = sizes.double().cpu()
    rest = rest.clamp_min(float(rest.max()) * 1e-12) if rest.any() else torch.ones_like(rest)
    chance = torch.zeros_like(rest)
    sure = torch.zeros(len(rest), dtype=torch.bool)
    while not bool(sure.sum() == k):
        chance = torch.where(sure, 1.0, rest * (k - sure.sum()) / rest[~sure].sum())
        more = (chance >= 1) & ~sure
        if not more.any():
            break
        sure |= more
    open_places = (~sure).nonzero()[:, 0]
    missing = k - int(sure.sum())
    offset = torch.rand((), dtype=torch.float64, generator=generator)
    ends = chance[open_places].cumsum(0)
    drawn = torch.searchsorted(ends, offset + torch.arange(missing), right=True)
    drawn = open_places[drawn.clamp(max=max(len(open_places) - 1, 0))]
    chosen = torch.cat((sure.nonzero()[:, 0], drawn)).sort().values
    return chosen, torch.where(sure, 1.0, chance)[chosen]


def _counts(features: Tensor, mask: Tensor | None) -> list[int]:
    """Snippets of each video."""
    if mask is None:
        return [features.shape[2]] * len(features)
    counts: list[int] = mask.sum(dim=1).tolist()
    return counts


@torch.no_grad()
def encode(
    encoder: nn.Module,
    clips: Tensor | Clips,
    micro_batch: int,
    snippets: Tensor | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """Features of a batch of clips without a graph, [B, C, M] on the encoder's device.

    Args:
        clips: [B, M, 3, F, H, W], or what makes them.
        snippets: [B, A], encode these only; the others are 0, or as they are in `into`.
        into: [B, C, M], changed in place.
    """
    source = _as_clips(encoder, clips)
    wanted = source.mask
    if snippets is not None:
        wanted = torch.zeros_like(wanted)
        for row, chosen in zip(wanted, snippets.to(wanted.device), strict=True):
            row[chosen[chosen != NONE]] = True
    rows = None if into is None else into.transpose(1, 2)  # [B, M, C]
    for first in range(0, wanted.shape[1], micro_batch):
        videos, places = wanted[:, first : first + micro_batch].nonzero(as_tuple=True)  # [N] each
        if not len(videos):
            continue
        part = encoder(source.take(videos, places + first))  # [N, C]
        if rows is None:
            rows = part.new_zeros(*wanted.shape, part.shape[1])
        rows[videos.to(part.device), (places + first).to(part.device)] = part.to(rows.dtype)
    assert rows is not None, "a batch holds at least one snippet"
    return rows.transpose(1, 2)


def backward_sampled(
    encoder: nn.Module,
    clips: Tensor | Clips,
    feature_grad: Tensor,
    snippets: Tensor,
    micro_batch: int,
) -> None:
    """Add the encoder's gradient for the chosen snippets [B, A] to its parameters.

    Args:
        clips: [B, M, 3, F, H, W], or what makes them; feature_grad: [B, C, M].
    """
    source = _as_clips(encoder, clips)
    rows = feature_grad.transpose(1, 2)  # [B, M, C]
    for part in snippets.split(micro_batch, dim=1):  # [B, m]
        videos, columns = (part != NONE).nonzero(as_tuple=True)  # [N] each
        places = part[videos, columns]
        features = encoder(source.take(videos, places))  # [N, C]
        wanted = rows[videos.to(rows.device), places.to(rows.device)]
        features.backward(wanted.to(features.dtype))


def egs_backward(
    encoder: nn.Module,
    clips: Tensor | Clips,
    loss_of_features: LossOfFeatures,
    config: EgsConfig,
    *,
    generator: Generator,
    snippets: Tensor | None = None,
    known: Tensor | None = None,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> EgsPass:
    """Gradients of detector and encoder for one batch, added to what the parameters hold.

    The gradient is not divided by the ratio (but see `draw_by_gradient`). The encoder runs in eval
    mode, in both passes alike: a random layer or batch statistics would make the second features
    differ from those whose gradient is passed on. Gradients of parameters that do not train are
    not computed.

    Args:
        clips: [B, M, 3, F, H, W] on any device, or what makes them.
        loss_of_features: the detector's forward and loss, for features [B, C, M].
        snippets: [B, A] chosen beforehand; otherwise `config` chooses.
        known: [B, C, M] features of before (a feature bank); only the chosen snippets are then
            encoded, the others are taken from here.
        scale: of the loss before its backward pass, for float16.
    """
    source = _as_clips(encoder, clips)
    trains = any(parameter.requires_grad for parameter in encoder.parameters())
    kept: Tensor | None = None  # all features with their graph, where one micro-batch holds them
    with _eval_mode(encoder):
        if trains and known is None and snippets is None and _is_one_pass(config, source):
            kept = _encode_all(encoder, source)
            features = kept.detach()
        elif known is None:
            features = encode(encoder, source, config.micro_batch)
        else:
            if snippets is None:
                snippets = choose_snippets(known, config, generator, source.mask)
            features = encode(encoder, source, config.micro_batch, snippets, known.clone())
        features.requires_grad_()
        losses = dict(loss_of_features(features))
        total = torch.stack(list(losses.values())).sum()
        (total if scale is None else scale(total)).backward()
        assert features.grad is not None
        passed_on = features.grad
        if snippets is None and config.strategy == "gradient":
            snippets, passed_on = draw_by_gradient(features.grad, config, generator, source.mask)
        elif snippets is None:
            snippets = choose_snippets(features, config, generator, source.mask)
        if kept is not None:
            kept.backward(passed_on)
        elif trains:
            backward_sampled(encoder, source, passed_on, snippets, config.micro_batch)
    detached = {name: loss.detach() for name, loss in losses.items()}
    return EgsPass(detached, features.detach(), features.grad, snippets)


def _is_one_pass(config: EgsConfig, source: Clips) -> bool:
    """Whether all snippets get gradients and pass together anyway: no second pass is needed."""
    return config.ratio == 1 and source.mask.shape[1] <= config.micro_batch


def _encode_all(encoder: nn.Module, source: Clips) -> Tensor:
    """Features of all snippets with their graph, [B, C, M]."""
    videos, places = source.mask.nonzero(as_tuple=True)  # [N] each
    part = encoder(source.take(videos, places))  # [N, C]
    rows = part.new_zeros(*source.mask.shape, part.shape[1])
    index = (videos.to(part.device), places.to(part.device))
    return rows.index_put(index, part).transpose(1, 2)


def _as_clips(encoder: nn.Module, clips: Tensor | Clips) -> Clips:
    if isinstance(clips, Tensor):
        return StackedClips(clips, next(encoder.parameters()).device)
    return clips


@contextmanager
def _eval_mode(encoder: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
