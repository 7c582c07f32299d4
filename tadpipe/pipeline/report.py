"""What `tadpipe report` does: runs scored anew on one ground truth, on one page.

Order: runs and folders of runs -> each scored with its errors -> grouped by seeds into systems ->
what they cost and what their models show -> pictures of the videos -> the page.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tadpipe.annotations import Annotations
from tadpipe.config import write_atomically
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.report_media import films_of, video_paths
from tadpipe.pipeline.report_models import ModelViews, measured_cost, model_views
from tadpipe.pipeline.report_runs import (
    ScoredRun,
    check_comparable,
    find_runs,
    notes_of,
    score_run,
    task_text,
    unique_names,
)
from tadpipe.pipeline.score_table import count_text
from tadpipe.pipeline.video_files import printable
from tadpipe.report.diagnosis_charts import diagnosis_charts
from tadpipe.report.model_charts import model_charts
from tadpipe.report.overview_charts import overview_charts
from tadpipe.report.page import page_html
from tadpipe.report.systems import Cost, System, run_colours
from tadpipe.report.viewer import Film, shown_per_video, viewer_mapping

SHOWN_PER_VIDEO = 200  # detections of a run and video, at most


@dataclass(frozen=True)
class ReportResult:
    """What a report holds, or would hold."""

    out: Path
    systems: tuple[System, ...]
    subset: str
    videos: int
    videos_found: int  # of these, with a file to play
    shown: int  # detections of a run and video on the page, at most
    size_bytes: int = 0
    dry_run: bool = False

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready; mAP as fractions."""
        return {
            "out": str(self.out),
            "dry_run": self.dry_run,
            "size_bytes": self.size_bytes,
            "subset": self.subset,
            "videos": self.videos,
            "videos_found": self.videos_found,
            "detections_per_video": self.shown,
            "runs": [system.to_mapping() for system in self.systems],
        }

    def text(self) -> str:
        """A line for each system, and one for the page."""
        lines = []
        for system in self.systems:
            mean, deviation = system.average_map
            spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
            seeds = count_text(len(system.scores), "seed")
            lines.append(f"{system.name}: average mAP {100 * mean:.2f}{spread} ({seeds})")
        size = "" if self.dry_run else f", {self.size_bytes / 1e6:.1f} MB"
        lines.append(
            f"{'would write' if self.dry_run else 'wrote'} {self.out}: "
            f"{count_text(self.videos, 'video')}, files of {self.videos_found}{size}"
        )
        return "\n".join(lines)


def write_report(
    runs: Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    annotations: str | Path | Annotations | None = None,
    dataset: str | None = None,
    subset: str | None = None,
    class_scores: str | Path | None = None,
    skip_unscored: bool = False,
    videos: Sequence[str | Path] = (),
    top_k: int = SHOWN_PER_VIDEO,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ReportResult:
    """Write one page about runs that were scored on the same actions.

    Args:
        runs: run folders, folders that hold runs (such as that of a comparison), results JSON.
        annotations, dataset, subset: as in `evaluate`; default: what each run was trained with.
        class_scores: file of video-level class scores, for runs with class-agnostic NMS.
        videos: files and folders to play from and to take pictures of.
        top_k: detections of each run and video on the page, at most.
    Raises:
        ConfigError: no run, a run without detections, or runs with different ground truth.
        AnnotationError: files with defects.
    """
    out = Path(out)
    if out.is_dir():
        raise ConfigError(
            "The report is a file.", f"--out {printable(out)} is a folder", "Name a file, .html."
        )
    paths = find_runs([Path(run) for run in runs])
    truths: dict[str, str | Path | Annotations] = {}
    progress.begin("score", len(paths), "run")
    scored = []
    for path in paths:
        scored.append(
            score_run(path, annotations, dataset, subset, class_scores, skip_unscored, truths)
        )
        progress.advance()
    progress.end()
    check_comparable(scored)
    systems = _systems(scored, progress)
    first = scored[0]
    truth = first.diagnosis.problem.truth
    files = video_paths(videos, truth.videos)
    result = ReportResult(
        out=out,
        systems=systems,
        subset=first.evaluation.subset,
        videos=len(truth.videos),
        videos_found=len(files),
        shown=shown_per_video(len(systems), len(truth.videos), top_k),
        dry_run=dry_run,
    )
    if dry_run:
        return result
    films = films_of(files, out, progress)
    html = _page(systems, first, films, top_k)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, html)
    return replace(result, size_bytes=len(html.encode()))


