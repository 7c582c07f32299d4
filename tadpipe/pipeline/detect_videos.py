"""From your own videos to action segments: extract as the model was trained, detect, write.

The recipe a run carries says which backbone, weights, clips and stride its features need; what
the store already holds of them is reused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tadpipe.annotations import Annotations, Detection, Detections
from tadpipe.backbones import BACKBONES
from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.protocol import Backbone
from tadpipe.datasets import DATASETS
from tadpipe.datasets.sources import FeatureSource
from tadpipe.detection_files import check_suffix, write_detections
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.pipeline.class_fusion import (
    ClassScores,
    changed_rule,
    check_takes_class_scores,
    check_used,
    load_class_scores,
    source_text,
)
from tadpipe.pipeline.detect import detect_on_source
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.extract import extract_features
from tadpipe.pipeline.extract_report import ExtractReport
from tadpipe.pipeline.known_weights import KnownWeights, find_weights
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.recipe import Recipe, load_detector
from tadpipe.pipeline.video_files import VideoFile, find_videos, printable
from tadpipe.registry import resolve
from tadpipe.store.content import ContentIndex
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec

SHOWN = 5  # detections per video in the text


@dataclass
class DetectReport:
    """What was found in which video, and what became of the extraction before."""

    extraction: list[ExtractReport]  # one per kind of features
    detections: Detections = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    has_one_label: bool = False  # a class-agnostic detector, and no class scores
    class_scores: Mapping[str, Any] | None = None  # where the labels come from, if from a file
    unscored: tuple[str, ...] = ()  # videos without class scores, whose detections were dropped

    @property
    def exit_code(self) -> int:
        return max(report.exit_code for report in self.extraction)

    def text(self) -> str:
        """The best detections of each video, the files written, and how extraction went."""
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
        lines += [f"wrote {path}" for path in self.files]
        lines += [report.text() for report in self.extraction]
        return "\n".join(lines)

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
        model: run folder of `train_detector`.
        out: files to write; the suffix says the format: .json, .csv, .srt, .vtt.
        min_score: leave out detections below.
        top_k: keep at most so many per video, the best.
        weights: file of the backbone's weights; default where they were when the features were
            extracted, else the named download. Their SHA-256 must be the one trained on.
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
    for spec in trained.recipe.features:
        backbone = _load_backbone(spec, weights, device, str(model))
        report.extraction.append(
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
    failed = {v.name for each in report.extraction for v in each.videos if v.status == "failed"}
    names = {file.name: file.name for file in files if file.name not in failed}
    if dry_run or not names:
        return report
    opened = FeatureStore.open(store)
    tables = [opened.table(fid=spec.fid) for spec in trained.recipe.features]
    source = FeatureSource(tables)
    rows = opened.videos(tables[0].fid)
    found = detect_on_source(
        trained.model,
        source,
        names,
        trained.recipe,
        durations_sec={name: rows[name].duration_sec for name in names},
        progress=progress,
    )
    if scores is not None:
        found = scores.label(found, rule)
    report.detections = {name: _best(each, min_score, top_k) for name, each in found.items()}
    for path in map(Path, out):
        write_detections(path, report.detections)
        report.files.append(path)
    return report


def _beside_others(
    files: Sequence[VideoFile], store: Path | str, specs: Sequence[FeatureSpec]
) -> list[VideoFile]:
    """The files, renamed where the store knows another video by the same name.

    The store may be one that detectors are trained on: its names keep their meaning.
    """
    if not Path(store).exists():
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


def _load_backbone(
    spec: FeatureSpec, weights: str | Path | None, device: str, run: str
) -> Backbone:
    """The backbone a recipe names, with exactly its weights and pixels."""
    known = spec.backbone in BACKBONES and spec.representation == "snippet"
    if not known or spec.adapter_sha256 or spec.pixels is None:
        raise ConfigError(
            "The features this model was trained on cannot be extracted here.",
            f"{run}: {spec.backbone}, {spec.representation} features",
            "Evaluate it on stored features with train-detector and evaluate instead.",
        )
    given = KnownWeights(weights) if weights is not None else find_weights(spec.weights_sha256)
    place, seed = (None, 0) if given is None else given
    backbone = load_backbone(
        spec.backbone, place, device=device, dtype=spec.compute_dtype, seed=seed
    )
    if backbone.weights_sha256 != spec.weights_sha256:
        raise CheckpointError(
            "These are not the backbone weights the model was trained on.",
            f"{place or 'the named download'}: SHA-256 {backbone.weights_sha256[:12]}...;  "
            f"{run}: {spec.weights_sha256[:12]}...",
            "Name the right file with --weights.",
        )
    backbone.pixels = spec.pixels
    backbone.set_clip_len(spec.clip_len)
    return backbone
