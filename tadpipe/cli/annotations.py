"""tadpipe annotations: labels of other programs in, annotations and detections out."""

from __future__ import annotations

from pathlib import Path

import click

from tadpipe.cli.options import LocalPath, dry_run_option, emit, shared_options

SOURCES = ("csv", "elan", "via", "cvat", "label-studio", "fiftyone", "subtitles")
TARGETS = (
    "csv",
    "cvat",
    "elan",
    "via",
    "label-studio",
    "fiftyone",
    "srt",
    "vtt",
    "activitynet",
    "ego4d",
    "epic",
)


@click.group(name="annotations")
def label_files() -> None:
    """Take labels from the programs they were made with, and give them back."""


@label_files.command(name="import")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source_format",
    type=click.Choice(SOURCES),
    default=None,
    help="Format of all files.  [default: by suffix and content]",
)
@click.option("--out", type=LocalPath(), required=True, help="JSON to write.")
@click.option(
    "--videos",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Files and folders that give durations and the times of frames; repeatable.",
)
@click.option(
    "--fps",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Frame rate of labels that count frames, for videos that are not at hand.",
)
@click.option(
    "--subset", default="training", show_default=True, help="Of videos whose file names none."
)
@click.option("--tier", default=None, help="Only this tier of ELAN's files.  [default: all]")
@dry_run_option
@shared_options
def import_labels(
    sources: tuple[Path, ...],
    source_format: str | None,
    out: Path,
    videos: tuple[Path, ...],
    fps: float | None,
    subset: str,
    tier: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write annotations (JSON) of label files of other programs.

    Example: tadpipe annotations import *.eaf --videos videos --out labels.json
    """
    from tadpipe.pipeline.labels import import_labels as run

    report = run(
        sources,
        out,
        source_format=source_format,
        videos=videos,
        fps=fps,
        subset=subset,
        tier=tier,
        dry_run=dry_run,
    )
    emit(as_json, report.to_mapping(), report.text())


@label_files.command(name="export")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="Format.")
@click.option(
    "--out",
    type=LocalPath(),
    required=True,
    help="File to write; a folder for cvat, elan, srt and vtt with several videos.",
)
@click.option(
    "--videos",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Files and folders; needed for cvat, which counts frames.",
)
@click.option(
    "--nouns",
    type=click.Path(path_type=Path),
    default=None,
    help="For epic: detections of nouns; SOURCE holds those of verbs.",
)
@click.option(
    "--supervision",
    default=None,
    metavar="PT,TL,TD",
    help="For epic: levels 0..5 of pre-training, training labels and training data.",
)
@dry_run_option
@shared_options
def export_labels(
    source: Path,
    target: str,
    out: Path,
    videos: tuple[Path, ...],
    nouns: Path | None,
    supervision: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write SOURCE, annotations or detections (JSON), as another program reads them.

    Example: tadpipe annotations export runs/first/detections.json --to elan --out eaf
    """
    from tadpipe.pipeline.labels import export_labels as run

    report = run(
        source,
        out,
        target,
        videos=videos,
        nouns=nouns,
        supervision=_levels(supervision),
        dry_run=dry_run,
    )
    emit(as_json, report.to_mapping(), report.text())


def _levels(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(
            f"{text} is not three numbers 0..5, for example 1,3,3.", param_hint="--supervision"
        )
    first, second, third = map(int, parts)
    return first, second, third
