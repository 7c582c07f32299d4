"""tadpipe checkpoint: official checkpoints of detectors and backbones, looked at and imported."""

from __future__ import annotations

from pathlib import Path

import click

from tadpipe.cli.options import (
    LocalPath,
    device_option,
    dry_run_option,
    emit,
    first,
    shared_options,
    terminal_progress,
)

path_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def checkpoint() -> None:
    """Look at weight files, and import those of the official releases."""


@checkpoint.command(name="inspect")
@path_argument
@shared_options
def inspect_file(file: Path, as_json: bool) -> None:
    """Say what FILE is: which detector or backbone, its layout, sizes and fitting presets.

    Nothing in the file is run.

    Example: tadpipe checkpoint inspect epoch_039.pth.tar
    """
    from tadpipe.pipeline.checkpoint_inspect import inspect_checkpoint

    found = inspect_checkpoint(file)
    emit(as_json, found.to_mapping(), found.text())


@checkpoint.command(name="import")
@path_argument
@click.option(
    "--from",
    "source",
    default=None,
    help="The release: a detector, a backbone or a family of backbones.  [default: as the keys "
    "tell, for detectors]",
)
@click.option("--preset", default=None, help="States what neither shapes nor --config say.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="The release's own YAML configuration.",
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a preset's value.")
@click.option(
    "--weights",
    type=click.Choice(["ema", "plain"]),
    default=None,
    help="What detection uses.  [default: averaged ones, if there are any]",
)
@click.option(
    "--features",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Store of the features it was trained on; repeatable.  [the project's, if there is one]",
)
@click.option("--backbone", default=None, help="Which features of the store, if it holds several.")
@click.option("--stride", type=int, default=None, help="Which stride, in frames.")
@click.option(
    "--convention",
    "conventions",
    multiple=True,
    help="Instead of a store: the name of known released features, as for store import.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    default=None,
    help="State the labels in the order of the classes, by `label_id`.  [the store's]",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    default=None,
    help="File with one label per line, in the order of the official classes.",
)
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option("--test-subset", default=None, help="Subset that --score and evaluate look at.")
@click.option("--score", is_flag=True, help="Detect on the test subset of the store, and score it.")
@click.option(
    "--out",
    type=LocalPath(),
    default=None,
    help="Run folder; of a backbone, .safetensors file.",
)
@device_option
@dry_run_option
@shared_options
def import_file(
    file: Path,
    source: str | None,
    preset: str | None,
    config: Path | None,
    sets: tuple[str, ...],
    weights: str | None,
    features: tuple[Path, ...],
    backbone: str | None,
    stride: int | None,
    conventions: tuple[str, ...],
    annotations: Path | None,
    labels: Path | None,
    dataset: str | None,
    test_subset: str | None,
    score: bool,
    out: Path | None,
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a run folder of an official detector checkpoint FILE, or a backbone of our own format.

    The model is read from the checkpoint's shapes and the official configuration; what neither
    says comes from the preset, the features and the annotations, and is asked for where it is
    missing.

    Example: tadpipe checkpoint import epoch_039.pth.tar --from tridet
    --preset tridet/thumos14_i3d --features store/thumos.zarr --out runs/tridet_official
    """
    from tadpipe.pipeline.backbone_import import import_backbone, is_backbone
    from tadpipe.pipeline.checkpoint_import import import_detector
    from tadpipe.pipeline.feature_tables import is_there
    from tadpipe.project import Project

    if source is not None and is_backbone(source):
        for_detectors = {
            "--preset": preset,
            "--config": config,
            "--set": sets,
            "--weights": weights,
            "--features": features,
            "--backbone": backbone,
            "--stride": stride,
            "--convention": conventions,
            "--annotations": annotations,
            "--labels": labels,
            "--dataset": dataset,
            "--test-subset": test_subset,
            "--score": score,
            "--device": device,
        }
        given = [option for option, value in for_detectors.items() if value]
        if given:
            raise click.UsageError(f"{', '.join(given)}: only for checkpoints of detectors.")
        done = import_backbone(file, source, out=out, dry_run=dry_run)
        emit(as_json, done.to_mapping(), done.text())
        return
    project = Project.find()
    if not features and not conventions and is_there(project.store):
        features = (project.store,)
        annotations = first(annotations, project.annotations)
    imported = import_detector(
        file,
        source,
        preset=preset,
        config=config,
        sets=sets,
        weights=weights,
        features=features,
        backbone=backbone,
        stride=stride,
        conventions=conventions,
        annotations=annotations,
        labels=labels,
        dataset=first(dataset, project.dataset),
        test_subset=test_subset,
        out=out,
        runs=project.runs,
        score=score,
        device=first(device, project.device) or "auto",
        dry_run=dry_run,
        progress=terminal_progress(as_json),
    )
    emit(as_json, imported.to_mapping(), imported.text())
