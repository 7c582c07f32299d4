"""Presets: complete recipes as TOML files, named `<detector>/<dataset>_<features>`.

A preset states what it expects of the features and everything about model, decoding, NMS,
external class scores, windows and training; `--set table.key=value` changes single values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tadpipe.class_scores import ClassFusionConfig
from tadpipe.config import apply_sets, build, read_toml
from tadpipe.datasets.windows import WindowConfig
from tadpipe.detectors import DETECTORS
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.parts.nms import NmsConfig
from tadpipe.errors import ConfigError
from tadpipe.pipeline.names import PRESETS, names_of
from tadpipe.registry import known, nearest, resolve
from tadpipe.training.e2e import E2EConfig
from tadpipe.training.loop import TrainingConfig

DEFAULT = "default"


@dataclass(frozen=True)
class FeaturesConfig:
    """What a preset expects of the features; a key that is left out is not checked."""

    backbone: str | None = None
    stride: int | None = None  # frames
    clip_len: int | None = None  # frames a feature spans
    channels: int | None = None  # of all stores together
    separate: bool = False  # every store gets a projection of its own in the model


@dataclass(frozen=True)
class Preset:
    """A recipe; `model` holds the detector's Config without in_channels and num_classes."""

    detector: str
    dataset: str | None = None
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    model: Any = field(default_factory=dict)  # checked by the detector's own Config
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    nms: NmsConfig = field(default_factory=NmsConfig)
    class_scores: ClassFusionConfig = field(default_factory=ClassFusionConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    e2e: E2EConfig = field(default_factory=E2EConfig)  # read by `tadpipe e2e` only

    def model_config(self, in_channels: int | tuple[int, ...], num_classes: int, name: str) -> Any:
        """The detector's own config for features and labels at hand.

        Args:
            name: of the preset, for messages.
        """
        detector = resolve("detector", DETECTORS, self.detector)
        filled = {**self.model, "in_channels": in_channels, "num_classes": num_classes}
        return build(detector.Config, filled, f"preset {name} [model]")


def choose_preset(detector: str | None, preset: str | None) -> str:
    """The name of the preset to load: as asked for, else the detector's default one.

    Raises:
        ConfigError: no such detector.
    """
    if detector is not None:
        known("detector", DETECTORS, detector)
    return preset or f"{detector or 'actionformer'}/{DEFAULT}"


def load_preset(name: str, sets: Sequence[str] = (), detector: str | None = None) -> Preset:
    """Read a preset.

    Args:
        name: as in `tadpipe list presets`, or the path of a TOML file.
        sets: `table.key=value` assignments.
        detector: if given, the preset must be one for this detector.
    Raises:
        ConfigError: no such preset, an unknown key or a wrong value.
    """
    mapping = apply_sets(read_toml(preset_path(name)), sets)
    for key in ("in_channels", "num_classes"):
        if key in mapping.get("model", {}):
            raise ConfigError(
                f"{key} follows from the features and the labels.",
                f"preset {name} [model]",
                "Leave it out.",
            )
    preset = build(Preset, mapping, f"preset {name}")
    if not isinstance(preset.model, dict):
        raise ConfigError("Expected a table.", f"preset {name}: model = {preset.model!r}")
    if detector is not None and preset.detector != detector:
        raise ConfigError(
            "The preset is one for another detector.",
            f"preset {name}: {preset.detector};  --detector {detector}",
            f"Leave --detector out, or choose one of {', '.join(_of_detector(detector)) or 'none'}",
        )
    return preset


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        ConfigError: neither a known name nor a TOML file.
    """
    if name.endswith(".toml"):
        return Path(name)
    presets = names_of("presets")
    if name not in presets:
        guesses = nearest(name, presets)
        hint = f"Did you mean {' or '.join(guesses)}? " if guesses else ""
        raise ConfigError(
            f"Unknown preset '{name}'.", todo=f"{hint}`tadpipe list presets` shows all of them."
        )
    return PRESETS / f"{name}.toml"


def fitting_presets(
    detector: str, *, stride: int, clip_len: int, channels: int, backbone: str
) -> list[str]:
    """Presets of a detector whose expectations these features meet, the default one included.

    Those that train on frames, end to end, expect no stored features.
    """
    fitting = []
    for name in _of_detector(detector):
        preset = load_preset(name)
        if preset.e2e.representation == "frame":
            continue
        expected = preset.features
        pairs = (
            (expected.stride, stride),
            (expected.clip_len, clip_len),
            (expected.channels, channels),
            (expected.backbone, backbone),
        )
        if all(wanted is None or wanted == actual for wanted, actual in pairs):
            fitting.append(name)
    return fitting


def _of_detector(detector: str) -> list[str]:
    return [name for name in names_of("presets") if name.startswith(f"{detector}/")]
