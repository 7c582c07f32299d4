"""tadpipe compare: several detectors and seeds on one store, one table with error bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tadpipe.cli.options import (
    LocalPath,
    class_scores_file,
    class_scores_option,
    device_option,
    dry_run_option,
    emit,
    first,
    seed_option,
    shared_options,
    skip_unscored_option,
    terminal_progress,
    text_width,
)

if TYPE_CHECKING:
    from tadpipe.project import Project


@click.command()
@click.option(
    "--features",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Feature store; repeat to concatenate channels on a common time axis.",
)
@click.option(
    "--detectors", required=True, help="Names of `tadpipe list detectors`, with commas between."
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Runs of each detector, with the seeds --seed, --seed + 1, ...",
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    help="A preset, or a TOML file, for the detector it is of; repeatable.",
)
@click.option(
    "--preset-name",
    default=None,
    help="The others use <detector>/NAME.  [default: that of the project's preset, else default]",
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change every preset.")
@click.option("--backbone", default=None, help="Which features of the store, if it holds several.")
@click.option("--stride", type=int, default=None, help="Which stride, in frames.")
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option("--annotations", type=click.Path(path_type=Path), default=None, help="[the store's]")
@click.option("--subset", default=None, help="Subset to train on.  [default: by its usual names]")
@click.option("--test-subset", default=None, help="Subset that all of them are scored on.")
@class_scores_option("default: the project's")
@skip_unscored_option
@click.option(
    "--out",
    type=LocalPath(),
    default=Path("compare"),
    show_default=True,
    help="Folder of the runs and of the tables; repeat the command to go on there.",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Resamples of the videos in the paired bootstrap.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at the same time. Several are done sooner, but slow each other's clock down.",
)
@device_option
@seed_option
@dry_run_option
@shared_options
def compare(
    features: tuple[Path, ...],
    detectors: str,
    seeds: int,
    presets: tuple[str, ...],
    preset_name: str | None,
    sets: tuple[str, ...],
    backbone: str | None,
    stride: int | None,
    dataset: str | None,
    annotations: Path | None,
    subset: str | None,
    test_subset: str | None,
    class_scores: Path | None,
    skip_unscored: bool,
    out: Path,
    resamples: int,
    workers: int,
    device: str | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train or reuse several detectors with several seeds on one store, and compare them.

    Killed and repeated, it goes on. mAP comes as mean and standard deviation over the seeds,
    differences with a paired bootstrap over the videos.

    Example: tadpipe compare --features store/thumos.zarr --detectors actionformer,tridet
    """
    from tadpipe.pipeline.compare import compare as run
    from tadpipe.project import Project

    project = Project.find()
    comparison = run(
        features or (project.store,),
        detectors=[name.strip() for name in detectors.split(",") if name.strip()],
        seeds=seeds,
        out=out,
        presets=presets,
        preset_name=first(preset_name, _preset_name(project)) or "default",
        sets=sets,
        annotations=annotations or _own_annotations(features, project),
        dataset=first(dataset, project.dataset),
        subset=subset,
        test_subset=test_subset,
        backbone=backbone,
        stride=stride,
        class_scores=class_scores_file(class_scores, project.class_scores),
        skip_unscored=skip_unscored,
        device=first(device, project.device) or "auto",
        resamples=resamples,
        workers=workers,
        seed=seed,
        dry_run=dry_run,
        progress=terminal_progress(as_json),
    )
    emit(as_json, comparison.to_mapping(), comparison.text(text_width()))


def _preset_name(project: Project) -> str | None:
    """NAME of the project's preset <detector>/NAME; None for a file or without one."""
    preset = project.preset or ""
    return None if preset.endswith(".toml") else preset.rpartition("/")[2] or None


def _own_annotations(features: tuple[Path, ...], project: Project) -> Path | None:
    """The project's annotations for the project's own store; other stores keep their own copy."""
    own = project.store.resolve()
    return project.annotations if all(store.resolve() == own for store in features) else None
