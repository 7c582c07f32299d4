"""A detector small enough to train in milliseconds, and data for it; dropout draws random numbers.

Shapes: B batch, C channels, T window length, G ground-truth actions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tadpipe.annotations import Action, Video
from tadpipe.datasets.loader import WindowLoader
from tadpipe.datasets.sources import FeatureSource
from tadpipe.datasets.windows import TrainingWindows, WindowConfig
from tadpipe.detectors.protocol import Targets
from tests.unit.datasets.in_memory import MemoryTable

WINDOW_LEN = 16


class ToyDetector(nn.Module):
    """Predicts per row whether an action is under way."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 1)
        self.normaliser = 10.0

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.conv(feats).transpose(1, 2)).relu()  # [B, T, 8]
        return self.head(self.dropout(hidden)).squeeze(-1), mask  # [B, T]

    def loss(self, outputs: tuple[Tensor, Tensor], targets: Targets) -> dict[str, Tensor]:
        logits, mask = outputs
        steps = torch.arange(logits.shape[1])
        wanted = torch.stack(
            [
                ((steps >= s[:, :1]) & (steps <= s[:, 1:])).any(0)
                if len(s)
                else torch.zeros_like(steps, dtype=torch.bool)
                for s in targets.segments
            ]
        )
        self.normaliser = 0.9 * self.normaliser + 0.1 * max(int(wanted.sum()), 1)
        terms = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), wanted.float(), reduction="none"
        )
        return {
            "cls": (terms * mask).sum() / self.normaliser,
            "size": 1e-3 * logits.float().square().mean(),
        }

    def loss_state(self) -> dict[str, float]:
        return {"normaliser": self.normaliser}

    def load_loss_state(self, state: dict[str, float]) -> None:
        self.normaliser = state["normaliser"]


def toy_model(seed: int = 0) -> ToyDetector:
    torch.manual_seed(seed)
    return ToyDetector()


def toy_loader(videos: int = 6, seed: int = 0) -> WindowLoader:
    """Six videos: two batches of two per epoch are left after one is dropped in three."""
    rng = np.random.default_rng(5)
    names = [f"v{i}" for i in range(videos)]
    table = MemoryTable(
        {name: rng.normal(size=(12 + i, 4)).astype(np.float32) for i, name in enumerate(names)}
    )
    annotated = {name: Video(name, "training", actions=(Action(0.5, 1.2, "a"),)) for name in names}
    windows = TrainingWindows(
        FeatureSource([table]), annotated, {"a": 0}, WindowConfig(), WINDOW_LEN
    )
    return WindowLoader(windows, 2, seed=seed)
