"""tadpipe demo: the whole pipeline on videos made on the spot."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from tadpipe.cli.options import (
    LocalPath,
    device_option,
    dry_run_option,
    emit,
    seed_option,
    shared_options,
    terminal_progress,
    text_colour,
)

NEXT = """\
To go on, in this folder ({command} needs no further options there):
  cd {folder}
  {command} detect {video} --model runs/e2e --out found.srt
  {command} evaluate runs/e2e --errors
  {command} compare --detectors {detectors} --seeds 2
With your own videos and an ActivityNet-style JSON, in a new folder:
  {command} init --videos VIDEOS --annotations LABELS.json --backbone videomae-b
  {command} extract
  {command} train-detector
"""

PLAN_VIDEOS = """\
Would make in {folder}:
  {videos} videos, {minutes:g} minutes ({videos_there} are there)"""

PLAN = (
    PLAN_VIDEOS
    + """
  a backbone, pretrained for {pretraining_steps} steps (there: {backbone_there})
  a feature store of all videos (there: {store_there})
  a run of each detector ({detectors}) on frozen and on tuned features, a run end to end and its
  control (begun: {runs_there})
  the scores of the held-out videos and a picture of them"""
)


@click.command()
@click.option(
    "--out",
    type=LocalPath(),
    default=Path("demo"),
    show_default=True,
    help="Project folder to make; a second run goes on where the first stopped.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Length of all videos together.  [default: 22]",
)
@click.option(
    "--detectors",
    default="actionformer",
    show_default=True,
    help="Detectors to train on the shared features, separated by commas.",
)
@click.option(
    "--videos-only",
    is_flag=True,
    help="Make the videos and their annotations, and stop: material to try other commands on.",
)
@device_option
@seed_option
@dry_run_option
@shared_options
def demo(
    out: Path,
    minutes: float | None,
    detectors: str,
    videos_only: bool,
    device: str | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make videos, pretrain a small backbone, extract, train, tune end to end, detect and score.

    Example: tadpipe demo --out demo
    """
    from tadpipe.pipeline.demo import demo as run
    from tadpipe.pipeline.demo import plan_demo
    from tadpipe.pipeline.demo_videos import DEMO_MINUTES, make_demo_videos

    names = [name.strip() for name in detectors.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("name at least one detector", param_hint="--detectors")
    minutes = DEMO_MINUTES if minutes is None else minutes
    plan = plan_demo(out, minutes=minutes, seed=seed, detectors=names)
    if dry_run:
        if videos_only:
            plan = {key: plan[key] for key in ("folder", "videos", "videos_there")}
        text = PLAN_VIDEOS if videos_only else PLAN
        emit(as_json, plan, text.format(**plan, minutes=minutes, detectors=", ".join(names)))
        return
    progress = terminal_progress(as_json)
    if videos_only:
        path = make_demo_videos(out, seed=seed, minutes=minutes, progress=progress)
        emit(as_json, {"annotations": str(path)}, f"wrote {path}")
        return
    report = run(
        out,
        minutes=minutes,
        seed=seed,
        detectors=names,
        device=device or "auto",
        progress=progress,
    )
    width = shutil.get_terminal_size().columns
    text = report.text(width=min(width, 120), colour=text_colour())
    assert report.example is not None
    after = NEXT.format(
        command=_command(),
        folder=out,
        detectors="actionformer,tridet",
        video=f"videos/{report.example.name}.mp4",
    )
    emit(as_json, report.to_mapping(), f"{text}\n\n{after}")


def _command() -> str:
    """How the shell finds tadpipe: by its name, or by the path it was called with."""
    return "tadpipe" if shutil.which("tadpipe") else str(Path(sys.argv[0]).absolute())