def _systems(runs: Sequence[ScoredRun], progress: Progress) -> tuple[System, ...]:
    """One system for all runs that differ in the seed alone, in the order given."""
    groups: dict[str, list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    names = unique_names([group[0].path for group in groups.values()])
    systems = []
    progress.begin("models", len(groups), "model")
    for name, group in zip(names, groups.values(), strict=True):
        systems.append(_system(name, group))
        progress.advance()
    progress.end()
    return tuple(systems)


def _system(name: str, group: Sequence[ScoredRun]) -> System:
    """The runs of one group, the first of which stands for all where one has to."""
    first = group[0]
    costs, views = [], ModelViews()
    if first.config:
        minutes = sum(first.scored_durations.values()) / 60
        try:
            costs = [measured_cost(run.path, minutes) for run in group]
            views = model_views(first.path, first.diagnosis.problem.truth)
        except (CheckpointError, ConfigError) as error:
            views = ModelViews(notes=(f"The model was left out: {error}",))
    notes = [note for run in group for note in notes_of(run, with_seed=len(group) > 1)]
    features = first.config.get("features") or []
    return System(
        name=name,
        detector=str(first.config.get("detector", "")),
        backbone=" + ".join(str(each.get("backbone", "")) for each in features),
        seeds=tuple(run.config.get("seed") for run in group),
        folders=tuple(str(run.path) for run in group),
        scores=tuple(run.evaluation.score for run in group),
        diagnosis=first.diagnosis,
        cost=_mean_cost(costs),
        notes=tuple(dict.fromkeys([*notes, *views.notes])),
        similarity=views.similarity,
        sensitivity=views.sensitivity,
        frame_sensitivity=views.frame_sensitivity,
    )


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    """Means over the seeds of what was measured."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    if not costs:
        return Cost()
    return costs[0]._replace(
        train_sec=mean([cost.train_sec for cost in costs]),
        peak_bytes=mean([cost.peak_bytes for cost in costs]),
        detect_sec_per_minute=mean([cost.detect_sec_per_minute for cost in costs]),
    )


def _page(
    systems: Sequence[System], first: ScoredRun, films: Mapping[str, Film], top_k: int
) -> str:
    score = first.evaluation.score
    viewer = viewer_mapping(systems, durations=first.scored_durations, films=films, top_k=top_k)
    names = [system.name for system in systems]
    about = [
        f"{task_text(first)}; protocol {score.protocol.name}. "
        + ("± is one standard deviation over the seeds. " if any(
            len(system.scores) > 1 for system in systems) else "")
        + "Time and memory are shown where tadpipe compare measured them.",
        f"Errors, curves and the viewer show the first seed. The viewer holds the "
        f"{viewer['shown']} best detections of each run and video; the AP of a video is the mean "
        "over the classes that occur in it.",
    ]  # fmt: skip
    charts = [*overview_charts(systems), *diagnosis_charts(systems), *model_charts(systems)]
    return page_html(
        title=f"{first.evaluation.dataset or 'Detections'}: {', '.join(names[:4])}"
        + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
        systems=[
            {**system.to_mapping(), "colour": colour}
            for system, colour in zip(systems, run_colours(names), strict=True)
        ],
        tious=score.tious,
        about=about,
        charts=charts,
        viewer=viewer,
    )
