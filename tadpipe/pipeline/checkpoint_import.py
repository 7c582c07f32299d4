"""Official checkpoints into run folders: what `tadpipe checkpoint import` does for detectors.

Order: the file -> which detector -> shapes, official configuration and preset (checkpoint_fit) ->
features (a store, or a known release) -> labels by class number -> strict load -> run folder.
What no source states is asked for; the class order of annotations without numbers is not assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tadpipe.annotations import Annotations, save_detections
from tadpipe.backbones.recognise import families
from tadpipe.config import to_mapping
from tadpipe.datasets import DATASETS
from tadpipe.datasets.sources import FeatureSource, match_videos
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.detectors import DETECTORS
from tadpipe.errors import CheckpointError, ConfigError, StoreError
from tadpipe.pipeline.checkpoint_files import Kind, SavedWeights, read_weights
from tadpipe.pipeline.checkpoint_fit import (
    Fit,
    check_detector,
    differing_keys,
    fit_preset,
    load_official,
)
from tadpipe.pipeline.checkpoint_report import ImportResult
from tadpipe.pipeline.checkpoint_shapes import READERS, detectors_like
from tadpipe.pipeline.checkpoint_sources import (
    Features,
    check_stated_features,
    check_width,
    class_labels,
    find_annotations,
    find_features,
    find_test_subset,
)
from tadpipe.pipeline.detect import detect_on_source
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.evaluate import DETECTIONS_FILE, evaluate
from tadpipe.pipeline.official_files import OfficialConfig, read_official_config, stated_features
from tadpipe.pipeline.presets import DEFAULT, Preset, load_preset
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.recipe import MODEL_FILE, PLAIN_FILE, RECIPE_FILE, Recipe, check_preset
from tadpipe.pipeline.run_folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    environment,
    write_json,
)
from tadpipe.pipeline.train_detector import EVALUATION_FILE
from tadpipe.registry import known, resolve
from tadpipe.training.checkpoint import save_weights


def import_detector(
    path: str | Path,
    detector: str | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    sets: Sequence[str] = (),
    weights: str | None = None,
    features: Sequence[str | Path] = (),
    backbone: str | None = None,
    stride: int | None = None,
    conventions: Sequence[str] = (),
    annotations: str | Path | None = None,
    labels: str | Path | None = None,
    dataset: str | None = None,
    test_subset: str | None = None,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    score: bool = False,
    device: str = "auto",
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ImportResult:
    """Make a run folder of an official checkpoint.

    Args:
        detector: which release it is from; without it as the keys tell.
        preset: where settings come from that neither shapes nor configuration say.
        config: YAML of the release.
        weights: "ema" or "plain", what detection uses. Default: averaged ones if there are any.
        features: the store (or several) that is detected on; `backbone`, `stride` choose in it.
        conventions: instead of a store, the names of known released features.
        annotations: state the labels; without it, the copy a store remembers.
        labels: file with one label per line in the order of the classes.
        test_subset: scored by `score`, and by `tadpipe evaluate` later.
        out: run folder; without it, `runs`/<detector>_official.
        score: detect on the test subset of the store and score it.
    Raises:
        CheckpointError: not a readable or not a fitting checkpoint.
        ConfigError, AnnotationError, StoreError: something is missing or does not fit.
    """
    device = resolve_device(device)
    saved = read_weights(Path(path))
    name = _detector(detector, saved)
    folder = Path(out) if out is not None else Path(runs) / f"{name}_official"
    if (folder / CONFIG_FILE).exists():
        raise ConfigError(
            "The run folder holds a run already.",
            str(folder),
            "Write to another folder with --out.",
        )
    kind = _kind(weights, saved)
    official = read_official_config(Path(config), name) if config else None
    preset_name = preset or f"{name}/{DEFAULT}"
    base = load_preset(preset_name, sets, name)
    check_detector(name, saved.states[kind], base, str(path))
    fit = fit_preset(
        name,
        saved.states[kind],
        base,
        where=str(path),
        preset_name=preset,
        config=official,
        sets=sets,
    )
    used = find_features(features, conventions, backbone=backbone, stride=stride)
    check_preset(base.features, preset_name, name, used.specs, used.names)
    if official:
        check_stated_features(stated_features(official), official.source, used)
    dataset = dataset or base.dataset
    spec: DatasetSpec | None = resolve("dataset", DATASETS, dataset) if dataset else None
    truth = find_annotations(annotations, used, spec)
    subset = None if truth is None else find_test_subset(truth, spec, test_subset)
    recipe = _recipe(fit, preset_name, dataset, used, truth, labels, saved, base)
    model = recipe.make_model()
    states, fresh = _load_all(model, name, saved)
    stated = _stated(recipe, used, truth, subset, saved, kind, official)
    if score and (not used.tables or subset is None):
        raise ConfigError(
            "There is nothing to score on.",
            f"features: {', '.join(used.names)};  test subset: {subset or 'unknown'}",
            "Give --features STORE, --annotations and --test-subset, or leave --score out.",
        )
    imported = ImportResult(
        run=folder,
        file=str(path),
        detector=name,
        preset=preset_name,
        weights=kind,
        epoch=saved.epoch,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        labels=recipe.labels,
        features=used.names,
        fit=fit,
        config=None if official is None else official.source,
        unread=() if official is None else tuple(official.unread(name)),
        fresh=tuple(fresh),
        dry_run=dry_run,
    )
    if dry_run:
        return imported
    _write(folder, stated, recipe, states, kind, device)
    if not score or truth is None or subset is None:
        return imported
    model.load_state_dict(states[kind])
    without = _detect(model.to(device).eval(), recipe, used, truth, subset, spec, folder, progress)
    evaluation = evaluate(folder, out=folder / EVALUATION_FILE)
    return replace(imported, evaluation=evaluation, without_features=without)


def _detector(asked: str | None, saved: SavedWeights) -> str:
    """The detector named (official spellings have underscores), else the one the keys tell."""
    if asked is not None:
        name = asked.lower().replace("_", "-")
        known("release", {**DETECTORS, **dict.fromkeys(families(), "")}, name)
        return name
    likes = detectors_like(saved.best)
    if len(likes) != 1:
        raise CheckpointError(
            "Which detector the checkpoint is of is not clear.",
            f"{saved.path}: may be {' or '.join(likes)}"
            if likes
            else f"{saved.path}: {', '.join(list(saved.best)[:4])}, ...",
            f"Name it with --from: {', '.join(likes or READERS)}.",
        )
    return likes[0]


def _kind(asked: str | None, saved: SavedWeights) -> Kind:
    """Which weights detection uses."""
    if asked is None:
        return "ema" if "ema" in saved.states else "plain"
    if asked not in ("ema", "plain"):
        raise ConfigError("Unknown weights.", f"weights = {asked!r}", "Use ema or plain.")
    kind: Kind = "ema" if asked == "ema" else "plain"
    if kind not in saved.states:
        raise CheckpointError(
            f"The checkpoint has no {'averaged' if kind == 'ema' else 'plain'} weights.",
            f"{saved.path}: {', '.join(p or 'a state dict' for p in saved.places.values())}",
            f"Leave --weights out, or use --weights {next(iter(saved.states))}.",
        )
    return kind


def _recipe(
    fit: Fit,
    preset_name: str,
    dataset: str | None,
    used: Features,
    truth: Annotations | None,
    labels: str | Path | None,
    saved: SavedWeights,
    base: Preset,
) -> Recipe:
    """Everything detection needs besides the weights."""
    preset, where = fit.preset, str(saved.path)
    channels = fit.in_channels
    if channels is None:
        channels = sum(spec.channels for spec in used.specs)
    check_width(channels, used, where)
    if fit.num_classes is None:
        raise CheckpointError(
            "The checkpoint does not tell its number of classes.",
            f"{where}: no cls_head.cls_head.conv.weight",
            "Give the official configuration by --config.",
        )
    names = class_labels(
        fit.num_classes,
        labels=labels,
        truth=truth,
        class_agnostic=preset.windows.class_agnostic,
        where=where,
    )
    try:
        model = preset.model_config(channels, fit.num_classes, preset_name)
    except ConfigError as error:
        stated = {**base.model, "in_channels": channels, "num_classes": fit.num_classes}
        raise CheckpointError(
            "The checkpoint's shapes and the other settings do not make a model.",
            "\n".join(
                [where, str(error), *differing_keys(preset.detector, stated, base, saved.best)]
            ),
            "The checkpoint is incomplete, or give its configuration by --config or --preset.",
        ) from None
    return Recipe(
        detector=preset.detector,
        preset=preset_name,
        dataset=dataset,
        features=used.specs,
        labels=names,
        model=to_mapping(model),
        decode=preset.decode,
        nms=preset.nms,
        windows=preset.windows,
        class_scores=preset.class_scores,
    )


def _load_all(
    model: nn.Module, detector: str, saved: SavedWeights
) -> tuple[dict[Kind, dict[str, Tensor]], list[str]]:
    """Both kinds of weights under our names, each loaded strictly; and what the file lacks."""
    states: dict[Kind, dict[str, Tensor]] = {}
    fresh: list[str] = []
    for kind, state in saved.states.items():
        fresh = load_official(model, detector, state, _place(saved, kind))
        states[kind] = {name: value.clone() for name, value in model.state_dict().items()}
    return states, fresh


def _place(saved: SavedWeights, kind: Kind) -> str:
    place = saved.places[kind]
    return f"{saved.path}: {place}" if place else str(saved.path)


def _stated(
    recipe: Recipe,
    used: Features,
    truth: Annotations | None,
    subset: str | None,
    saved: SavedWeights,
    kind: Kind,
    official: OfficialConfig | None,
) -> dict[str, Any]:
    """What the run folder's config.json holds; the keys are those of a training run."""
    return {
        "preset": recipe.preset,
        "detector": recipe.detector,
        "dataset": recipe.dataset,
        "stores": [table.store for table in used.tables],
        "annotations": None if truth is None else truth.source,
        "subsets": {"train": None, "test": subset, "validation": None},
        "labels": list(recipe.labels),
        "features": [{**to_mapping(spec), "fid": spec.fid} for spec in recipe.features],
        "model": recipe.model,
        "decode": to_mapping(recipe.decode),
        "nms": to_mapping(recipe.nms),
        "windows": to_mapping(recipe.windows),
        "imported": {
            "file": str(saved.path),
            "sha256": saved.sha256,
            "epoch": saved.epoch,
            "weights": kind,
            "config": None if official is None else official.source,
        },
    }


