"""tadpipe init: writes the project file of this folder."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click

from tadpipe.cli.options import dry_run_option, emit, shared_options


@click.command()
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option("--annotations", default=None, help="ActivityNet-style JSON file.")
@click.option("--videos", default="videos", show_default=True, help="Folder of videos.")
@click.option("--store", default=None, help="Feature store.  [default: store/<dataset>.zarr]")
@click.option("--backbone", default=None, help="A name of `tadpipe list backbones`.")
@click.option("--stride", type=click.IntRange(min=1), default=None, help="Frames between snippets.")
@click.option(
    "--detector", default="actionformer", show_default=True, help="The detector to train."
)
@click.option("--force", is_flag=True, help="Replace a project file that is there.")
@dry_run_option
@shared_options
def init(
    dataset: str | None,
    annotations: str | None,
    videos: str,
    store: str | None,
    backbone: str | None,
    stride: int | None,
    detector: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write tadpipe.toml, the settings of this project folder.

    Example: tadpipe init --videos videos --annotations labels.json --backbone videomae-b
    """
    from tadpipe.backbones import BACKBONES
    from tadpipe.config import build, write_atomically
    from tadpipe.datasets import DATASETS
    from tadpipe.detectors import DETECTORS
    from tadpipe.errors import ConfigError
    from tadpipe.project import FILE, Project, project_text
    from tadpipe.registry import known

    known("detector", DETECTORS, detector)
    if dataset is not None:
        known("dataset", DATASETS, dataset)
    if backbone is not None:
        known("backbone", BACKBONES, backbone)
    path = Path(FILE)
    if path.exists() and not force:
        raise ConfigError(
            "There is a project file already.", str(path.resolve()), "Use --force to replace it."
        )
    text = project_text(
        {
            "dataset": dataset,
            "annotations": annotations,
            "videos": videos,
            "store": store or f"store/{dataset or 'features'}.zarr",
            "runs": "runs",
            "backbone": backbone,
            "stride": stride,
            "detector": detector,
            "device": "auto",
        }
    )
    build(Project, tomllib.loads(text), FILE)  # what the next command would say of it
    if not dry_run:
        write_atomically(path, text)
    verb = "Would write" if dry_run else "Wrote"
    emit(
        as_json,
        {"file": str(path), "text": text, "written": not dry_run},
        f"{verb} {path}:\n{text}",
    )
