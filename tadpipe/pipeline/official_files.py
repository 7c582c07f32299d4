"""Configuration files of the official releases: YAML read as plain values, with their defaults.

A release merges its file over defaults; those that are published are here, the others are left
open. PyYAML reads `1e-4` as text (YAML 1.1): such text becomes the number it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tadpipe.errors import ConfigError
from tadpipe.pipeline.official_configs import (
    ABSENT,
    ONE_STAGE,
    find,
    known_keys,
    lifted,
)

LARGEST_FILE = 1 << 20  # bytes; the published ones have about a thousand
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
MODEL_TABLES = ("model", "test_cfg", "MODEL", "DETECTION_POST", "roi_head", "projection")
# What the one-stage releases fill in, as far as it is published.
DEFAULTS: dict[str, Any] = {
    "model": {
        "fpn_type": "identity",
        "backbone_arch": [2, 2, 5],
        "scale_factor": 2,
        "regression_range": [[0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, 10000]],
        "embd_kernel_size": 3,
        "embd_dim": 512,
        "embd_with_ln": True,
        "fpn_dim": 512,
        "fpn_with_ln": True,
        "head_dim": 512,
        "head_kernel_size": 3,
        "head_num_layers": 3,
        "use_abs_pe": False,
    },
    "train_cfg": {
        "center_sample": "radius",
        "center_sample_radius": 1.5,
        "loss_weight": 1.0,
        "cls_prior_prob": 0.01,
        "dropout": 0.0,
        "droppath": 0.1,
        "label_smoothing": 0.0,
        "head_empty_cls": [],
    },
    "test_cfg": {
        "pre_nms_thresh": 0.001,
        "iou_threshold": 0.1,
        "nms_method": "soft",
        "nms_sigma": 0.5,
        "duration_thresh": 0.05,
        "multiclass_nms": True,
        "voting_thresh": 0.75,
    },
}
TRIDENT_DEFAULTS = {
    "head_with_ln": True,
    "boudary_kernel_size": 3,
    "num_bins": 16,
    "downsample_type": "max",
    "iou_weight_power": 1.0,
    "init_conv_vars": 0.0,
    "input_noise": 0.0,
}
OWN_DEFAULTS: dict[str, dict[str, Any]] = {  # of the table `model`
    "actionformer": {"n_head": 4, "head_with_ln": True, "use_rel_pe": False},
    "tridet": TRIDENT_DEFAULTS,
    "cltdr-gmg": TRIDENT_DEFAULTS,
    "dyfadet": {"init_conv_vars": 0.0, "head_act": "relu"},
}


class OfficialConfig(NamedTuple):
    """A configuration as its release would use it."""

    source: str
    tables: Mapping[str, Any]  # with the defaults filled in
    stated: Mapping[str, Any]  # what the file itself says, in the same tables

    def unread(self, detector: str) -> list[str]:
        """Values of the model's tables that nothing here reads; the releases have dead ones."""
        known = known_keys(detector) | {"train_cfg", "test_cfg"}
        tables = {name: self.stated[name] for name in MODEL_TABLES if name in self.stated}
        return [path for path in _leaves(tables) if not _covered(path, known)]


def read_official_config(path: Path, detector: str) -> OfficialConfig:
    """Read a release's YAML (or JSON) file.

    Raises:
        ConfigError: missing, no YAML of plain values, or not a configuration of this detector.
    """
    loaded: Mapping[str, Any] = _read_yaml(path)
    if detector == "etad-opentad":  # its tables are inside `model`
        inner = loaded.get("model")
        loaded = inner if isinstance(inner, Mapping) else loaded
    stated = lifted(loaded)
    known = {key.partition(".")[0] for key in known_keys(detector)}
    if not known & stated.keys():
        raise ConfigError(
            f"Not a configuration of {detector}.",
            f"{path}: {', '.join(map(str, loaded)) or 'empty'}",
            f"Expected tables: {', '.join(sorted(known))}.",
        )
    tables = stated
    if detector in ONE_STAGE:
        own = {**DEFAULTS, "model": {**DEFAULTS["model"], **OWN_DEFAULTS[detector]}}
        tables = _merged(own, stated)
    return OfficialConfig(str(path), tables, stated)


def stated_features(config: OfficialConfig) -> dict[str, Any]:
    """Stride and span in frames, rate and channels, where the file states them."""
    names = {"span": "num_frames", "fps": "default_fps", "channels": "input_dim"}
    found = {ours: find(config.stated, f"dataset.{key}") for ours, key in names.items()}
    stride = find(config.stated, "dataset.feat_stride")
    if isinstance(stride, (int, float)) and stride > 0:  # else of fixed length, without a stride
        rate = find(config.stated, "dataset.downsample_rate")
        found["stride"] = stride * (1 if rate is ABSENT else rate)
    return {name: value for name, value in found.items() if value not in (ABSENT, None)}


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix == ".py":
        raise ConfigError(
            "A configuration that is a Python program is not run.",
            str(path),
            "Leave --config out and name a --preset, or write its tables as YAML.",
        )
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
        if len(raw) > LARGEST_FILE:
            raise ConfigError("Too large for a configuration.", str(path))
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(raw)):
            raise ConfigError("A configuration with aliases is not read.", str(path))
        loaded = yaml.safe_load(raw)
    except OSError as error:
        raise ConfigError(
            "The configuration cannot be read.", f"{path}: {error.strerror}", "Check --config."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ConfigError("Not a YAML file of plain values.", f"{path}: {lines[0]}") from None
    if not isinstance(loaded, dict):
        raise ConfigError("Not a configuration.", f"{path}: a {type(loaded).__name__}")
    numbered = _numbers(loaded)
    assert isinstance(numbered, dict)
    return numbered


def _numbers(value: Any) -> Any:
    """The value with text such as `1e-4` as numbers."""
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = _merged(below[key], above[key])
    return merged


def _leaves(tables: Mapping[str, Any], place: str = "") -> Iterator[str]:
    for key, value in tables.items():
        path = f"{place}.{key}" if place else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, path)
        else:
            yield path


def _covered(path: str, known: set[str]) -> bool:
    """Whether a value is read: by its own path, as part of a table that is, or elsewhere."""
    inside = path.removeprefix("model.")
    return any(p == key or p.startswith(f"{key}.") for p in (path, inside) for key in known)
