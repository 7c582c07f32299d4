"""tadpipe store: look into a feature store, check it, clean it up; features in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from tadpipe.cli.options import (
    LocalPath,
    dry_run_option,
    emit,
    first,
    shared_options,
    terminal_progress,
)
from tadpipe.errors import ConfigError

STORE_ARGUMENT = click.argument(
    "path", metavar="[STORE]", required=False, type=click.Path(path_type=Path)
)


@click.group()
def store() -> None:
    """Look into a feature store, check it, clean it up; import and export features.

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
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Minutes that unused parts stay, for readers that are still at them.",
)
@dry_run_option
@shared_options
def gc(path: Path | None, grace: float, dry_run: bool, as_json: bool) -> None:
    """Free space: left-overs of killed writers, files of deleted and compacted videos.

    Example: tadpipe store gc store/thumos.zarr --dry-run
    """
    from tadpipe.pipeline import store_report

    report = store_report.gc(_path(path), dry_run=dry_run, grace_min=grace)
    emit(as_json, report, store_report.gc_text(report))


@store.command()
@click.argument("videos", nargs=-1, required=True)
@click.option(
    "--store",
    "path",
    type=click.Path(path_type=Path),
    default=None,
    help="The store.  [default: the project's]",
)
@click.option("--backbone", default=None, help="Only features of this backbone.")
@click.option("--stride", type=int, default=None, help="Only features of this stride, in frames.")
@dry_run_option
@shared_options
def delete(
    videos: tuple[str, ...],
    path: Path | None,
    backbone: str | None,
    stride: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Forget VIDEOS, named as in `store ls`; compact and gc free their space.

    Example: tadpipe store delete video_test_0000004 --store store/thumos.zarr
    """
    from tadpipe.pipeline import store_report

    report = store_report.delete(
        videos, path=_path(path), backbone=backbone, stride=stride, dry_run=dry_run
    )
    emit(as_json, report, store_report.delete_text(report))


@store.command()
@STORE_ARGUMENT
@dry_run_option
@shared_options
@click.pass_context
def compact(context: click.Context, path: Path | None, dry_run: bool, as_json: bool) -> None:
    """Write small parts, and parts with deleted videos, into full ones. Exit 3 if some are damaged.

    Readers and writers may go on; gc removes the old parts.

    Example: tadpipe store compact store/thumos.zarr
    """
    from tadpipe.pipeline import store_report

    report = store_report.compact(_path(path), dry_run=dry_run)
    emit(as_json, report, store_report.compact_text(report))
    context.exit(3 if report["damaged"] else 0)


@store.command()
@click.argument(
    "sources", metavar="SRC...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--into", type=click.Path(path_type=Path), required=True, help="The store; made if missing."
)
@dry_run_option
@shared_options
def merge(sources: tuple[Path, ...], into: Path, dry_run: bool, as_json: bool) -> None:
    """Unite stores: parts are linked, not written again; the same content is taken once.

    Where a name means two contents, the newer meaning counts.

    Example: tadpipe store merge store/shard-*.zarr --into store/thumos.zarr
    """
    from tadpipe.pipeline import store_report

    report = store_report.merge(sources, into=into, dry_run=dry_run)
    emit(as_json, report, store_report.merge_text(report))


@store.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--store", "path", type=click.Path(path_type=Path), default=None, help=".zarr or .h5 store."
)
@click.option("--convention", default=None, help="A known release, such as thumos14-i3d.")
@click.option("--backbone", default=None, help="What the features were computed with.")
@click.option("--channels", type=click.IntRange(min=1), default=None, help="C of the rows [T, C].")
@click.option("--stride", type=click.IntRange(min=1), default=None, help="Frames between rows.")
@click.option("--clip-len", type=click.IntRange(min=1), default=None, help="Frames per snippet.")
@click.option(
    "--frame-interval",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="A snippet took each n-th frame.",
)
@click.option("--fps", default=None, help="Frames per second; native = as annotated per video.")
@click.option("--offset", type=float, default=None, help="Frame of the centre of row 0.")
@click.option("--prefix", default=None, help="Of file names, absent in the annotations.")
@click.option("--key", default=None, help="Array of an npz file or a dict.  [default: feats]")
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option(
    "--annotations", type=click.Path(path_type=Path), default=None, help="Kept in the store."
)
@click.option(
    "--feature-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float32",
    show_default=True,
    help="How rows are stored.",
)
@dry_run_option
@shared_options
@click.pass_context
def import_(
    context: click.Context,
    files: tuple[Path, ...],
    path: Path | None,
    convention: str | None,
    backbone: str | None,
    channels: int | None,
    stride: int | None,
    clip_len: int | None,
    frame_interval: int,
    fps: str | None,
    offset: float | None,
    prefix: str | None,
    key: str | None,
    dataset: str | None,
    annotations: Path | None,
    feature_dtype: Literal["float16", "float32"],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put existing features (npy, npz, pt, pkl, csv, h5; files and folders) into a store.

    What they are must be stated, or be a known release's convention. Exit 3 if files failed.

    Example: tadpipe store import features/ --convention thumos14-i3d --annotations thumos14.json
    """
    from tadpipe.pipeline.feature_import import import_features
    from tadpipe.pipeline.feature_provenance import state_provenance
    from tadpipe.project import Project

    provenance = state_provenance(
        convention,
        backbone=backbone,
        channels=channels,
        stride=stride,
        clip_len=clip_len,
        frame_interval=frame_interval,
        fps=_rate(fps),
        offset=offset,
        prefix=prefix,
        key=key,
        feature_dtype=feature_dtype,
    )
    project = Project.find()
    report = import_features(
        files,
        store=path or project.store,
        provenance=provenance,
        annotations=first(annotations, project.annotations),
        dataset=first(dataset, project.dataset),
        dry_run=dry_run,
        progress=terminal_progress(as_json),
    )
    emit(as_json, report.to_mapping(), report.text())
    context.exit(report.exit_code)


@store.command("export")
@STORE_ARGUMENT
@click.option("--out", type=LocalPath(), required=True, help="Folder, or the .h5 file.")
@click.option(
    "--layout",
    type=click.Choice(["npy", "npz", "h5"]),
    default="npy",
    show_default=True,
    help="One file per video [T, C], npz with the key feats; or one h5 of all.",
)
@click.option("--backbone", default=None, help="Only features of this backbone.")
@click.option("--stride", type=int, default=None, help="Features at this stride, in frames.")
@click.option("--prefix", default="", help="Put before every name, as v_ of ActivityNet.")
@dry_run_option
@shared_options
@click.pass_context
def export(
    context: click.Context,
    path: Path | None,
    out: Path,
    layout: Literal["npy", "npz", "h5"],
    backbone: str | None,
    stride: int | None,
    prefix: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a store's features as files that other trainers read. Exit 3 if some failed.

    Example: tadpipe store export store/thumos.zarr --out features --layout npy
    """
    from tadpipe.pipeline.feature_export import export_features

    report = export_features(
        _path(path),
        out=out,
        layout=layout,
        backbone=backbone,
        stride=stride,
        prefix=prefix,
        dry_run=dry_run,
        progress=terminal_progress(as_json),
    )
    emit(as_json, report.to_mapping(), report.text())
    context.exit(report.exit_code)


def _rate(text: str | None) -> float | Literal["native"] | None:
    """--fps: a number, or the word native."""
    if text is None:
        return None
    if text == "native":
        return "native"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            "--fps is a number or the word native.", f"--fps {text}", "Give --fps 30, for example."
        ) from None


def _path(path: Path | None) -> Path:
    from tadpipe.project import Project

    return path or Project.find().store
