"""Recipe: what a trained detector expects and does, kept as `recipe.json` in its run folder.

It names the features it was trained on down to their `fid`, the labels in order, the model, and
the post-processing; with `model.safetensors` it is all that detection needs. Features that differ
in anything that moves the numbers are refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tadpipe.class_scores import ClassFusionConfig
from tadpipe.config import build, to_mapping
from tadpipe.datasets.windows import WindowConfig
from tadpipe.detectors import DETECTORS
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.parts.nms import NmsConfig
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.pipeline.presets import FeaturesConfig, fitting_presets
from tadpipe.registry import resolve
from tadpipe.store.metadata import FeatureSpec
from tadpipe.training.checkpoint import load_strictly, load_weights

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
MODEL_FILE = "model.safetensors"  # averaged (EMA) weights, what detection uses
PLAIN_FILE = "model_plain.safetensors"  # weights of the last step, for comparison
ANY_LABEL = "action"  # the one label of a class-agnostic detector

# Settings that change a feature by rounding only; a difference is said and accepted.
ROUNDING = {"computed in", "batch", "stored as", "truncated files"}

Expectation = tuple[str, Any, Any, str]  # what, wanted (None = anything), actual, unit


@dataclass(frozen=True)
class Recipe:
    """What a trained detector expects and does."""

    detector: str
    preset: str
    dataset: str | None
    features: tuple[FeatureSpec, ...]  # one per store, in the order of the channels
    labels: tuple[str, ...]  # by class number
    model: Any  # the detector's Config as a mapping
    decode: DecodeConfig
    nms: NmsConfig
    windows: WindowConfig
    # How external class scores are fused, if any are given; recipes of before do not state it.
    class_scores: ClassFusionConfig = field(default_factory=ClassFusionConfig)
    # End to end with resized windows: frames are spread over a video, not its features resized.
    resized_pixels: bool = False

    @property
    def label_ids(self) -> dict[str, int]:
        """Label -> class number."""
        return {label: number for number, label in enumerate(self.labels)}

    @property
    def window_len(self) -> int:
        """Grid steps of a training window."""
        return int(self.model["window_len"])

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready, with the `fid` of each feature spec beside it."""
        return {**to_mapping(self), "fids": [spec.fid for spec in self.features]}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str) -> Recipe:
        """The inverse of `to_mapping`."""
        values = {key: value for key, value in mapping.items() if key != "fids"}
        recipe = build(cls, values, where)
        stated = mapping.get("fids")
        actual = [spec.fid for spec in recipe.features]
        if stated != actual:
            raise ConfigError(
                "The recipe's feature specs were changed.", f"{where}: fids {stated}, now {actual}"
            )
        return recipe

    def make_model(self) -> nn.Module:
        """The detector with fresh weights."""
        detector = resolve("detector", DETECTORS, self.detector)
        config = build(detector.Config, self.model, "recipe: model")
        model: nn.Module = detector(config, self.decode)
        return model


class TrainedDetector(NamedTuple):
    """A detector in eval mode with its recipe."""

    model: nn.Module
    recipe: Recipe
    run: Path


def load_recipe(run: Path) -> Recipe:
    """Read the recipe of a run folder.

    Raises:
        CheckpointError: not a run folder, or the recipe is damaged.
    """
    path = run / RECIPE_FILE
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            "Not the folder of a training run.",
            f"{run} has no {RECIPE_FILE}",
            "Name a folder that train-detector or e2e wrote.",
        ) from None
    except ValueError as error:
        raise CheckpointError("The recipe cannot be read.", f"{path}: {error}") from None
    try:
        return Recipe.from_mapping(mapping, str(path))
    except ConfigError as error:
        raise CheckpointError(error.what, error.where, error.todo) from None


def load_detector(run: str | Path, *, device: str = "cpu", weights: str = "ema") -> TrainedDetector:
    """Load a trained detector.

    Args:
        run: folder that `train_detector` or `train_e2e` wrote.
        weights: "ema" (averaged, the default) or "plain" (of the last step).
    Raises:
        CheckpointError: no such run, training not finished, or weights that do not fit.
    """
    run = Path(run)
    if weights not in ("ema", "plain"):
        raise ConfigError("Unknown weights.", f"weights = {weights!r}", "Use ema or plain.")
    recipe = load_recipe(run)
    path = run / (MODEL_FILE if weights == "ema" else PLAIN_FILE)
    if not path.exists():
        raise CheckpointError(
            "The run has no trained model yet.",
            str(path),
            "Repeat its command with --resume.",
        )
    model = recipe.make_model()
    load_strictly(model, load_weights(path), str(path))
    return TrainedDetector(model.to(device).eval(), recipe, run)


