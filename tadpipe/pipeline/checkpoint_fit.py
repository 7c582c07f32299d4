"""From an official checkpoint to a complete recipe of ours: who says what, and the strict load.

Shapes speak first, then `--set`, then the official configuration, then the preset. Where shapes
and a stated value differ, that is an error; a preset that differs is overruled and the difference
is said. Without a preset, whatever moves a detection must be said by shapes or configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from tadpipe.config import build, to_mapping
from tadpipe.detectors import DETECTORS
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.pipeline.checkpoint_shapes import detectors_like, told_by_shapes
from tadpipe.pipeline.official_configs import (
    ONE_STAGE,
    Told,
    decode_fields,
    model_fields,
    nms_fields,
    window_fields,
)
from tadpipe.pipeline.official_files import OfficialConfig
from tadpipe.pipeline.presets import Preset
from tadpipe.registry import resolve
from tadpipe.training.checkpoint import load_strictly

# Fields that no detection depends on once the weights are there.
FOR_TRAINING = {
    "centre_radius",
    "cls_loss",
    "conv_init_std",
    "dropout",
    "drop_path",  # whether there are scales, the shapes tell
    "empty_classes",
    "init_loss_norm",
    "input_noise",
    "iou_power",
    "label_smoothing",
    "loss_weight",
    "prior_prob",
}
FOR_DATA = ("in_channels", "num_classes")  # not in a preset, they follow from features and labels
FALLBACK_WIDTH = 2048  # of a model whose keys are only compared
EXTRA = "ase."  # ASL's evaluators, which only training needs


@dataclass(frozen=True)
class Fit:
    """A preset that a checkpoint fits, and where its values come from."""

    preset: Preset  # as the checkpoint needs it
    in_channels: int | tuple[int, ...] | None  # None: the shapes do not tell
    num_classes: int | None
    by_shapes: tuple[str, ...]  # fields of [model]
    by_config: tuple[str, ...]  # fields of any table, as "nms.sigma"
    overruled: tuple[str, ...]  # what the preset says otherwise, in words


def fit_preset(
    detector: str,
    state: Mapping[str, Tensor],
    base: Preset,
    *,
    where: str,
    preset_name: str | None,
    config: OfficialConfig | None,
    sets: Sequence[str],
) -> Fit:
    """Put together what shapes, official configuration and preset say.

    Args:
        state: official names.
        base: the preset named, with `sets` applied; the detector's default one if none is named.
        where: the checkpoint, for messages.
        preset_name: None if none is named: what moves detections is then asked for.
    Raises:
        CheckpointError: shapes and configuration (or `sets`) say different things.
        ConfigError: something is not said by anybody, or a value is wrong.
    """
    asked = {assignment.partition("=")[0].strip() for assignment in sets}
    tables = config.tables if config else {}
    stated = config.stated if config else {}
    official = _without(model_fields(detector, tables), "model", asked)
    values = {**base.model, **{field: told.value for field, told in official.items()}}
    shaped = told_by_shapes(detector, state, values)
    firm = {f: t for f, t in model_fields(detector, stated).items() if f in official}
    firm |= {f: Told(base.model[f], "--set") for f in base.model if f"model.{f}" in asked}
    model = {**values, **shaped}
    wrong = _disagreements(shaped, firm)
    if wrong:
        keys = differing_keys(detector, {**model, **values}, base, state)
        raise CheckpointError(
            "Checkpoint and configuration do not belong together.",
            "\n".join([f"{where};  {config.source if config else '--set'}", *wrong, *keys]),
            "The checkpoint is incomplete, or give the configuration it was trained with.",
        )
    others = {
        "decode": (base.decode, _without(decode_fields(detector, tables), "decode", asked)),
        "nms": (base.nms, _without(nms_fields(detector, tables), "nms", asked)),
        "windows": (base.windows, _without(window_fields(detector, tables), "windows", asked)),
    }
    if preset_name is None:
        _check_complete(detector, {*official, *shaped}, others, asked)
    tuned = {
        table: _changed(settings, fields, f"official configuration: {table}")
        for table, (settings, fields) in others.items()
    }
    by_config = [f"model.{field}" for field in official if field not in shaped]
    by_config += [f"{table}.{field}" for table, (_, fields) in others.items() for field in fields]
    preset = replace(base, model={k: v for k, v in model.items() if k not in FOR_DATA}, **tuned)
    return Fit(
        preset,
        model.get("in_channels"),
        model.get("num_classes"),
        tuple(sorted(shaped)),
        tuple(by_config) if config else (),
        tuple(_differences(base, preset)) if preset_name else (),
    )


def load_official(
    model: nn.Module, detector: str, state: Mapping[str, Tensor], where: str
) -> list[str]:
    """Put official weights into a detector, every key of both.

    Returns:
        Keys that the file lacks and training alone needs (ASL); they keep their start values.
    Raises:
        CheckpointError: missing, unexpected and misshapen keys, and what the file looks like.
    """
    renamed = renamed_keys(detector, state)
    fresh: list[str] = []
    if detector == "asl" and not any(name.startswith(EXTRA) for name in renamed):
        start = {k: v for k, v in model.state_dict().items() if k.startswith(EXTRA)}
        fresh = sorted(start)
        renamed = {**renamed, **start}
    try:
        load_strictly(model, renamed, where)
    except CheckpointError as error:
        keys = error.where if error.where.startswith(where) else f"{where}: {error}"
        raise CheckpointError(
            "The checkpoint is incomplete or was changed, or is of another configuration.",
            keys,
            "Fetch it again, or give its own official configuration by --config or --preset.",
        ) from None
    return fresh


def check_detector(detector: str, state: Mapping[str, Tensor], base: Preset, where: str) -> None:
    """Refuse the checkpoint of another detector, or of none.

    Raises:
        CheckpointError: how the keys differ from the preset's model, and what they look like.
    """
    likes = detectors_like(state)
    if detector in likes:
        return
    shaped = told_by_shapes(likes[0], state, {}) if likes else {}
    channels = shaped.get("in_channels") or base.features.channels or FALLBACK_WIDTH
    values = {
        **base.model,
        "in_channels": channels if isinstance(channels, int) else sum(channels),
        "num_classes": 1 if detector.startswith("etad") else shaped.get("num_classes") or 1,
    }
    raise CheckpointError(
        f"The checkpoint is not one of {detector}.",
        "\n".join([where, *differing_keys(detector, values, base, state)]),
        f"This looks like {' or '.join(likes)}: use --from {likes[0]}."
        if likes
        else "It looks like no detector known here; `tadpipe checkpoint inspect` says what it is.",
    )


def differing_keys(
    detector: str, values: Mapping[str, Any], base: Preset, state: Mapping[str, Tensor]
) -> list[str]:
    """How the keys differ from those of a configuration: missing, unexpected, misshapen; or none.

    Args:
        values: fields of the detector's Config, whether or not they can be a model.
    """
    cls = resolve("detector", DETECTORS, detector)
    try:
        model = cls(build(cls.Config, values, detector), base.decode)
        load_strictly(model, renamed_keys(detector, state), "")
    except ConfigError:
        return []
    except CheckpointError as error:
        return error.where.strip().splitlines()
    return []


def renamed_keys(detector: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names under ours; ASL has no official ones."""
    if detector == "asl":
        return dict(state)
    remap = import_module(DETECTORS[detector].partition(":")[0]).remap_official_keys
    renamed: dict[str, Tensor] = remap(state)
    return renamed


