"""From your own videos to action segments: extract as the model was trained, detect, write.

The recipe a run carries says which backbone, weights, clips and stride its features need; what
the store already holds of them is reused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tadpipe.annotations import Annotations, Detection, Detections
from tadpipe.datasets import DATASETS
from tadpipe.datasets.sources import FeatureSource
from tadpipe.detection_files import check_suffix, write_detections
from tadpipe.errors import VideoError
from tadpipe.location import location
from tadpipe.pipeline.class_fusion import (
    ClassScores,
    changed_rule,
    check_takes_class_scores,
    check_used,
    load_class_scores,
    source_text,
)
from tadpipe.pipeline.clip_batches import batch_of
from tadpipe.pipeline.detect import detect_on_source
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.extract import extract_features
from tadpipe.pipeline.extract_report import ExtractReport
from tadpipe.pipeline.known_weights import KnownWeights
from tadpipe.pipeline.pixel_grid import grid_of
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.recipe import Recipe, TrainedDetector, load_detector
from tadpipe.pipeline.spec_backbone import load_exactly, place_of_weights
from tadpipe.pipeline.text_table import cut
from tadpipe.pipeline.video_features import ComputedTable, VideoTable
from tadpipe.pipeline.video_files import VideoFile, find_videos, printable
from tadpipe.pipeline.video_outcomes import VideoOutcome
from tadpipe.registry import resolve
from tadpipe.report.timeline import MIN_SCORE, shown_detections, terminal_timeline
from tadpipe.store.content import ContentIndex
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec
from tadpipe.video.process import DecodeProcess

SHOWN = 5  # detections per video in the text
DRAWN_VIDEOS = 3  # videos with a timeline in the text


@dataclass
class DetectReport:
    """What was found in which video, and what became of the extraction before."""

    extraction: list[ExtractReport]  # one per kind of features
    detections: Detections = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    has_one_label: bool = False  # a class-agnostic detector, and no class scores
    class_scores: Mapping[str, Any] | None = None  # where the labels come from, if from a file
    unscored: tuple[str, ...] = ()  # videos without class scores, whose detections were dropped
    durations_sec: Mapping[str, float] = field(default_factory=dict)  # of the videos detected in

    @property
    def exit_code(self) -> int:
        return max(report.exit_code for report in self.extraction)

    def text(self, *, width: int = 120, colour: bool = False) -> str:
        """The best detections of each video, timelines, the files written, how extraction went.

        Args:
            width: columns that a timeline takes at most; `colour` paints it for a terminal.
        """
        lines = []
        for name, found in self.detections.items():
            lines.append(f"{printable(name)}: {len(found)} detections")
            lines += [
                f"  {d.start_sec:8.2f} - {d.end_sec:8.2f} s  {d.label}  {d.score:.3f}"
                for d in found[:SHOWN]
            ]
            if len(found) > SHOWN:
                lines.append(f"  ... {len(found) - SHOWN} more")
        if self.detections and (self.has_one_label or self.class_scores is not None):
            lines.append(source_text(self.class_scores, self.unscored))
        lines += self._timelines(width, colour)
        lines += [f"wrote {path}" for path in self.files]
        lines += [report.text() for report in self.extraction]
        return "\n".join(lines)

    def _timelines(self, width: int, colour: bool) -> list[str]:
        """The first videos on a time axis each, their labels in the same colours."""
        drawn = dict(list(self.detections.items())[:DRAWN_VIDEOS])
        if not drawn:
            return []
        labels = {found.label for each in drawn.values() for found in shown_detections(each)}
        lines = [f"score {MIN_SCORE:g} or more, on a time axis:"]
        for name, found in drawn.items():
            duration_sec = self.durations_sec[name]
            picture = terminal_timeline(
                None, found, duration_sec, labels=sorted(labels), width=width, colour=colour
            )
            lines += [cut(f"{printable(name)}, {duration_sec:.1f} s", width), picture]
        if len(self.detections) > len(drawn):
            lines.append(f"... and {len(self.detections) - len(drawn)} more")
        return ["", *lines, ""]

    def to_mapping(self) -> dict[str, Any]:
        return {
            "detections": {
                name: [
                    {"segment": [d.start_sec, d.end_sec], "label": d.label, "score": d.score}
                    for d in found
                ]
                for name, found in self.detections.items()
            },
            "files": [str(path) for path in self.files],
            "class_agnostic": self.has_one_label,
            "class_scores": self.class_scores,
            "unscored": list(self.unscored),
            "extraction": [report.to_mapping() for report in self.extraction],
        }


def detect(
    videos: Sequence[Path | str],
    *,
    model: Path | str,
    out: Sequence[Path | str] = (),
    min_score: float = 0.0,
    top_k: int | None = None,
    weights: str | Path | None = None,
    usual_weights: str | Path | None = None,
    store: Path | str = "store/features.zarr",
    class_scores: str | Path | None = None,
    skip_unscored: bool = False,
    sets: Sequence[str] = (),
    device: str = "auto",
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> DetectReport:
    """Find actions in videos with a trained model.

    Args:
        videos: files and folders.
        model: run folder of `train_detector` or `train_e2e`.
        out: files to write; the suffix says the format: .json, .csv, .srt, .vtt.
        min_score: leave out detections below.
        top_k: keep at most so many per video, the best.
        weights: file of the backbone's weights, or the folder of the end-to-end run that tuned
            it; default the model's own folder, where they were when the features were extracted,
            or the named download. Their SHA-256 must be the one trained on.
        usual_weights: what to try where the model's own weights are not known, before the
            download.
        store: feature cache; made if missing.
        class_scores: file of video-level class scores, by names of the videos, for a
            class-agnostic model.
        skip_unscored: videos without class scores get no detections; without it an error.
        sets: changes of how class scores are fused, as "class_scores.rule=product".
    Raises:
        CheckpointError: no trained run, or other backbone weights than it was trained on.
        ConfigError: the run was trained on features that were not extracted by tadpipe.
    """
    device = resolve_device(device)
    files = find_videos([Path(video) for video in videos])
    for path in out:
        check_suffix(path, len(files))
    trained = load_detector(model, device=device)
    files = _beside_others(files, store, trained.recipe.features)
    check_used(class_scores, sets, skip_unscored=skip_unscored)
    rule = changed_rule(trained.recipe.class_scores, sets)
    report = DetectReport([])
    report.has_one_label = class_scores is None and trained.recipe.windows.class_agnostic
    scores = None
    if class_scores is not None:
        scores = _class_scores_for(files, trained.recipe, class_scores, skip_unscored)
        report.class_scores = scores.stated(rule)
        report.unscored = scores.missing(file.name for file in files)
    looked_at = _resized_rows if trained.recipe.resized_pixels else _stored_rows
    places = [
        place_of_weights(spec, model, weights, usual_weights) for spec in trained.recipe.features
    ]
    rows = looked_at(files, trained, places, Path(store), device, dry_run, progress)
    report.extraction = rows.extraction
    if rows.source is None:
        return report
    found = detect_on_source(
        trained.model,
        rows.source,
        {name: name for name in rows.durations_sec},
        trained.recipe,
        durations_sec=rows.durations_sec,
        progress=progress,
    )
    if scores is not None:
        found = scores.label(found, rule)
    report.durations_sec = rows.durations_sec
    report.detections = {name: _best(each, min_score, top_k) for name, each in found.items()}
    for path in map(Path, out):
        write_detections(path, report.detections)
        report.files.append(path)
    return report


class _Rows(NamedTuple):
    """The features to detect on, and how they were made."""

    extraction: list[ExtractReport]
    source: FeatureSource | None = None  # None: nothing to detect on
    durations_sec: Mapping[str, float] = {}  # of the videos that could be used


def _stored_rows(
    files: Sequence[VideoFile],
    trained: TrainedDetector,
    places: Sequence[KnownWeights | None],
    store: Path,
    device: str,
    dry_run: bool,
    progress: Progress,
) -> _Rows:
    """Features extracted into the store, but for what it holds already."""
    extraction = []
    for spec, place in zip(trained.recipe.features, places, strict=True):
        backbone = load_exactly(spec, place, device=device, run=str(trained.run))
        extraction.append(
            extract_features(
                files,
                backbone,
                spec,
                store=store,
                device=device,
                dry_run=dry_run,
                progress=progress,
            )
        )
    failed = {v.name for each in extraction for v in each.videos if v.status == "failed"}
    names = [file.name for file in files if file.name not in failed]
    if dry_run or not names:
        return _Rows(extraction)
    opened = FeatureStore.open(store)
    tables = [opened.table(fid=spec.fid) for spec in trained.recipe.features]
    rows = opened.videos(tables[0].fid)
    durations_sec = {name: rows[name].duration_sec for name in names}
    return _Rows(extraction, FeatureSource(tables), durations_sec)


def _resized_rows(
    files: Sequence[VideoFile],
    trained: TrainedDetector,
    places: Sequence[KnownWeights | None],
    store: Path,
    device: str,
    dry_run: bool,
    progress: Progress,
) -> _Rows:
    """Features of frames spread over each video; a store has no place for them."""
    spec = trained.recipe.features[0]
    report = ExtractReport(location(store), spec.fid, dry_run)
    backbone = load_exactly(spec, places[0], device=device, run=str(trained.run))
    with DecodeProcess() as decoder:
        table = VideoTable(
            {file.name: file for file in files},
            backbone,
            spec,
            grid_of(spec, trained.recipe.window_len, resize=True),
            decoder,
            device=device,
            batch=batch_of(device),
        )
        computed = ComputedTable(spec.channels)
        progress.begin("features", len(files), "video")
        for file in files:
            started = time.monotonic()
            try:
                if not dry_run:
                    computed.add(file.name, table.open(file.name), table.duration_sec(file.name))
                outcome = VideoOutcome(file.name, "done", rows=trained.recipe.window_len)
            except VideoError as error:
                message = f"{error.what} {error.where}".strip()
                outcome = VideoOutcome(file.name, "failed", error.reason.value, message)
            report.videos.append(outcome._replace(seconds=time.monotonic() - started))
            progress.advance()
        progress.end()
    report.seconds = sum(video.seconds for video in report.videos)
    source = FeatureSource([computed]) if computed.durations_sec else None
    return _Rows([report], source, computed.durations_sec)


def _beside_others(
    files: Sequence[VideoFile], store: Path | str, specs: Sequence[FeatureSpec]
) -> list[VideoFile]:
    """The files, renamed where the store knows another video by the same name.

    The store may be one that detectors are trained on: its names keep their meaning.
    """
    if not FeatureStore.exists(store):
        return list(files)
    opened, content = FeatureStore.open(store), ContentIndex(store, remember=False)
    stored = [opened.videos(spec.fid) for spec in specs]
    beside = []
    for file in files:
        others = [names.content_of(file.name) for names in stored if file.name in names]
        if others and file.path.is_file():
            sha256 = content.sha256(file.path)
            if any(other != sha256 for other in others):
                file = VideoFile(file.path, f"{file.name} ({sha256[:8]})")
        beside.append(file)
    return beside


def _class_scores_for(
    files: Sequence[VideoFile], recipe: Recipe, path: str | Path, skip_unscored: bool
) -> ClassScores:
    """The class scores of these videos.

    Raises:
        ConfigError: NMS is by class, or a video has no scores.
    """
    check_takes_class_scores(recipe)
    spec = resolve("dataset", DATASETS, recipe.dataset) if recipe.dataset else None
    labels = () if recipe.windows.class_agnostic else recipe.labels
    trained_on = Annotations({}, labels)
    scores = load_class_scores(path, trained_on, spec, skip_unscored=skip_unscored)
    scores.check(file.name for file in files)
    return scores


def _best(found: list[Detection], min_score: float, top_k: int | None) -> list[Detection]:
    return [detection for detection in found if detection.score >= min_score][:top_k]
