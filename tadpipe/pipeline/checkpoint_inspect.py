"""What a checkpoint is, without running anything in it: `tadpipe checkpoint inspect`.

Detector or backbone, by names and shapes; the layout of its keys; what is saved beside the weights;
and of a detector what its shapes tell and which presets have the same ones.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tadpipe.backbones.loading import FORMAT
from tadpipe.backbones.recognise import Recognised, backbones_like
from tadpipe.detectors import DETECTORS
from tadpipe.pipeline.checkpoint_files import SavedWeights, read_weights
from tadpipe.pipeline.checkpoint_fit import comparable
from tadpipe.pipeline.checkpoint_shapes import ANY_OF_MANY, detectors_like, told_by_shapes
from tadpipe.pipeline.names import names_of
from tadpipe.pipeline.presets import load_preset
from tadpipe.pipeline.recipe import MODEL_FILE, PLAIN_FILE, RECIPE_FILE, load_recipe
from tadpipe.registry import resolve
from tadpipe.training.loop import STATE_FILE

RUN_FILES = (MODEL_FILE, PLAIN_FILE, STATE_FILE)
SHOWN_FIELDS = 4  # on a line of text


@dataclass(frozen=True)
class Inspection:
    """What is known of a checkpoint."""

    file: str
    sha256: str
    size_bytes: int
    kind: str  # "detector", "backbone" or "unknown"
    families: tuple[str, ...]  # detectors or backbones it can be of, most likely first
    layout: str  # of the keys: "official", "huggingface", ..., "tadpipe"
    weights: Mapping[str, str]  # "ema", "plain" -> key in the file, "" = the top
    epoch: int | None
    beside: tuple[str, ...]  # other entries of the file
    entries: int
    parameters: int  # numbers in all entries, buffers too
    dtypes: Mapping[str, int]  # -> entries
    shapes: Mapping[str, Any]  # of a detector: fields of its Config that the shapes tell
    levels: int | None
    presets: tuple[str, ...]  # with the same shapes
    encoder_entries: int  # of an end-to-end detector, under another prefix
    first_keys: tuple[str, ...]

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready."""
        mapping = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in mapping.items()}

    def text(self) -> str:
        """One fact a line."""
        names = " or ".join(self.families)
        lines = [
            f"{self.file}: {self.kind}{f' {names}' if names else ''}, {self.layout} layout",
            f"  {self.entries} entries, {self.parameters:,} numbers, "
            + ", ".join(f"{count} x {dtype}" for dtype, count in self.dtypes.items())
            + f", {self.size_bytes:,} bytes, SHA-256 {self.sha256[:16]}...",
            "  weights: "
            + ", ".join(f"{kind} ({key or 'top'})" for kind, key in self.weights.items())
            + ("" if self.epoch is None else f"; epoch {self.epoch}"),
        ]
        if self.beside:
            lines.append(f"  beside them: {', '.join(self.beside)}")
        if self.encoder_entries:
            lines.append(f"  {self.encoder_entries} entries are of an encoder, which is left out")
        if self.levels is not None:
            lines.append(f"  {self.levels} levels")
        facts = [f"{field} = {value}" for field, value in self.shapes.items()]
        for start in range(0, len(facts), SHOWN_FIELDS):
            lines.append(f"  {', '.join(facts[start : start + SHOWN_FIELDS])}")
        if self.kind == "detector" and self.layout == "official":
            lines.append(f"  presets of these shapes: {', '.join(self.presets) or 'none'}")
        if self.kind == "unknown":
            lines.append(f"  first keys: {', '.join(self.first_keys)}")
        return "\n".join(lines)


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Say what a file of weights is.

    Raises:
        CheckpointError: unreadable, asking for more than tensors, or without weights.
    """
    saved = read_weights(Path(path))
    state = saved.best
    own = _own(saved)
    detectors = [own] if own in DETECTORS else detectors_like(state)
    official = own is None
    backbones = [] if detectors else _backbones(saved, own)
    shapes: dict[str, Any] = {}
    presets: list[str] = []
    if detectors and official:
        presets = [name for each in detectors for name in presets_like(each, state)]
        told = told_by_shapes(detectors[0], state, {})
        shapes = {field: value for field, value in told.items() if field not in ANY_OF_MANY}
    kind = "detector" if detectors else "backbone" if backbones else "unknown"
    layouts = {each.layout for each in backbones}
    if detectors:
        layouts = {"official" if official and detectors != ["asl"] else "tadpipe"}
    return Inspection(
        file=str(path),
        sha256=saved.sha256,
        size_bytes=saved.path.stat().st_size,
        kind=kind,
        families=tuple(detectors or [each.name for each in backbones]),
        layout=layouts.pop() if layouts else "unknown",
        weights={str(kind): place for kind, place in saved.places.items()},
        epoch=saved.epoch,
        beside=tuple(saved.others),
        entries=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())),
        shapes=shapes,
        levels=None if "branch_layers" not in shapes else shapes["branch_layers"] + 1,
        presets=tuple(presets),
        encoder_entries=sum(name.startswith("feature_extractor.") for name in state),
        first_keys=tuple(list(state)[:4]),
    )


def presets_like(detector: str, state: Mapping[str, Tensor]) -> list[str]:
    """Presets whose model has exactly these shapes."""
    cls = resolve("detector", DETECTORS, detector).Config
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    found = []
    for name in names_of("presets"):
        if not name.startswith(f"{detector}/"):
            continue
        preset = load_preset(name)
        shaped = told_by_shapes(detector, state, preset.model)
        channels, classes = shaped.pop("in_channels", None), shaped.pop("num_classes", None)
        width = sum(channels) if isinstance(channels, tuple) else channels
        is_agnostic = not preset.windows.class_agnostic or classes == 1
        same = all(
            comparable(preset.model.get(field, defaults[field])) == comparable(value)
            for field, value in shaped.items()
        )
        if same and is_agnostic and preset.features.channels in (None, width):
            found.append(name)
    return found


def _own(saved: SavedWeights) -> str | None:
    """The detector or backbone that tadpipe itself wrote this file of; None for others."""
    if saved.metadata.get("format") == FORMAT:
        return saved.metadata.get("backbone")
    folder = saved.path.parent
    if saved.path.name in RUN_FILES and (folder / RECIPE_FILE).is_file():
        return load_recipe(folder).detector
    return None


def _backbones(saved: SavedWeights, own: str | None) -> list[Recognised]:
    return [Recognised(own, "tadpipe")] if own else backbones_like(saved.best)