def _write(
    folder: Path,
    stated: Mapping[str, Any],
    recipe: Recipe,
    states: Mapping[Kind, dict[str, Tensor]],
    kind: Kind,
    device: str,
) -> None:
    """The run folder; the weights that make it one come last."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, stated)
    write_json(folder / RECIPE_FILE, recipe.to_mapping())
    write_json(folder / ENVIRONMENT_FILE, environment(device, 0))
    if "plain" in states:
        save_weights(folder / PLAIN_FILE, states["plain"])
    save_weights(folder / MODEL_FILE, states[kind])


def _detect(
    model: nn.Module,
    recipe: Recipe,
    used: Features,
    truth: Annotations,
    subset: str,
    spec: DatasetSpec | None,
    folder: Path,
    progress: Progress,
) -> tuple[str, ...]:
    """Write the detections of the subset; returns its videos that have no features."""
    source = FeatureSource(used.tables)
    prefix = "" if spec is None else spec.feature_prefix
    coverage = match_videos(truth.videos, list(truth.subset(subset)), source.names, prefix)
    if not coverage.stored_as:
        raise StoreError(
            "No video of the test subset has features.",
            f"{', '.join(used.names)}: {len(source.names)} videos;  {truth.source}: '{subset}'",
            "Name another store, --annotations or --test-subset.",
        )
    durations = {
        name: truth.videos[name].duration_sec or used.tables[0].duration_sec(stored)
        for name, stored in coverage.stored_as.items()
    }
    found = detect_on_source(
        model,
        source,
        coverage.stored_as,
        recipe,
        durations_sec=durations,
        label=f"detect on '{subset}'",
        progress=progress,
    )
    save_detections(folder / DETECTIONS_FILE, found)
    return tuple(coverage.without_features)
