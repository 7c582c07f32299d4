"""What an end-to-end run did, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tadpipe.pipeline.evaluate import Evaluation


@dataclass(frozen=True)
class E2EResult:
    """What an end-to-end run did."""

    run: Path
    detector: str
    preset: str
    backbone: str
    tune: str
    adapter: str
    egs: float
    representation: str
    trained_parameters: Mapping[str, int]  # detector, adapter, backbone
    videos: int  # trained on
    epochs: int
    steps: int  # in all; with dry_run, those it would take
    without_files: tuple[str, ...]  # annotated videos of the subsets used
    dry_run: bool = False
    failed: tuple[str, ...] = ()  # videos that turned out unusable
    seconds: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict)  # means over the last epoch
    evaluation: Evaluation | None = None  # of the averaged weights on the test subset

    @property
    def exit_code(self) -> int:
        return 3 if self.failed else 0

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        mapping = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mapping |= {
            "run": str(self.run),
            "trained_parameters": dict(self.trained_parameters),
            "without_files": list(self.without_files),
            "failed": list(self.failed),
            "losses": dict(self.losses),
            "evaluation": None if self.evaluation is None else self.evaluation.to_mapping(),
        }
        return mapping

    def text(self) -> str:
        """The score, what was left out, and one summary line."""
        lines = [] if self.evaluation is None else [self.evaluation.text()]
        for names, what in (
            (self.without_files, "annotated videos have no file"),
            (self.failed, "videos could not be used"),
        ):
            if names:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                lines.append(f"{len(names)} {what}: {shown}")
        sizes = ", ".join(f"{name} {count:,}" for name, count in self.trained_parameters.items())
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        lines.append(
            f"{'would train' if self.dry_run else 'trained'} {self.detector} and {self.backbone} "
            f"({self.representation}s, tune {self.tune}, adapter {self.adapter}, gradients of "
            f"{self.egs:.0%} of the clips; parameters: {sizes}; preset {self.preset}) on "
            f"{self.videos} videos, {self.epochs} epochs, {self.steps} steps"
            + (f", last epoch {losses}" if losses else "")
            + (f", {self.seconds:.0f} s" if not self.dry_run else "")
            + f" -> {self.run}"
        )
        return "\n".join(lines)
