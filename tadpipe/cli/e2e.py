"""tadpipe e2e: a backbone and a detector trained together on videos."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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


@click.command()
@click.option(
    "--videos",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File or folder of videos; repeatable.  [default: the project's]",
)
@click.option("--annotations", type=click.Path(path_type=Path), default=None, help="JSON or CSV.")
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option("--backbone", default=None, help="A name of `tadpipe list backbones`.")
@click.option(
    "--weights", default=None, help="Checkpoint file, run folder or random.  [default: download]"
)
@click.option(
    "--adapter",
    type=click.Choice(["tia", "ladder", "plain", "longlora", "none"]),
    default=None,
    help="Small trained modules in or beside the frozen backbone.  [default: the preset's]",
)
@click.option(
    "--tune",
    type=click.Choice(["adapter", "full", "frozen"]),
    default=None,
    help="What of the backbone trains.  [default: the preset's; adapter where --adapter is given]",
)
@click.option(
    "--egs",
    type=click.FloatRange(0, 1, min_open=True),
    default=None,
    help="Share of the clips that get gradients; 1 is the full gradient.",
)
@click.option(
    "--egs-strategy",
    type=click.Choice(["random", "grid", "block", "fps", "dpp", "gradient"]),
    default=None,
    help="How they are chosen.",
)
@click.option(
    "--unsampled",
    type=click.Choice(["forward", "store"]),
    default=None,
    help="Features of the other clips: encoded too, or read from --features.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    default=None,
    help="Feature store for --unsampled store.  [default: the project's]",
)
@click.option(
    "--representation",
    type=click.Choice(["snippet", "frame"]),
    default=None,
    help="A vector per clip, or a window as one line of clips.",
)
@click.option("--stride", type=click.IntRange(min=1), default=None, help="Frames per grid step.")
@click.option("--detector", default=None, help="A name of `tadpipe list detectors`.")
@click.option("--preset", default=None, help="A name of `tadpipe list presets`, or a TOML file.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a preset's value.")
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
@click.pass_context
def e2e(
    context: click.Context,
    videos: tuple[Path, ...],
    annotations: Path | None,
    dataset: str | None,
    backbone: str | None,
    weights: str | None,
    adapter: Literal["tia", "ladder", "plain", "longlora", "none"] | None,
    tune: Literal["adapter", "full", "frozen"] | None,
    egs: float | None,
    egs_strategy: str | None,
    unsampled: Literal["forward", "store"] | None,
    features: Path | None,
    representation: Literal["snippet", "frame"] | None,
    stride: int | None,
    detector: str | None,
    preset: str | None,
    sets: tuple[str, ...],
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
    """Train a backbone and a detector together and score them on the test subset.

    In a project folder everything has a default. The run folder serves `tadpipe detect --model`
    and `tadpipe extract --weights`.

    Example: tadpipe e2e --egs 0.3
    """
    from tadpipe.pipeline.e2e import train_e2e
    from tadpipe.project import Project

    project = Project.find()
    result = train_e2e(
        videos or [Path(str(project.need("videos", "--videos FILE or FOLDER")))],
        annotations=annotations or str(project.need("annotations", "--annotations FILE")),
        backbone=backbone or str(project.need("backbone", "--backbone")),
        weights=first(weights, project.weights),
        adapter=adapter,
        tune=tune,
        egs=egs,
        egs_strategy=egs_strategy,
        unsampled=unsampled,
        features=features or project.store,
        representation=representation,
        detector=first(detector, None if preset else project.detector),
        preset=first(preset, None if detector else project.preset),
        sets=sets,
        stride=first(stride, project.stride),
        out=out,
        runs=project.runs,
        resume=resume,
        dataset=first(dataset, project.dataset),
        subset=subset,
        test_subset=test_subset,
        val_subset=val_subset,
        class_scores=class_scores_file(class_scores, project.class_scores),
        skip_unscored=skip_unscored,
        device=first(device, project.device) or "auto",
        seed=seed,
        dry_run=dry_run,
        progress=terminal_progress(as_json),
    )
    emit(as_json, result.to_mapping(), result.text())
    context.exit(result.exit_code)
