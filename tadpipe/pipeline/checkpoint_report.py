"""What an import of a checkpoint did, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tadpipe.pipeline.checkpoint_fit import Fit
from tadpipe.pipeline.evaluate import Evaluation


@dataclass(frozen=True)
class ImportResult:
    """What was imported, and from where each setting came."""

    run: Path
    file: str
    detector: str
    preset: str
    weights: str  # which ones model.safetensors holds: ema or plain
    epoch: int | None
    parameters: int
    labels: tuple[str, ...]
    features: tuple[str, ...]
    fit: Fit
    config: str | None  # the official configuration
    unread: tuple[str, ...] = ()  # of it
    fresh: tuple[str, ...] = ()  # weights the file lacks and only training needs
    dry_run: bool = False
    without_features: tuple[str, ...] = ()  # of the test subset
    evaluation: Evaluation | None = None

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "run": str(self.run),
            "file": self.file,
            "detector": self.detector,
            "preset": self.preset,
            "weights": self.weights,
            "epoch": self.epoch,
            "parameters": self.parameters,
            "labels": list(self.labels),
            "features": list(self.features),
            "by_shapes": list(self.fit.by_shapes),
            "config": self.config,
            "by_config": list(self.fit.by_config),
            "unread": list(self.unread),
            "other_than_preset": list(self.fit.overruled),
            "fresh": list(self.fresh),
            "dry_run": self.dry_run,
            "without_features": list(self.without_features),
            "evaluation": None if self.evaluation is None else self.evaluation.to_mapping(),
        }

    def text(self) -> str:
        """The score if asked for, where settings came from, and one summary line."""
        lines = [] if self.evaluation is None else [self.evaluation.text()]
        if self.without_features:
            shown = ", ".join(self.without_features[:5])
            lines.append(f"{len(self.without_features)} videos have no features: {shown}")
        lines += [f"other than the preset: {line}" for line in self.fit.overruled]
        if self.unread:
            lines.append(f"not used of {self.config}: {', '.join(self.unread)}")
        if self.fresh:
            lines.append(f"not in the file, needed in training only: {len(self.fresh)} tensors")
        sources = [f"{len(self.fit.by_shapes)} settings by shapes"]
        if self.config:
            sources.append(f"{len(self.fit.by_config)} by {self.config}")
        epoch = "" if self.epoch is None else f", epoch {self.epoch}"
        lines.append(
            f"{'would import' if self.dry_run else 'imported'} {self.file} as {self.detector} "
            f"({self.parameters:,} parameters, {self.weights} weights{epoch}; "
            f"{', '.join(sources)}, the rest by preset {self.preset}), "
            f"{len(self.labels)} labels -> {self.run}"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class BackboneImport:
    """A backbone's weights in our own format."""

    file: str
    backbone: str
    layout: str  # of the file's keys
    parameters: int
    out: Path
    dry_run: bool = False

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "file": self.file,
            "backbone": self.backbone,
            "layout": self.layout,
            "parameters": self.parameters,
            "out": str(self.out),
            "dry_run": self.dry_run,
        }

    def text(self) -> str:
        """One summary line."""
        return (
            f"{'would import' if self.dry_run else 'imported'} {self.file} ({self.layout} layout) "
            f"as {self.backbone} ({self.parameters:,} parameters) -> {self.out}"
        )
