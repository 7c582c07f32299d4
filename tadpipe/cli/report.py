"""tadpipe report: runs on one self-contained page."""

from __future__ import annotations

from pathlib import Path

import click

from tadpipe.cli.options import (
    LocalPath,
    class_scores_file,
    class_scores_option,
    dry_run_option,
    emit,
    first,
    shared_options,
    skip_unscored_option,
    terminal_progress,
)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=LocalPath(),
    default=Path("report.html"),
    show_default=True,
    help="The page, one HTML file.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    default=None,
    help="What all runs are scored against.  [the runs' own, the project's]",
)
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option("--subset", default=None, help="Subset to score.  [the runs' test subset]")
@class_scores_option("default: none")
@skip_unscored_option
@click.option(
    "--videos",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder or file of videos to play and take pictures of; repeatable.  [the project's]",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Detections of each run and video that the page holds, at most.",
)
@dry_run_option
@shared_options
def report(
    runs: tuple[Path, ...],
    out: Path,
    annotations: Path | None,
    dataset: str | None,
    subset: str | None,
    class_scores: Path | None,
    skip_unscored: bool,
    videos: tuple[Path, ...],
    top_k: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Show RUNS on one page: scores, errors, every video with what was found in it.

    RUNS are run folders, folders that hold runs (as compare writes), or results JSON. Runs that
    differ in the seed alone become one with error bars. The page needs no network.

    Example: tadpipe report runs/actionformer runs/tridet --out report.html
    """
    from tadpipe.pipeline.report import write_report
    from tadpipe.pipeline.report_runs import find_runs
    from tadpipe.pipeline.run_settings import run_settings
    from tadpipe.project import Project

    project = Project.find()
    found = find_runs(runs)
    if annotations is None and all(run_settings(run).annotations is None for run in found):
        annotations, dataset = project.annotations, first(dataset, project.dataset)
    own_videos = (project.videos,) if project.videos and project.videos.is_dir() else ()
    result = write_report(
        found,
        out=out,
        annotations=annotations,
        dataset=dataset,
        subset=subset,
        class_scores=class_scores_file(class_scores, None),
        skip_unscored=skip_unscored,
        videos=videos or own_videos,
        top_k=top_k,
        dry_run=dry_run,
        progress=terminal_progress(as_json),
    )
    emit(as_json, result.to_mapping(), result.text())
