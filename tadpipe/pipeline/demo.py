"""The whole pipeline on data made on the spot: what `tadpipe demo` does.

Order: videos -> backbone (briefly pretrained on clips of the training videos) -> its features ->
detectors on them -> backbone and detector tuned end to end, and a control whose backbone stays
frozen -> features of the tuned backbone -> detectors on them -> scores of the held-out videos,
beside two baselines -> picture. Every stage but the second is the public function of the same
name; repeating a stage reuses what is finished.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tadpipe.annotations import Annotations, Detections, Video, load_annotations
from tadpipe.config import write_atomically
from tadpipe.detectors import DETECTORS
from tadpipe.errors import ConfigError
from tadpipe.pipeline.demo_backbone import make_demo_backbone
from tadpipe.pipeline.demo_baselines import chance_detections, trivial_detections
from tadpipe.pipeline.demo_report import PICTURE_VIDEOS, DemoReport
from tadpipe.pipeline.demo_videos import (
    ANNOTATIONS_FILE,
    DEMO_MINUTES,
    VIDEO_FOLDER,
    DemoVideoSettings,
    make_demo_videos,
    plan_videos,
)
from tadpipe.pipeline.detect_videos import detect
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.e2e import train_e2e
from tadpipe.pipeline.evaluate import Evaluation, evaluate
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.presets import load_preset
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.run_folder import FEATURES_DIR
from tadpipe.pipeline.train_detector import train_detector
from tadpipe.project import FILE as PROJECT_FILE
from tadpipe.project import project_text
from tadpipe.registry import known
from tadpipe.report.timeline import VideoTimeline, timeline_png
from tadpipe.training.pretrain import PretrainConfig

BACKBONE = "videomae-tiny"
PRESET = "demo"  # of every detector
E2E_PRESET = "actionformer/demo_e2e"
STORE = Path("store", "demo.zarr")
RUNS = Path("runs")
WEIGHTS_FILE = "videomae-tiny.safetensors"
SETTINGS_FILE = "demo.json"
RESULTS_FILE = "results.json"
PICTURE_FILE = "timeline.png"
E2E_RUN, CONTROL_RUN, TUNED = "e2e", "control", "tuned"  # folders of runs; the last a suffix
TUNED_STORE = RUNS / E2E_RUN / FEATURES_DIR
DEMO_PRETRAIN = PretrainConfig(steps=300)  # leaves end-to-end tuning something to learn
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
        sets: changes of all presets, as "training.epochs=20".
    Raises:
        ConfigError: unknown detector, or a folder that holds a demo with other settings.
    """
    folder = Path(out)
    pretraining = pretrain or DEMO_PRETRAIN
    settings = _settings(DemoVideoSettings(seed, minutes), detectors, pretraining, sets)
    _check_folder(folder, settings)
    write_atomically(folder / SETTINGS_FILE, json.dumps(settings, indent=1) + "\n")
    making = _Demo(folder, minutes, seed, tuple(sets), device, progress)
    with _one_thread():
        with making.stage("videos"):
            annotations = making.videos(detectors[0])
        with making.stage("backbone"):
            making.backbone(annotations, pretraining)
        with making.stage("features"):
            making.features(making.weights, STORE, detectors[0])
        for name in detectors:
            with making.stage(f"train {name}"):
                making.report.scores[name] = making.train(name, STORE, name, annotations)
        with making.stage("tune end to end"):
            making.report.end_to_end = making.end_to_end(E2E_RUN, "full")
        with making.stage("control"):
            making.report.control = making.end_to_end(CONTROL_RUN, "frozen")
        with making.stage("tuned features"):
            making.features(folder / RUNS / E2E_RUN, TUNED_STORE, detectors[0])
        for name in detectors:
            with making.stage(f"train {name} again"):
                making.report.tuned_scores[name] = making.train(
                    name, TUNED_STORE, f"{name}_{TUNED}", annotations
                )
        with making.stage("detect"):
            found = making.detect(E2E_RUN, annotations)
        with making.stage("report"):
            _baselines(making.report, annotations, seed)
            _draw(making.report, annotations.subset("test"), found)
    results = json.dumps(making.report.to_mapping(), indent=1)
    write_atomically(folder / RESULTS_FILE, results + "\n")
    return making.report


