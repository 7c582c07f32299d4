"""tadpipe validate: everything wrong with a project, before anything runs."""

from __future__ import annotations

from pathlib import Path

import click

from tadpipe.cli.options import (
    class_scores_file,
    class_scores_option,
    emit,
    first,
    shared_options,
    terminal_progress,
    text_width,
)


@click.command()
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    default=None,
    help="JSON, or EPIC-Kitchens' or Ego4D's own files.  [the project's, the store's copy]",
)
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option(
    "--videos",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Files and folders; repeatable.  [the project's]",
)
@click.option(
    "--features",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Feature store; repeatable.  [the project's, if there is one yet]",
)
@click.option("--detector", default=None, help="A name of `tadpipe list detectors`.")
@click.option("--preset", default=None, help="A name of `tadpipe list presets`, or a TOML file.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a preset's value.")
@click.option("--backbone", default=None, help="Which features of the store, if it holds several.")
@click.option("--stride", type=click.IntRange(min=1), default=None, help="Which stride, in frames.")
@click.option("--subset", default=None, help="Subset to train on.  [default: by its usual names]")
@click.option("--test-subset", default=None, help="Subset to score on.")
@click.option("--val-subset", default=None, help="Subset reported during training.")
@class_scores_option("default: the project's")
@click.option("--deep", is_flag=True, help="Read every stored row and compare its checksum.")
@click.option(
    "--decode-timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds without a sign of life after which a file counts as unreadable.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Places printed of each kind of finding; 0: all. --json has all.",
)
@shared_options
def validate(
    annotations: Path | None,
    dataset: str | None,
    videos: tuple[Path, ...],
    features: tuple[Path, ...],
    detector: str | None,
    preset: str | None,
    sets: tuple[str, ...],
    backbone: str | None,
    stride: int | None,
    subset: str | None,
    test_subset: str | None,
    val_subset: str | None,
    class_scores: Path | None,
    deep: bool,
    decode_timeout: float,
    limit: int,
    as_json: bool,
) -> int:
    """Find everything wrong with annotations, splits, videos, features and preset in one run.

    Says what would fit the lengths of the actions, too. Writes nothing. Exit code 2 if there is
    an error; 0 with warnings and notes only.

    Example: tadpipe validate --annotations labels.json --videos videos
    """
    from tadpipe.pipeline.feature_tables import is_there
    from tadpipe.pipeline.validate import validate as run
    from tadpipe.project import Project

    project = Project.find()
    named = [store.resolve() for store in features]
    # Another store than the project's has annotations and videos of its own.
    own = Project() if any(store != project.store.resolve() for store in named) else project
    stored = features or ((project.store,) if is_there(project.store) else ())
    report = run(
        annotations=first(annotations, own.annotations),
        dataset=first(dataset, own.dataset),
        videos=videos or (() if own.videos is None else (own.videos,)),
        features=stored,
        detector=first(detector, None if preset else project.detector),
        preset=first(preset, None if detector else project.preset),
        sets=sets,
        backbone=backbone,
        stride=first(stride, None if stored else project.stride),
        subset=subset,
        test_subset=test_subset,
        val_subset=val_subset,
        class_scores=class_scores_file(class_scores, own.class_scores),
        deep=deep,
        decode_timeout_sec=decode_timeout,
        progress=terminal_progress(as_json),
    )
    emit(as_json, report.to_mapping(), report.text(text_width(), limit=limit))
    return report.exit_code
