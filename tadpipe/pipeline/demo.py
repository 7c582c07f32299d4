"""The whole pipeline on data made on the spot: what `tadpipe demo` does.

Order: videos -> backbone (pretrained on clips of the training videos) -> features -> detectors
-> detections of the held-out videos -> scores, beside two baselines -> pictures. Every stage but
the second is the public function of the same name; repeating a stage reuses what is finished.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tadpipe.annotations import Annotations, Detections, Video, load_annotations
from tadpipe.config import write_atomically
from tadpipe.detectors import DETECTORS
from tadpipe.errors import ConfigError
from tadpipe.pipeline.demo_backbone import make_demo_backbone
from tadpipe.pipeline.demo_baselines import chance_detections, trivial_detections
from tadpipe.pipeline.demo_report import PICTURE_VIDEOS, DemoReport
from tadpipe.pipeline.demo_videos import (
    DEMO_MINUTES,
    VIDEO_FOLDER,
    DemoVideoSettings,
    make_demo_videos,
    plan_videos,
)
from tadpipe.pipeline.detect_videos import detect
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.evaluate import evaluate
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.presets import load_preset
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.train_detector import train_detector
from tadpipe.project import FILE as PROJECT_FILE
from tadpipe.project import project_text
from tadpipe.registry import known
from tadpipe.report.timeline import VideoTimeline, timeline_png
from tadpipe.training.pretrain import PretrainConfig

BACKBONE = "videomae-tiny"
PRESET = "demo"  # of every detector
STORE = Path("store", "demo.zarr")
RUNS = Path("runs")
WEIGHTS_FILE = "videomae-tiny.safetensors"
SETTINGS_FILE = "demo.json"
RESULTS_FILE = "results.json"
PICTURE_FILE = "timeline.png"
CHANCE_SEEDS = 5  # over which the chance level is a mean
DEFAULT_SEED = 0  # the numbers were tuned on other seeds, see docs/demo.md


def demo(
    out: str | Path = "demo",
    *,
    minutes: float = DEMO_MINUTES,
    seed: int = DEFAULT_SEED,
    detectors: Sequence[str] = ("actionformer",),
    pretrain: PretrainConfig | None = None,
    sets: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = SILENT,
) -> DemoReport:
    """Make a small benchmark and run the pipeline on it.

    Args:
        out: project folder; a second call goes on where the first one stopped.
        minutes: length of all videos together.
        seed: of the videos, the pretraining and the detectors.
        detectors: names with a preset "<detector>/demo".
        pretrain: other settings of the pretraining, for tests.
        sets: changes of the detectors' presets, as "training.epochs=20".
    Raises:
        ConfigError: unknown detector, or a folder that holds a demo with other settings.
    """
    folder = Path(out)
    pretraining = pretrain or PretrainConfig()
    settings = _settings(DemoVideoSettings(seed, minutes), detectors, pretraining, sets)
    _check_folder(folder, settings)
    write_atomically(folder / SETTINGS_FILE, json.dumps(settings, indent=1) + "\n")
    report = DemoReport(folder)
    with _stage(report, "videos", progress):
        annotations_path = make_demo_videos(folder, seed=seed, minutes=minutes, progress=progress)
        _write_project(folder, detectors[0])
    annotations = load_annotations(annotations_path)
    report.labels = annotations.labels
    with _stage(report, "backbone", progress):
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            make_demo_backbone(
                weights,
                BACKBONE,
                folder / VIDEO_FOLDER,
                annotations,
                pretraining,
                seed=seed,
                device=resolve_device(device),
                progress=progress,
            )
    with _stage(report, "features", progress):
        extract(
            [folder / VIDEO_FOLDER],
            store=folder / STORE,
            backbone=BACKBONE,
            weights=weights,
            stride=_stride(detectors[0]),
            annotations=annotations_path,
            device=device,
            progress=progress,
        )
    test = annotations.subset("test")
    found: dict[str, Detections] = {}
    for name in detectors:
        run = folder / RUNS / name
        with _stage(report, f"train {name}", progress):
            train_detector(
                folder / STORE,
                preset=f"{name}/{PRESET}",
                sets=sets,
                out=run,
                resume=True,
                device=device,
                seed=seed,
                progress=progress,
            )
        with _stage(report, f"detect {name}", progress):
            found[name] = detect(
                [folder / VIDEO_FOLDER / f"{video}.mp4" for video in test],
                model=run,
                weights=weights,
                store=folder / STORE,
                out=[run / "held_out.json"],
                device=device,
                progress=progress,
            ).detections
    with _stage(report, "report", progress):
        for name in detectors:
            report.scores[name] = evaluate(found[name], annotations=annotations, subset="test")
        _score_baselines(report, annotations, seed)
        _draw(report, test, found[detectors[0]], detectors[0])
    write_atomically(folder / RESULTS_FILE, json.dumps(report.to_mapping(), indent=1) + "\n")
    return report


@contextmanager
def _stage(report: DemoReport, name: str, progress: Progress) -> Iterator[None]:
    """Time a stage; its summary line is shown when it ends."""
    started = time.monotonic()
    yield
    report.seconds[name] = time.monotonic() - started
    progress.end(f"[{name}] {report.seconds[name]:.1f} s")


def plan_demo(
    out: str | Path = "demo",
    *,
    minutes: float = DEMO_MINUTES,
    seed: int = DEFAULT_SEED,
    detectors: Sequence[str] = ("actionformer",),
) -> dict[str, Any]:
    """What `demo` with these arguments would make, and what of it is there; writes nothing.

    Raises:
        ConfigError: as `demo`.
    """
    folder = Path(out)
    videos = DemoVideoSettings(seed, minutes)
    pretraining = PretrainConfig()
    _check_folder(folder, _settings(videos, detectors, pretraining, ()))
    names = [plan.name for plan in plan_videos(videos)]
    return {
        "folder": str(folder),
        "videos": len(names),
        "videos_there": sum((folder / VIDEO_FOLDER / f"{name}.mp4").is_file() for name in names),
        "pretraining_steps": pretraining.steps,
        "backbone_there": (folder / WEIGHTS_FILE).is_file(),
        "store_there": (folder / STORE).exists(),
        "runs": [str(folder / RUNS / name) for name in detectors],
        "runs_there": [name for name in detectors if (folder / RUNS / name).exists()],
    }


def _settings(
    videos: DemoVideoSettings,
    detectors: Sequence[str],
    pretraining: PretrainConfig,
    sets: Sequence[str],
) -> dict[str, Any]:
    """What decides everything in the folder but the list of detectors, checked."""
    for name in detectors:
        known("detector", DETECTORS, name)
        load_preset(f"{name}/{PRESET}", sets)
    return {
        "videos": {"digest": videos.digest(), **asdict(videos)},
        "pretraining": asdict(pretraining),
        "sets": list(sets),
    }


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """A folder is gone on with by the settings it was made with.

    Raises:
        ConfigError: it holds a demo with other settings.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            "The demo's settings cannot be read.", f"{path}: {error}", "Remove the folder."
        ) from None
    if before != settings:
        raise ConfigError(
            "The folder holds a demo with other settings.",
            f"{path}: {json.dumps(before)}\nnow: {json.dumps(settings)}",
            "Name another folder with --out, or remove this one.",
        )


