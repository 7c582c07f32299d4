"""Encoder gradient sampling: end-to-end training that back-propagates some of the snippets.

Source: ETAD (Liu et al., 2022), Sec. 3.2, in the three stages of its release: encode everything
without a graph; detector forward and backward down to the features; encode the chosen snippets
once more, in micro-batches, and pass the features' gradient on. The encoder's gradient equals that
of one pass over the chosen snippets, at the memory of one micro-batch. Where one micro-batch holds
all snippets and all get gradients, the graph of the first pass is kept instead.
Ours, not the paper's: `strategy = "gradient"`, which chooses by the gradient of the second stage.
Order: EgsConfig -> Clips -> choose_snippets -> encode, backward_sampled -> egs_backward.
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
    feature_grad: Tensor | None = None,
) -> Tensor:
    """Snippets of each video that get gradients, int64 [B, A], sorted.

    Args:
        features: [B, C, M].
        mask: [B, M], the first ones of each video; shorter videos keep the share of what they
            have, and NONE fills their rows up.
        feature_grad: [B, C, M]; read by "gradient" only, which takes the snippets where its norm
            is largest.
    Raises:
        ConfigError: "gradient" before the detector's backward pass, as with features known before.
    """
    counts = [features.shape[2]] * len(features)
    if mask is not None:
        counts = mask.sum(dim=1).tolist()
    if config.strategy == "gradient":
        if feature_grad is None:
            raise ConfigError(
                "Snippets are chosen by gradients only after the detector's backward pass.",
                "egs.strategy = gradient, with features known before",
                "Use another strategy, or encode all snippets.",
            )
        chosen = [
            _strongest(grad[:, :count], config.effective_ratio(count))
            for grad, count in zip(feature_grad, counts, strict=True)
        ]
    else:
        guided = config.strategy in FEATURE_GUIDED
        chosen = [
            select_snippets(
                count,
                config.effective_ratio(count),
                config.strategy,
                features=video.T[:count].cpu() if guided else None,
                generator=generator,
            )
            for video, count in zip(features.detach(), counts, strict=True)
        ]
    return nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=NONE)


def _strongest(grad: Tensor, ratio: float) -> Tensor:
    """The snippets with the largest gradients [C, N], sorted, int64 [M]; of equals the earlier."""
    kept = snippet_count(grad.shape[1], ratio)
    order = grad.norm(dim=0).cpu().argsort(descending=True, stable=True)  # [N]
    return order[:kept].sort().values


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

    The gradient is not divided by the ratio. The encoder runs in eval mode, in both passes alike:
    a random layer or batch statistics would make the second features differ from those whose
    gradient is passed on. Gradients of parameters that do not train are not computed.

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
        if snippets is None:
            snippets = choose_snippets(features, config, generator, source.mask, features.grad)
        if kept is not None:
            kept.backward(features.grad)
        elif trains:
            backward_sampled(encoder, source, features.grad, snippets, config.micro_batch)
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
