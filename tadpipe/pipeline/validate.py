"""Everything that is wrong with a project before anything runs: what `tadpipe validate` does.

Order: data set and preset -> stores -> annotations, class map, splits -> videos -> features
against annotations, preset and files -> class scores -> lengths of the actions, and settings that
fit them. No finding stops the next check; what cannot be checked is said.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tadpipe.annotations import Annotations, Video
from tadpipe.datasets import DATASETS
from tadpipe.datasets.sources import FeatureSource, match_videos
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import ConfigError, TadpipeError
from tadpipe.pipeline.feature_tables import StoreTable
from tadpipe.pipeline.presets import Preset, choose_preset, load_preset
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.subsets import Subsets
from tadpipe.pipeline.validate_annotations import (
    check_contents,
    check_labels,
    check_names,
    check_subsets,
    check_twins,
    read_all,
)
from tadpipe.pipeline.validate_features import (
    check_class_scores,
    check_copy,
    check_coverage,
    check_kind,
    check_rows,
    check_store,
    model_of,
    open_all,
    same_content,
)
from tadpipe.pipeline.validate_findings import Finding, from_error
from tadpipe.pipeline.validate_lengths import Lengths, check_lengths, suggest, training_lengths
from tadpipe.pipeline.validate_report import ValidationReport
from tadpipe.pipeline.validate_videos import VideoCheck, check_videos
from tadpipe.registry import resolve
from tadpipe.timeline import SnippetGrid

DECODE_TIMEOUT_SEC = 60.0
USUAL_CLIP, USUAL_STRIDE = 16, 4  # frames, where neither features nor a preset say


@dataclass(frozen=True)
class _Asked:
    """What the caller named, as far as several checks read it."""

    annotations: Path | None
    videos: tuple[Path, ...]
    features: tuple[Path, ...]
    subsets: tuple[str | None, str | None, str | None]
    stride: int | None
    class_scores: Path | None
    deep: bool
    timeout_sec: float


@dataclass
class _Checking:
    """What is known so far; every check adds its findings."""

    asked: _Asked
    progress: Progress
    findings: list[Finding] = field(default_factory=list)
    checked: dict[str, str] = field(default_factory=dict)  # part -> what of it was looked at
    spec: DatasetSpec | None = None
    preset_name: str = ""
    preset: Preset | None = None
    is_preset_meant: bool = True  # False: the default one, to suggest settings with
    tables: list[StoreTable] = field(default_factory=list)
    found: Annotations | None = None
    subsets: Subsets | None = None
    video_check: VideoCheck = field(default_factory=VideoCheck)

    def settings(
        self, dataset: str | None, detector: str | None, preset: str | None, sets: Sequence[str]
    ) -> None:
        """The data set and the preset, each as far as it can be read."""
        self.is_preset_meant = bool(detector or preset or sets or self.asked.features)
        try:
            self.preset_name = choose_preset(detector, preset)
            self.preset = load_preset(self.preset_name, sets, detector)
        except ConfigError as error:
            self.findings.append(from_error("preset", f"preset {self.preset_name}", "", error))
        name = dataset or (None if self.preset is None else self.preset.dataset)
        if name is not None:
            try:
                self.spec = resolve("dataset", DATASETS, name)
            except ConfigError as error:
                self.findings.append(from_error("dataset", "--dataset", name, error))

    def stores(self, backbone: str | None) -> None:
        asked = self.asked
        self.tables, found = open_all(asked.features, backbone, asked.stride)
        self.findings += found
        for table in self.tables:
            self.findings += check_store(table, deep=asked.deep)
            self.checked[f"features {table.store}"] = (
                f"{len(table.names())} videos, {table.spec.backbone}, "
                f"stride {table.spec.stride}, every {'row' if asked.deep else 'video'}"
            )

    def annotations(self) -> None:
        """Read the file named, else the first copy that a store keeps."""
        path = self.asked.annotations
        if path is not None:
            self.found, findings = read_all(path, self.spec)
            self.findings += findings
            for table in self.tables:
                self.findings += check_copy(table, path, self.spec)
        else:
            self._kept_annotations()
        if self.found is None:
            return
        found = self.found
        actions = sum(len(video.actions) for video in found.videos.values())
        self.checked[f"annotations {found.source}"] = (
            f"{len(found.videos)} videos, {actions} actions, {len(found.labels)} labels"
        )
        self.findings += check_labels(found, self.spec, path)
        self.subsets, findings = check_subsets(found, self.spec, self.asked.subsets)
        self.findings += findings
        self.findings += check_names(found, self.spec)
        self.findings += check_twins(found)

    def _kept_annotations(self) -> None:
        for table in self.tables:
            source = f"{table.store}: annotations"
            try:
                kept = table.features.store.annotations()
            except TadpipeError as error:
                self.findings.append(from_error("unreadable-annotations", source, "", error))
                continue
            if kept is None:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "annotations.json")
                path.write_bytes(kept)
                found, findings = read_all(path, self.spec)
            self.findings += [replace(each, file=source) for each in findings]
            self.found = None if found is None else replace(found, source=source)
            return

    def videos(self) -> None:
        if not self.asked.videos:
            return
        self.video_check = check_videos(
            self.asked.videos,
            self.found,
            self.spec,
            with_features=frozenset(self._stored_as()),
            span_frames=self._span_frames(),
            timeout_sec=self.asked.timeout_sec,
            progress=self.progress,
        )
        self.findings += self.video_check.findings
        where = ", ".join(str(source) for source in self.asked.videos)
        self.checked[f"videos {where}"] = f"{self.video_check.files} files"

    def features(self) -> None:
        """Features against the preset, the annotations and the files."""
        found, preset = self.found, self.preset
        labels = 0 if found is None else len(found.labels)
        if preset is not None and self.is_preset_meant:
            self.findings += check_kind(self.tables, preset, self.preset_name, labels)
            self.checked[f"preset {self.preset_name}"] = "features, window, regression ranges"
        if found is None:
            return
        if self.tables:
            self.findings += check_coverage(self.tables, found, self.spec, self.subsets)
        for table in self.tables:
            self.findings += check_rows(table, found, self.spec, self.video_check.probes)
        prefix = "" if self.spec is None else self.spec.feature_prefix
        same = [*self.video_check.same, *same_content(self.tables, prefix)]
        self.findings += check_contents(same, found.videos)
        meant = preset if self.is_preset_meant else None
        self.findings += check_class_scores(
            self.asked.class_scores, meant, found, self.spec, self.subsets
        )

    def lengths(self) -> tuple[Lengths | None, dict[str, Any] | None]:
        """Lengths of the training actions, and the settings that would fit them."""
        if self.found is None or self.preset is None:
            return None, None
        videos = self.found.videos if self.subsets is None else self._training_videos()
        model = model_of(self.tables, self.preset, self.preset_name)
        window_len = None if model is None else int(model.window_len)
        lengths = training_lengths(videos, self._grids(videos), self.preset, window_len)
        fits = True
        if model is not None and self.is_preset_meant:
            found = check_lengths(lengths, self.preset, self.preset_name, model)
            fits = not found
            self.findings += found
        stride = self.tables[0].spec.stride if self.tables else self.asked.stride
        made = suggest(lengths, self.preset, self.preset_name, stride)
        if made is None:
            return lengths, None
        return lengths, {
            "preset": self.preset_name,
            "stride": made.stride,
            "set": made.values(),
            "is_needed": not fits,
        }

    def _training_videos(self) -> Mapping[str, Video]:
        assert self.found is not None
        assert self.subsets is not None
        return self.found.subset(self.subsets.train)

    def _stored_as(self) -> Mapping[str, str]:
        """Annotated video -> its name in the stores."""
        if not self.tables or self.found is None:
            return {}
        prefix = "" if self.spec is None else self.spec.feature_prefix
        names = FeatureSource(self.tables).names
        return match_videos(self.found.videos, list(self.found.videos), names, prefix).stored_as

    def _span_frames(self) -> int | None:
        """Frames of a snippet, where features or the preset say."""
        if self.tables:
            return self.tables[0].spec.span_frames
        return None if self.preset is None else self.preset.features.clip_len

    def _grids(self, videos: Mapping[str, Video]) -> dict[str, SnippetGrid]:
        """The features' own grids; before the extraction those that it would make."""
        if self.tables:
            source = FeatureSource(self.tables)
            return {n: source.open(s).grid for n, s in self._stored_as().items() if n in videos}
        assert self.preset is not None
        stride = self.asked.stride or self.preset.features.stride or USUAL_STRIDE
        span = self._span_frames() or USUAL_CLIP
        grids = {}
        for name, video in videos.items():
            probe = self.video_check.probes.get(name)
            if probe is not None and probe.frames:
                fps, frames = probe.frames / probe.duration_sec, probe.frames
            elif video.fps is not None and video.duration_sec is not None:
                fps, frames = video.fps, int(video.fps * video.duration_sec)
            else:
                continue
            rows = max((frames - span) // stride + 1, 0)
            grids[name] = SnippetGrid.from_convention(
                rows, fps=fps, stride_frames=stride, span_frames=span
            )
        return grids


def validate(
    *,
    annotations: str | Path | None = None,
    dataset: str | None = None,
    videos: Sequence[str | Path] = (),
    features: Sequence[str | Path] = (),
    detector: str | None = None,
    preset: str | None = None,
    sets: Sequence[str] = (),
    backbone: str | None = None,
    stride: int | None = None,
    subset: str | None = None,
    test_subset: str | None = None,
    val_subset: str | None = None,
    class_scores: str | Path | None = None,
    deep: bool = False,
    decode_timeout_sec: float = DECODE_TIMEOUT_SEC,
    progress: Progress = SILENT,
) -> ValidationReport:
    """Find everything wrong with annotations, class map, splits, videos, features and preset.

    Whatever is left out is not checked; nothing is written.

    Args:
        annotations: left out: the copy that the features keep.
        videos: files and folders; each file is read packet by packet, its first picture decoded.
        features: stores.
        stride: of features in frames; before the extraction the one that is planned.
        deep: read every stored row and compare it with its checksum.
        decode_timeout_sec: after so long without a sign of life a file counts as unreadable.
    Raises:
        ConfigError: nothing to check is named.
    """
    if annotations is None and not videos and not features:
        raise ConfigError(
            "There is nothing to validate.",
            "no annotations, no videos, no features",
            "Give --annotations, --videos or --features, or write a tadpipe.toml (tadpipe init).",
        )
    began_sec = time.monotonic()
    asked = _Asked(
        annotations=None if annotations is None else Path(annotations),
        videos=tuple(map(Path, videos)),
        features=tuple(map(Path, features)),
        subsets=(subset, test_subset, val_subset),
        stride=stride,
        class_scores=None if class_scores is None else Path(class_scores),
        deep=deep,
        timeout_sec=decode_timeout_sec,
    )
    checking = _Checking(asked, progress)
    checking.settings(dataset, detector, preset, sets)
    checking.stores(backbone)
    checking.annotations()
    checking.videos()
    checking.features()
    lengths, suggestion = checking.lengths()
    return ValidationReport(
        tuple(dict.fromkeys(checking.findings)),
        checking.checked,
        "" if checking.subsets is None else checking.subsets.train,
        lengths,
        suggestion,
        time.monotonic() - began_sec,
    )
