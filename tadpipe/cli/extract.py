"""tadpipe extract: videos into the feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from tadpipe.cli.options import (
    device_option,
    dry_run_option,
    emit,
    first,
    seed_option,
    shared_options,
    terminal_progress,
)


@click.command()
@click.argument("videos", nargs=-1, type=click.Path(path_type=Path))
@click.option("--backbone", default=None, help="A name of `tadpipe list backbones`.")
@click.option("--recipe", default=None, help="Make released features again, as activitynet-tsp.")
@click.option(
    "--weights", default=None, help="Checkpoint file, run folder or random.  [default: download]"
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=None,
    help=".zarr or .h5 store.  [default: in the run that --weights names, else the project's]",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    default=None,
    help="Frames between snippets.  [default: 4]",
)
@click.option(
    "--clip-len",
    type=click.IntRange(min=1),
    default=None,
    help="Frames per snippet.  [the backbone's]",
)
@click.option(
    "--frame-interval", type=int, default=None, help="Take each n-th frame.  [default: 1]"
)
@click.option(
    "--anchor",
    type=click.Choice(["start", "centre", "cell"]),
    default=None,
    help="Where snippets sit: from frame 0 on; centred on i*stride; on the middle of a stride.  "
    "[default: start]",
)
@click.option("--fps", type=float, default=None, help="Resample to this rate by time stamps.")
@click.option("--pixels", default=None, help="Named pixel recipe.  [default: the backbone's]")
@click.option(
    "--flow",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of optical flow, for i3d-flow.  [default: TV-L1 by OpenCV]",
)
@click.option("--dataset", default=None, help="A name of `tadpipe list datasets`.")
@click.option(
    "--annotations", type=click.Path(path_type=Path), default=None, help="Kept in the store."
)
@device_option
@click.option(
    "--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True
)
@click.option("--batch", type=click.IntRange(min=1), default=None, help="Clips per forward pass.")
@click.option("--compile", "compile_model", is_flag=True, help="torch.compile the backbone.")
@click.option(
    "--feature-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="How rows are stored.",
)
@click.option("--decoder", type=click.Choice(["pyav", "decord"]), default="pyav", show_default=True)
@click.option(
    "--decoders",
    type=click.IntRange(min=1),
    default=None,
    help="Processes that decode, each a video of its own.  [default: 1; 4 on a GPU]",
)
@click.option(
    "--decode-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds without a frame after which a decoder counts as hung.",
)
@click.option(
    "--on-truncated",
    type=click.Choice(["skip", "keep"]),
    default="skip",
    show_default=True,
    help="A file that ends early: leave it out, or keep what can be decoded.",
)
@click.option("--shard", default=None, metavar="I/N", help="Job I of N takes every N-th video.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=None,
    help="Processes that share the videos, a GPU each.  [default: this one]",
)
@click.option(
    "--scheduler",
    default=None,
    metavar="ADDRESS",
    help="Of a Dask cluster that does the work, as tcp://node1:8786, or its scheduler file.",
)
@seed_option
@dry_run_option
@click.option(
    "--calibrate",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds, at most, that --dry-run measures this machine to state hours; 0: none.",
)
@shared_options
@click.pass_context
def extract(
    context: click.Context,
    videos: tuple[Path, ...],
    backbone: str | None,
    recipe: str | None,
    weights: str | None,
    store: Path | None,
    stride: int | None,
    clip_len: int | None,
    frame_interval: int | None,
    anchor: Literal["start", "centre", "cell"] | None,
    fps: float | None,
    pixels: str | None,
    flow: Path | None,
    dataset: str | None,
    annotations: Path | None,
    device: str | None,
    dtype: Literal["fp32", "bf16", "fp16"],
    batch: int | None,
    compile_model: bool,
    feature_dtype: Literal["float16", "float32"],
    decoder: Literal["pyav", "decord"],
    decoders: int | None,
    decode_timeout: float,
    on_truncated: Literal["skip", "keep"],
    shard: str | None,
    workers: int | None,
    scheduler: str | None,
    seed: int,
    dry_run: bool,
    calibrate: float,
    as_json: bool,
) -> None:
    """Extract features of VIDEOS (files and folders) into a store; what is there is reused.

    In a project folder everything but the backbone has a default.

    Example: tadpipe extract videos/ --backbone videomae-b --store store/my.zarr
    """
    from tadpipe.pipeline.extract import extract as run
    from tadpipe.pipeline.run_folder import usual_store
    from tadpipe.project import Project

    project = Project.find()
    # an end-to-end run and a recipe know the rest
    decided = recipe is not None or (weights is not None and Path(weights).is_dir())
    report = run(
        videos or [Path(str(project.need("videos", "VIDEOS (files or folders)")))],
        store=store or usual_store(weights, project.store),
        backbone=backbone or (None if decided else str(project.need("backbone", "--backbone"))),
        recipe=recipe,
        weights=first(weights, project.weights),
        stride=stride or (None if decided else project.stride),
        clip_len=clip_len,
        frame_interval=frame_interval,
        anchor=anchor,
        fps=fps,
        pixels=pixels,
        flow=flow,
        dataset=first(dataset, project.dataset),
        annotations=first(annotations, project.annotations),
        device=first(device, project.device) or "auto",
        dtype=dtype,
        batch=batch,
        compile=compile_model,
        feature_dtype=feature_dtype,
        decoder=decoder,
        decoders=decoders,
        decode_timeout_sec=decode_timeout,
        on_truncated=on_truncated,
        shard_of=_shard(shard),
        workers=workers,
        scheduler=scheduler,
        seed=seed,
        dry_run=dry_run,
        calibrate_sec=calibrate,
        progress=terminal_progress(as_json),
    )
    emit(as_json, report.to_mapping(), report.text())
    context.exit(report.exit_code)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise click.BadParameter(f"{text} is not I/N, for example 0/8.", param_hint="--shard")
    return int(index), int(count)
