"""What every detector offers, and the types that pass between detectors and their callers.

Shapes: B batch, C channels, T grid length, L levels, T_l length of level l, K classes, G ground
truths, N candidates. All positions are in steps of the feature grid; seconds come after NMS.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor


class Targets(NamedTuple):
    """Ground truth of a batch, one entry per sequence."""

    segments: list[Tensor]  # B x [G, 2] float32, start and end on the grid
    labels: list[Tensor]  # B x [G] int64


class GridDetections(NamedTuple):
    """Candidates of one sequence before NMS, or what NMS kept."""

    segments: Tensor  # [N, 2] start and end on the grid
    scores: Tensor  # [N]
    labels: Tensor  # [N] int64


class AnchorFreeOutputs(NamedTuple):
    """What one-stage detectors predict; the type that criteria read."""

    masks: list[Tensor]  # L x [B, T_l] bool
    points: list[Tensor]  # L x [T_l, 4]: position, range low, range high, level stride
    logits: list[Tensor]  # L x [B, T_l, K]
    offsets: list[Tensor]  # L x [B, T_l, 1 or K, 2], >= 0, in strides of the level


class Detector(Protocol):
    """A detector: feature windows in, losses or candidates out. It is also an nn.Module.

    No I/O, no device calls, no printing. The constructor takes its own config dataclass
    (`Config`, frozen; with `in_channels`, `num_classes` and `window_len` among its fields) and a
    `parts.decode.DecodeConfig`.
    """

    Config: ClassVar[type]
    config: Any

    def forward(self, feats: Tensor, mask: Tensor) -> Any:
        """feats [B, C, T] zero-padded, mask [B, T] bool (true = real row) -> outputs."""

    def loss(self, outputs: Any, targets: Targets) -> dict[str, Tensor]:
        """Loss terms by name, already weighted: their sum is minimised."""

    def decode(self, outputs: Any) -> list[GridDetections]:
        """Candidates of each sequence of the batch, before NMS."""

    def padded_len(self, length_grid: int) -> int:
        """Length an inference sequence is padded to; training pads to `config.window_len`."""

    def max_len(self) -> int:
        """The longest sequence that is taken in one piece; a longer one is cut into windows."""

    def loss_state(self) -> dict[str, float]:
        """State that trains but is no weight (the loss normaliser), for `state.pt`."""

    def load_loss_state(self, state: dict[str, float]) -> None:
        """Take back what `loss_state` gave."""
