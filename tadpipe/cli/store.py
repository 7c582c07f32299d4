"""tadpipe store: look into a feature store, check it, clean it up."""

from __future__ import annotations

from pathlib import Path

import click

from tadpipe.cli.options import dry_run_option, emit, shared_options

STORE_ARGUMENT = click.argument(
    "path", metavar="[STORE]", required=False, type=click.Path(path_type=Path)
)


@click.group()
def store() -> None:
    """Look into a feature store, check it, clean it up.

    STORE defaults to the project's.
    """


@store.command()
@STORE_ARGUMENT
@shared_options
def info(path: Path | None, as_json: bool) -> None:
    """What features a store holds, of how many videos.

    Example: tadpipe store info store/thumos.zarr
    """
    from tadpipe.pipeline import store_report

    report = store_report.info(_path(path))
    emit(as_json, report, store_report.info_text(report))


@store.command()
@STORE_ARGUMENT
@click.option("--backbone", default=None, help="Only features of this backbone.")
@click.option("--stride", type=int, default=None, help="Only features of this stride, in frames.")
@shared_options
def ls(path: Path | None, backbone: str | None, stride: int | None, as_json: bool) -> None:
    """The videos of a store: rows, seconds, rate, content hash.

    Example: tadpipe store ls store/thumos.zarr
    """
    from tadpipe.pipeline import store_report

    rows = store_report.ls(_path(path), backbone=backbone, stride=stride)
    emit(as_json, {"videos": rows}, store_report.ls_text(rows))


@store.command()
@STORE_ARGUMENT
@click.option("--deep", is_flag=True, help="Read every row: checksums, NaN, outliers.")
@click.option(
    "--drop-damaged", is_flag=True, help="Forget damaged videos, so that extract makes them again."
)
@shared_options
@click.pass_context
def verify(
    context: click.Context, path: Path | None, deep: bool, drop_damaged: bool, as_json: bool
) -> None:
    """Check a store; every damaged video is named. Exit 1 if something is damaged.

    Example: tadpipe store verify store/thumos.zarr --deep
    """
    from tadpipe.pipeline import store_report

    report = store_report.verify(_path(path), deep=deep, drop_damaged=drop_damaged)
    emit(as_json, report, store_report.verify_text(report))
    context.exit(1 if report["damaged"] and not report["dropped"] else 0)


@store.command()
@STORE_ARGUMENT
@shared_options
def status(path: Path | None, as_json: bool) -> None:
    """How far extraction is: done, reused and failed videos of the ledger, reasons, rates.

    Example: tadpipe store status store/thumos.zarr
    """
    from tadpipe.pipeline import store_report

    report = store_report.status(_path(path))
    emit(as_json, report, store_report.status_text(report))


@store.command()
@STORE_ARGUMENT
@dry_run_option
@shared_options
def gc(path: Path | None, dry_run: bool, as_json: bool) -> None:
    """Remove what no commit refers to: left-overs of killed writers, deleted videos' files.

    Example: tadpipe store gc store/thumos.zarr --dry-run
    """
    from tadpipe.pipeline import store_report

    report = store_report.gc(_path(path), dry_run=dry_run)
    emit(as_json, report, store_report.gc_text(report))


def _path(path: Path | None) -> Path:
    from tadpipe.project import Project

    return path or Project.find().store
