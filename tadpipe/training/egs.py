"""Encoder gradient sampling: end-to-end training that back-propagates some of the snippets.

Source: ETAD (Liu et al., 2022), Sec. 3.2, in the three stages of its release: encode everything
without a graph; detector forward and backward down to the features; encode the chosen snippets
once more, in micro-batches, and pass the features' gradient on. The encoder's gradient equals that
of one pass over the chosen snippets, at the memory of one micro-batch.
Order: EgsConfig -> choose_snippets -> encode, backward_sampled -> egs_backward.
Shapes: B videos, M snippets of each, A chosen ones, C channels, F x H x W pixels of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from tadpipe.errors import ConfigError
from tadpipe.sampling import FEATURE_GUIDED, SNIPPET_STRATEGIES, check_sampling, select_snippets

LossOfFeatures = Callable[[Tensor], Mapping[str, Tensor]]  # [B, C, M] -> loss terms by name


@dataclass(frozen=True)
class EgsConfig:
    """Which snippets train the encoder, and how many pass through it at once."""

    ratio: float = 0.3  # share of the snippets of each video; 1 = all, the full gradient
    strategy: Literal["random", "grid", "block", "fps", "dpp"] = "random"
    micro_batch: int = 4  # snippets of every video that pass through the encoder together
    whole_micro_batches: bool = False  # round the number of snippets up to whole micro-batches

    def __post_init__(self) -> None:
        check_sampling(self.ratio, self.strategy, SNIPPET_STRATEGIES, "egs: ")
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


class EgsPass(NamedTuple):
    """What one pass computed, all of it detached."""

    losses: dict[str, Tensor]
    features: Tensor  # [B, C, M]
    feature_grad: Tensor  # [B, C, M], of the sum of the losses
    snippets: Tensor  # [B, A] int64, those that reached the encoder's gradient


def choose_snippets(features: Tensor, config: EgsConfig, generator: Generator) -> Tensor:
    """Snippets of each video that get gradients, int64 [B, A], sorted; features [B, C, M]."""
    count = features.shape[2]
    guided = config.strategy in FEATURE_GUIDED
    chosen = [
        select_snippets(
            count,
            config.effective_ratio(count),
            config.strategy,
            features=video.T.cpu() if guided else None,
            generator=generator,
        )
        for video in features.detach()
    ]
    return torch.stack(chosen)


@torch.no_grad()
def encode(encoder: nn.Module, clips: Tensor, micro_batch: int) -> Tensor:
    """Features of clips [B, M, 3, F, H, W] without a graph, [B, C, M] on the encoder's device."""
    device = next(encoder.parameters()).device
    parts = [
        encoder(part.flatten(0, 1).to(device)).view(*part.shape[:2], -1)  # [B, m, C]
        for part in clips.split(micro_batch, dim=1)
    ]
    return torch.cat(parts, dim=1).transpose(1, 2)


def backward_sampled(
    encoder: nn.Module, clips: Tensor, feature_grad: Tensor, snippets: Tensor, micro_batch: int
) -> None:
    """Add the encoder's gradient for the chosen snippets [B, A] to its parameters.

    Args:
        clips: [B, M, 3, F, H, W]; feature_grad: [B, C, M].
    """
    device = next(encoder.parameters()).device
    videos = torch.arange(len(clips))[:, None]  # [B, 1]
    rows = feature_grad.transpose(1, 2)  # [B, M, C]
    for part in snippets.split(micro_batch, dim=1):  # [B, m]
        index = part.to(clips.device)
        features = encoder(clips[videos.to(clips.device), index].flatten(0, 1).to(device))
        wanted = rows[videos.to(rows.device), part.to(rows.device)].flatten(0, 1)
        features.backward(wanted.to(features.dtype))


def egs_backward(
    encoder: nn.Module,
    clips: Tensor,
    loss_of_features: LossOfFeatures,
    config: EgsConfig,
    *,
    generator: Generator,
    snippets: Tensor | None = None,
) -> EgsPass:
    """Gradients of detector and encoder for one batch, added to what the parameters hold.

    The gradient is not divided by the ratio. The encoder runs in eval mode, in both passes alike:
    a random layer or batch statistics would make the second features differ from those whose
    gradient is passed on. Gradients of parameters that do not train are not computed.

    Args:
        clips: [B, M, 3, F, H, W] on any device; micro-batches move to the encoder's.
        loss_of_features: the detector's forward and loss, for features [B, C, M].
        snippets: [B, A] chosen beforehand; otherwise `config` chooses.
    """
    with _eval_mode(encoder):
        features = encode(encoder, clips, config.micro_batch).requires_grad_()
        losses = dict(loss_of_features(features))
        torch.stack(list(losses.values())).sum().backward()
        assert features.grad is not None
        if snippets is None:
            snippets = choose_snippets(features, config, generator)
        backward_sampled(encoder, clips, features.grad, snippets, config.micro_batch)
    detached = {name: loss.detach() for name, loss in losses.items()}
    return EgsPass(detached, features.detach(), features.grad, snippets)


@contextmanager
def _eval_mode(encoder: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