class _Demo:
    """The stages that write into the folder."""

    def __init__(
        self,
        folder: Path,
        minutes: float,
        seed: int,
        sets: tuple[str, ...],
        device: str,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.minutes = minutes
        self.seed = seed
        self.sets = sets
        self.device = resolve_device(device)
        self.progress = progress
        self.weights = folder / WEIGHTS_FILE
        self.report = DemoReport(folder)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; its summary line is shown when it ends."""
        started = time.monotonic()
        yield
        self.report.seconds[name] = time.monotonic() - started
        self.progress.end(f"[{name}] {self.report.seconds[name]:.1f} s")

    def videos(self, detector: str) -> Annotations:
        """The videos, their annotations and the project file."""
        path = make_demo_videos(
            self.folder, seed=self.seed, minutes=self.minutes, progress=self.progress
        )
        _write_project(self.folder, detector)
        annotations = load_annotations(path)
        self.report.labels = annotations.labels
        return annotations

    def backbone(self, annotations: Annotations, pretraining: PretrainConfig) -> None:
        """Weights that know the training videos; kept once they are there."""
        if self.weights.is_file():
            return
        make_demo_backbone(
            self.weights,
            BACKBONE,
            self.folder / VIDEO_FOLDER,
            annotations,
            pretraining,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )

    def features(self, weights: Path, store: Path, detector: str) -> None:
        """All videos into a store, which remembers the annotations."""
        extract(
            [self.folder / VIDEO_FOLDER],
            store=self.folder / store,
            backbone=BACKBONE,
            weights=weights,
            stride=_stride(detector),
            annotations=self.folder / ANNOTATIONS_FILE,
            device=self.device,
            progress=self.progress,
        )

    def train(self, detector: str, store: Path, run: str, annotations: Annotations) -> Evaluation:
        """A run of the detector, or what is left of it to do; its score on the held-out videos."""
        preset = f"{detector}/{PRESET}"
        batch_size = load_preset(preset, self.sets).training.batch_size
        videos = len(annotations.subset("training"))
        # A short demo may have fewer training videos than a batch holds.
        smaller = [f"training.batch_size={videos}"] if videos < batch_size else []
        trained = train_detector(
            self.folder / store,
            preset=preset,
            sets=[*self.sets, *smaller],
            out=self.folder / RUNS / run,
            resume=True,
            device=self.device,
            seed=self.seed,
            progress=self.progress,
        )
        assert trained.evaluation is not None, "the demo has held-out videos"
        return trained.evaluation

    def end_to_end(self, run: str, tune: Literal["full", "frozen"]) -> Evaluation:
        """A detector on augmented pixels, with the backbone or without it; its score."""
        trained = train_e2e(
            [self.folder / VIDEO_FOLDER],
            annotations=self.folder / ANNOTATIONS_FILE,
            backbone=BACKBONE,
            weights=self.weights,
            tune=tune,
            preset=E2E_PRESET,
            sets=self.sets,
            out=self.folder / RUNS / run,
            resume=True,
            device=self.device,
            seed=self.seed,
            progress=self.progress,
        )
        assert trained.evaluation is not None, "the demo has held-out videos"
        return trained.evaluation

    def detect(self, run: str, annotations: Annotations) -> Detections:
        """Detections of the held-out videos, from the video files on."""
        folder = self.folder / RUNS / run
        return detect(
            [self.folder / VIDEO_FOLDER / f"{name}.mp4" for name in annotations.subset("test")],
            model=folder,
            store=self.folder / TUNED_STORE,
            out=[folder / "held_out.json"],
            device=self.device,
            progress=self.progress,
        ).detections


@contextmanager
def _one_thread() -> Iterator[None]:
    """Models as small as the demo's gain little from more threads, and lose much on a busy machine.

    The decoder works in a process of its own. The numbers do not depend on the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    pretraining = DEMO_PRETRAIN
    _check_folder(folder, _settings(videos, detectors, pretraining, ()))
    names = [plan.name for plan in plan_videos(videos)]
    runs = [*detectors, E2E_RUN, CONTROL_RUN, *(f"{name}_{TUNED}" for name in detectors)]
    return {
        "folder": str(folder),
        "videos": len(names),
        "videos_there": sum((folder / VIDEO_FOLDER / f"{name}.mp4").is_file() for name in names),
        "pretraining_steps": pretraining.steps,
        "backbone_there": (folder / WEIGHTS_FILE).is_file(),
        "store_there": (folder / STORE).exists(),
        "runs": [str(folder / RUNS / name) for name in runs],
        "runs_there": [name for name in runs if (folder / RUNS / name).exists()],
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
    load_preset(E2E_PRESET, sets)
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
        "annotations": ANNOTATIONS_FILE,
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


def _baselines(report: DemoReport, annotations: Annotations, seed: int) -> None:
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


def _draw(report: DemoReport, test: Mapping[str, Video], found: Detections) -> None:
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
        title="Held-out demo videos: ground truth and the model tuned end to end",
    )
