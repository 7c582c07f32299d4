"""tadpipe train-detector: a feature store into a trained detector."""

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
)

if TYPE_CHECKING:
    from tadpipe.project import Project


@click.command(name="train-detector")
@click.option(
    "--features",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Feature store; repeat to concatenate channels on a common time axis.",
)
@click.option("--detector", default=None, help="A name of `tadpipe list detectors`.")
@click.option("--preset", default=None, help="A name of `tadpipe list presets`, or a TOML file.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a preset's value.")
@click.option(
    "--dps",
    type=click.FloatRange(0, 1, min_open=True),
    default=None,
    help="Share of the proposals trained on (ETAD's detector proposal sampling).",
)
@click.option(
    "--dps-strategy", default=None, help="How they are chosen: random, grid, block, fps, dpp, ..."
)
@click.option("--backbone", default=None, help="Which features of the store, if it holds several.")
@click.option("--stride", type=int, default=None, help="Which stride, in frames.")
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option("--annotations", type=click.Path(path_type=Path), default=None, help="[the store's]")
@click.option("--subset", default=None, help="Subset to train on.  [default: by its usual names]")
@click.option("--test-subset", default=None, help="Subset scored once, after the last epoch.")
@click.option("--val-subset", default=None, help="Subset reported during training.")
@class_scores_option("default: the project's")
@skip_unscored_option
@click.option("--out", type=LocalPath(), default=None, help="Run folder.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out where it stopped.")
@device_option
@seed_option
@dry_run_option
@shared_options
def train_detector(
    features: tuple[Path, ...],
    detector: str | None,
    preset: str | None,
    sets: tuple[str, ...],
    dps: float | None,
    dps_strategy: str | None,
    backbone: str | None,
    stride: int | None,
    dataset: str | None,
    annotations: Path | None,
    subset: str | None,
    test_subset: str | None,
    val_subset: str | None,
    class_scores: Path | None,
    skip_unscored: bool,
    out: Path | None,
    resume: bool,
    device: str | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a detector on stored features and score it on the test subset.

    A store remembers its annotations, so --features is all that is needed.

    Example: tadpipe train-detector --features store/thumos.zarr --detector actionformer
    """
    from tadpipe.pipeline.train_detector import train_detector as run
    from tadpipe.project import Project

    project = Project.find()
    if dps is not None:
        sets = (*sets, f"model.dps_ratio={dps}")
    if dps_strategy is not None:
        sets = (*sets, f'model.dps_strategy="{dps_strategy}"')
    report = run(
        features or (project.store,),
        detector=first(detector, None if preset else project.detector),
        preset=first(preset, None if detector else project.preset),
        sets=sets,
        out=out,
        runs=project.runs,
        resume=resume,
        annotations=annotations or _own_annotations(features, project),
        dataset=first(dataset, project.dataset),
        subset=subset,
        test_subset=test_subset,
        val_subset=val_subset,
        backbone=backbone,
        stride=stride,
        class_scores=class_scores_file(class_scores, project.class_scores),
        skip_unscored=skip_unscored,
        device=first(device, project.device) or "auto",
        seed=seed,
        dry_run=dry_run,
        progress=terminal_progress(as_json),
    )
    emit(as_json, report.to_mapping(), report.text())


def _own_annotations(features: tuple[Path, ...], project: Project) -> Path | None:
    """The project's annotations for the project's own store; other stores keep their own copy."""
    own = project.store.resolve()
    return project.annotations if all(store.resolve() == own for store in features) else None