def check_recipe(
    recipe: Recipe, run: str, specs: Sequence[FeatureSpec], names: Sequence[str]
) -> None:
    """Refuse features that are not those a run was trained on.

    Args:
        specs: of the features at hand, one per store; names: what to call them (their stores).
    Raises:
        ConfigError: another number of stores, or another stride, clip, backbone, width, ...
    """
    if len(specs) != len(recipe.features):
        raise ConfigError(
            "Features do not fit the run.",
            f"{', '.join(names)}: {len(specs)} kinds of features;  {run}: {len(recipe.features)}",
            "Give --features once per store the run was trained on, in the same order.",
        )
    for spec, expected, name in zip(specs, recipe.features, names, strict=True):
        if spec.fid == expected.fid:
            continue
        ours, theirs = spec.settings(), expected.settings()
        different = [
            key for key in dict.fromkeys([*theirs, *ours]) if ours.get(key) != theirs.get(key)
        ]
        moved = [key for key in different if key not in ROUNDING]
        if not moved:
            logger.warning("%s and %s differ in %s only", name, run, ", ".join(different))
            continue
        raise ConfigError(
            "Features do not fit the run.",
            f"{name}: {_words(ours, moved)} ({spec.backbone});  "
            f"{run}: {_words(theirs, moved)} ({expected.backbone})",
            f"Use features with fid {expected.fid}: extract again with --backbone "
            f"{expected.backbone} --stride {expected.stride} --clip-len {expected.clip_len}, "
            "or train on these.",
        )


def check_preset(
    expected: FeaturesConfig,
    preset: str,
    detector: str,
    specs: Sequence[FeatureSpec],
    names: Sequence[str],
) -> None:
    """Refuse features that are not those a preset is for.

    Raises:
        ConfigError: another stride, clip, backbone or width.
    """
    pairs: list[Expectation]
    for spec, name in zip(specs, names, strict=True):
        pairs = [
            ("stride", expected.stride, spec.stride, " frames"),
            ("clip", expected.clip_len, spec.span_frames, " frames"),
            ("backbone", expected.backbone, spec.backbone, ""),
        ]
        _refuse(pairs, name, spec, preset, detector)
    if expected.separate and len(specs) == 1:
        raise ConfigError(
            "Features do not fit the preset.",
            f"{names[0]}: one kind of features;  preset {preset}: several",
            "Give --features once per store.",
        )
    width = sum(spec.channels for spec in specs)
    pairs = [("width", expected.channels, width, " channels")]
    _refuse(pairs, ", ".join(names), specs[0], preset, detector)


def _refuse(
    pairs: Sequence[Expectation],
    name: str,
    spec: FeatureSpec,
    preset: str,
    detector: str,
) -> None:
    """Raise if an expected value is stated and differs."""
    wrong = [pair for pair in pairs if pair[1] is not None and pair[1] != pair[2]]
    if not wrong:
        return
    fitting = fitting_presets(
        detector,
        stride=spec.stride,
        clip_len=spec.span_frames,
        channels=spec.channels,
        backbone=spec.backbone,
    )
    remedies = [f"--preset {other}" for other in fitting if other != preset]
    use = f"Use {' or '.join(remedies)}" if remedies else "Use another preset"
    again = {"stride": "--stride", "clip": "--clip-len", "backbone": "--backbone"}
    options = " ".join(f"{again[key]} {wanted}" for key, wanted, *_ in wrong if key in again)
    raise ConfigError(
        "Features do not fit the preset.",
        f"{name}: {', '.join(f'{key} {value}{unit}' for key, _, value, unit in wrong)} "
        f"({spec.backbone});  preset {preset}: "
        + ", ".join(f"{key} {wanted}{unit}" for key, wanted, _, unit in wrong),
        f"{use}, or extract again{f' with {options}' if options else ''}.",
    )


def _words(settings: Mapping[str, str], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {settings.get(key, 'none')}" for key in keys)