def _write_project(folder: Path, detector: str) -> None:
    """The settings with which the other commands go on in the folder."""
    path = folder / PROJECT_FILE
    if path.exists():  # the user may have changed it
        return
    values: dict[str, str | int | None] = {
        "annotations": "annotations.json",
        "videos": VIDEO_FOLDER,
        "store": STORE.as_posix(),
        "runs": RUNS.as_posix(),
        "backbone": BACKBONE,
        "weights": WEIGHTS_FILE,
        "stride": _stride(detector),
        "preset": f"{detector}/{PRESET}",
    }
    write_atomically(path, project_text(values))


def _stride(detector: str) -> int:
    stride = load_preset(f"{detector}/{PRESET}").features.stride
    assert stride is not None, "the demo's presets state their stride"
    return stride


def _score_baselines(report: DemoReport, annotations: Annotations, seed: int) -> None:
    """The trivial detector, and the mean of several random ones."""
    training, test = annotations.subset("training"), annotations.subset("test")
    durations_sec = {name: video.duration_sec or 0.0 for name, video in test.items()}
    guesses = trivial_detections(training, durations_sec, seed=seed)
    report.trivial = evaluate(guesses, annotations=annotations, subset="test")
    curves = [
        evaluate(
            chance_detections(training, durations_sec, seed=seed * CHANCE_SEEDS + i),
            annotations=annotations,
            subset="test",
        ).score.map_at
        for i in range(CHANCE_SEEDS)
    ]
    report.chance_map = np.mean(curves, axis=0).tolist()


def _draw(report: DemoReport, test: Mapping[str, Video], found: Detections, detector: str) -> None:
    """The picture of the first held-out videos; the terminal shows the first one."""
    timelines = [
        VideoTimeline(name, video.duration_sec or 0.0, video.actions, found[name])
        for name, video in test.items()
    ]
    report.example = timelines[0]
    report.picture = report.folder / PICTURE_FILE
    timeline_png(
        report.picture,
        timelines[:PICTURE_VIDEOS],
        labels=report.labels,
        title=f"Held-out demo videos: ground truth and {detector}",
    )
