"""tadpipe evaluate: detections against annotations."""

from __future__ import annotations

from pathlib import Path

import click

from tadpipe.cli.options import (
    LocalPath,
    class_scores_file,
    class_scores_option,
    emit,
    first,
    rule_option,
    shared_options,
    skip_unscored_option,
    text_width,
)

PROTOCOLS = ("opentad", "official", "activitynet", "actionformer", "epic")


@click.command()
@click.argument("detections", type=click.Path(path_type=Path))
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    default=None,
    help="JSON, or EPIC-Kitchens' or Ego4D's own files.  [the run's, the project's]",
)
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option("--subset", default=None, help="Subset to score.  [the data set's test subset]")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default=None,
    help="Whose rules to score by.  [default: the data set's, else opentad]",
)
@click.option(
    "--tiou",
    "tious",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    help="tIoU threshold; repeatable.  [default: the data set's, else 0.3 to 0.7]",
)
@click.option(
    "--blocked",
    type=click.Path(path_type=Path),
    default=None,
    help="Videos to leave out: JSON list, or one per line.  [default: the data set's]",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 5),
    show_default=True,
    help="k of Recall@kx; repeatable.",
)
@click.option(
    "--max-an",
    type=click.IntRange(min=1),
    default=None,
    help="Also AR@AN up to this average number of proposals per video.",
)
@click.option("--per-class", is_flag=True, help="Also print every class.")
@click.option(
    "--skip-defects", is_flag=True, help="Leave out annotation entries with errors, do not stop."
)
@class_scores_option("default: none")
@skip_unscored_option
@rule_option
@click.option(
    "--errors",
    is_flag=True,
    help="Also say what is wrong: kinds of errors and their cost, misses, calibration.",
)
@click.option(
    "--bins",
    default=None,
    help="Of length, coverage, instances, with --errors: activitynet, thumos14, quantiles or a "
    "JSON file.  [default: the data set's, else quantiles]",
)
@click.option(
    "--out",
    type=LocalPath(),
    default=None,
    help="Write the result, JSON; in a folder as eval.json and errors.json.",
)
@shared_options
def evaluate(
    detections: Path,
    annotations: Path | None,
    dataset: str | None,
    subset: str | None,
    protocol: str | None,
    tious: tuple[float, ...],
    blocked: Path | None,
    top_k: tuple[int, ...],
    max_an: int | None,
    per_class: bool,
    skip_defects: bool,
    class_scores: Path | None,
    skip_unscored: bool,
    sets: tuple[str, ...],
    errors: bool,
    bins: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score DETECTIONS (a results JSON or a run folder): mAP at every tIoU, and recall.

    A run folder knows its annotations, data set and test subset.

    Example: tadpipe evaluate detections.json --annotations thumos14.json --dataset thumos14
    """
    from tadpipe.pipeline.evaluate import evaluate as run
    from tadpipe.pipeline.run_settings import run_settings
    from tadpipe.project import Project

    if annotations is None and run_settings(detections).annotations is None:
        project = Project.find()
        annotations, dataset = project.annotations, first(dataset, project.dataset)
    result = run(
        detections,
        annotations=annotations,
        dataset=dataset,
        subset=subset,
        protocol=protocol,
        tious=tious or None,
        blocked=blocked,
        top_k=top_k,
        max_an=max_an,
        skip_defects=skip_defects,
        class_scores=class_scores_file(class_scores, None),
        skip_unscored=skip_unscored,
        sets=sets,
        errors=errors,
        bins=bins,
        out=out,
    )
    emit(as_json, result.to_mapping(), result.text(per_class, text_width()))
