"""tadpipe detect: your own videos into action segments, in one command."""

from __future__ import annotations

from pathlib import Path

import click

from tadpipe.cli.options import (
    LocalPath,
    class_scores_file,
    class_scores_option,
    device_option,
    dry_run_option,
    emit,
    first,
    rule_option,
    shared_options,
    skip_unscored_option,
    terminal_progress,
    text_colour,
    text_width,
)


@click.command()
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    type=click.Path(path_type=Path),
    help="Run folder of train-detector or e2e.",
)
@click.option(
    "--out",
    multiple=True,
    type=LocalPath(),
    help="File to write, .json, .csv, .srt or .vtt; repeatable.  [default: detections.json]",
)
@click.option("--min-score", type=click.FloatRange(0, 1), default=0.0, show_default=True)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=None, help="Most detections per video."
)
@click.option("--weights", default=None, help="Backbone weights.  [default: as when trained]")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=None,
    help="Features, reused.  [default: in the run of a tuned model, else the project's]",
)
@class_scores_option("default: the project's")
@skip_unscored_option
@rule_option
@device_option
@dry_run_option
@shared_options
@click.pass_context
def detect(
    context: click.Context,
    videos: tuple[Path, ...],
    model: Path,
    out: tuple[Path, ...],
    min_score: float,
    top_k: int | None,
    weights: str | None,
    store: Path | None,
    class_scores: Path | None,
    skip_unscored: bool,
    sets: tuple[str, ...],
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find actions in VIDEOS (files and folders) with a trained model.

    Features are extracted with the recipe the model carries; what is in the store is reused.

    Example: tadpipe detect "my video.mp4" --model runs/actionformer --out my.srt
    """
    from tadpipe.pipeline.detect_videos import detect as run
    from tadpipe.pipeline.run_folder import usual_store
    from tadpipe.project import Project

    project = Project.find()
    report = run(
        videos,
        model=model,
        out=out or (Path("detections.json"),),
        min_score=min_score,
        top_k=top_k,
        weights=weights,
        usual_weights=project.weights,
        store=store or usual_store(model, project.store),
        class_scores=class_scores_file(class_scores, project.class_scores),
        skip_unscored=skip_unscored,
        sets=sets,
        device=first(device, project.device) or "auto",
        dry_run=dry_run,
        progress=terminal_progress(as_json),
    )
    text = report.text(width=text_width(), colour=text_colour())
    emit(as_json, report.to_mapping(), text)
    context.exit(report.exit_code)