def _without(fields: Mapping[str, Told], table: str, asked: set[str]) -> dict[str, Told]:
    """The fields that `--set` does not set."""
    return {field: told for field, told in fields.items() if f"{table}.{field}" not in asked}


def _disagreements(shaped: Mapping[str, Any], stated: Mapping[str, Told]) -> list[str]:
    return [
        f"{field}: {shaped[field]!r} by its shapes, {told.value!r} by {told.key}"
        for field, told in stated.items()
        if field in shaped and comparable(shaped[field]) != comparable(told.value)
    ]


def _check_complete(
    detector: str,
    told: set[str],
    others: Mapping[str, tuple[Any, Mapping[str, Told]]],
    asked: set[str],
) -> None:
    """Raise if something that moves detections would be taken from a preset nobody named."""
    cls = resolve("detector", DETECTORS, detector).Config
    needed = {field.name for field in dataclasses.fields(cls)} - FOR_TRAINING - set(FOR_DATA)
    missing = [f"model.{field}" for field in sorted(needed - told)]
    if detector in ONE_STAGE:
        for table, (settings, fields) in others.items():
            if table != "windows":
                names = {field.name for field in dataclasses.fields(settings)} - {"drop_last"}
                missing += [f"{table}.{name}" for name in sorted(names - fields.keys())]
    missing = [name for name in missing if name not in asked]
    if missing or detector not in ONE_STAGE:
        raise ConfigError(
            "Neither checkpoint nor configuration say everything.",
            f"{detector}: {', '.join(missing) or 'decode, nms and windows'}",
            "Name the --preset these are taken from (`tadpipe checkpoint inspect` lists those that "
            "fit), or give them by --set KEY=VALUE.",
        )


def _changed(settings: Any, fields: Mapping[str, Told], where: str) -> Any:
    values = {**to_mapping(settings), **{field: told.value for field, told in fields.items()}}
    return build(type(settings), values, where)


def _differences(base: Preset, preset: Preset) -> list[str]:
    """What the preset says otherwise than is used, in words."""
    tables = ("model", "decode", "nms", "windows")
    before, now = to_mapping(base), to_mapping(preset)
    return [
        f"{table}.{field} = {comparable(value)} (preset: {comparable(before[table][field])})"
        for table in tables
        for field, value in now[table].items()
        if field in before[table] and comparable(before[table][field]) != comparable(value)
    ]


def comparable(value: Any) -> Any:
    """A value for comparison: tuples as lists, whole numbers as floats."""
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
