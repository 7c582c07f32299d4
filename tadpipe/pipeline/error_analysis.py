"""What `tadpipe evaluate --errors` adds: a diagnosis, with what it reads beside the detections."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tadpipe.annotations import Annotations
from tadpipe.epic_csv import VIDEO_INFO, EpicRow, read_video_info
from tadpipe.errors import AnnotationError
from tadpipe.evaluation.characteristics import (
    BIN_SETS,
    QUANTILES,
    Bins,
    Given,
    load_bins,
    load_given,
    named_bins,
)
from tadpipe.evaluation.diagnosis import Diagnosis, diagnose
from tadpipe.evaluation.epic import diagnose_epic
from tadpipe.evaluation.protocols import Protocol
from tadpipe.evaluation.tables import DetectionTable, TruthTable

BinChoice = str | Path | Mapping[str, Bins]


def chosen_bins(bins: BinChoice | None, dataset: str | None) -> Mapping[str, Bins]:
    """The bins to sort actions into; what they leave out is put into quantiles.

    Args:
        bins: a published set, "quantiles", a JSON file, or own bins.  Default: the published bins
            of the data set, else quantiles.
    Raises:
        ConfigError: no bins of that name.
        AnnotationError: a file that cannot be read, or has mistakes.
    """
    if bins is None:
        return named_bins(dataset if dataset in BIN_SETS else QUANTILES)
    if isinstance(bins, Mapping):
        return bins
    if Path(bins).suffix.lower() == ".json" or Path(bins).is_file():
        return load_bins(bins)
    return named_bins(str(bins))


def find_errors(
    truth: Annotations,
    truth_table: TruthTable,
    found_table: DetectionTable,
    tious: Sequence[float],
    *,
    protocol: Protocol,
    blocked: Collection[str],
    bins: Mapping[str, Bins],
    has_one_label: bool,
) -> Diagnosis:
    """Diagnose detections scored against ActivityNet-style annotations.

    Args:
        truth: whose videos have durations, and whose file may state characteristics.
        has_one_label: all actions are scored under one label, which the file does not have.
    """
    source = Path(truth.source)
    is_json = source.suffix.lower() == ".json" and source.is_file()
    given: Given = load_given(source) if is_json else {}
    if has_one_label:
        label = truth_table.labels[0] if truth_table.labels else ""
        given = {(video, start, end, label): row for (video, start, end, _), row in given.items()}
    known = {name: truth.videos[name].duration_sec for name in truth_table.videos}
    return diagnose(
        truth_table,
        found_table,
        tious,
        protocol=protocol,
        blocked=blocked,
        durations={name: sec for name, sec in known.items() if sec is not None},
        given=given,
        bins=bins,
    )


def find_epic_errors(
    annotations: Path,
    truth: Sequence[EpicRow],
    found: Sequence[EpicRow],
    tious: Sequence[float],
    *,
    protocol: Protocol,
    blocked: Collection[str],
    bins: Mapping[str, Bins],
) -> Mapping[str, Diagnosis]:
    """Diagnose the three tasks of EPIC-Kitchens-100.

    The lengths of the videos, which coverage needs, are looked for beside the annotations.

    Raises:
        AnnotationError: the table of lengths has mistakes; all are listed.
    """
    lengths = {}
    table = annotations.parent / VIDEO_INFO
    if table.is_file():
        videos, defects = read_video_info(table)
        if defects:
            raise AnnotationError("The lengths of the videos cannot be read.", defects)
        lengths = {name: video.duration_sec for name, video in videos.items()}
    return diagnose_epic(
        truth, found, tious, protocol=protocol, blocked=blocked, durations=lengths, bins=bins
    )
