"""Annotations, class map and splits before anything runs: everything wrong with them at once.

What the readers find is taken over as findings; what only shows when entries are compared with
one another (labels, splits, names) is looked for here.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tadpipe.annotations import Annotations, Video, load_annotations
from tadpipe.datasets.annotation_files import CLASS_MAP, read_annotations, read_class_map
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import AnnotationError, Defect, TadpipeError
from tadpipe.json_text import child, shown
from tadpipe.pipeline.subsets import (
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
    Subsets,
    choose_subsets,
)
from tadpipe.pipeline.validate_findings import Finding, Severity, from_error
from tadpipe.pipeline.video_files import SUFFIXES
from tadpipe.registry import nearest

# How the readers' messages tell what kind of defect it is; the first that fits.
PHRASES = (
    ("the video occurs twice", "repeated-video"),
    ("occurs twice", "repeated-key"),
    ("is not before end", "empty-segment"),
    ("lies before the video", "negative-time"),
    ("reaches beyond the duration", "segment-beyond-duration"),
    ("the same segment and label", "repeated-segment"),
    ("use one id", "label-id"),
    ("no label_id for", "label-id"),
    ("file, too", "repeated-video"),
)
FEWEST_TWIN_ACTIONS = 2  # one equal action alone may be chance


def read_all(path: Path, spec: DatasetSpec | None) -> tuple[Annotations | None, list[Finding]]:
    """The annotations as far as they can be read, and everything their readers say.

    With a public data set entries with errors are left out by every command: warnings here.
    """
    findings: list[Finding] = []
    try:
        found = read_annotations(path, spec, strict=False)
    except AnnotationError as error:
        findings += _class_map(path, error)
        try:
            found = load_annotations(
                path,
                strict=False,
                drop_labels=() if spec is None else spec.dropped_labels,
                label_key="label" if spec is None or spec.task is None else spec.task,
            )
        except AnnotationError:
            return None, findings
        findings = _labels_not_in_map(path, found) or findings
    except TadpipeError as error:
        return None, [from_error("unreadable-annotations", str(path), "", error)]
    return found, [*from_defects(found.defects, lenient=spec is not None), *findings]


def from_defects(defects: Iterable[Defect], *, lenient: bool) -> Iterator[Finding]:
    """Findings of what a reader has noted; `lenient` where errors are left out, not fatal."""
    for defect in defects:
        kind = next((kind for phrase, kind in PHRASES if phrase in defect.message), None)
        is_warning = defect.is_warning or lenient
        yield Finding(
            "warning" if is_warning else "error",
            kind or "malformed-entry",
            defect.file,
            defect.place,
            defect.message,
        )


def check_labels(found: Annotations, spec: DatasetSpec | None, path: Path | None) -> list[Finding]:
    """Labels against each other, the class map and the data set.

    Args:
        path: of the annotation file, which the class map lies beside; None = a store's copy.
    """
    findings = []
    spellings: dict[str, list[str]] = {}
    for label in found.labels:
        spellings.setdefault(_alike(label), []).append(label)
    for group in spellings.values():
        if len(group) > 1:
            text = " and ".join(shown(label) for label in group)
            findings.append(Finding("warning", "labels-alike", found.source, "", text))
    if spec is not None and len(found.labels) > spec.num_classes:
        text = f"{len(found.labels)} labels, {spec.title} has {spec.num_classes} classes"
        findings.append(Finding("warning", "too-many-classes", found.source, "", text))
    findings += _several_labels(found)
    if path is not None and found.label_ids:
        class_map = path.parent / CLASS_MAP
        if class_map.is_file():
            findings += _map_against_ids(found, class_map)
    return findings


def check_subsets(
    found: Annotations,
    spec: DatasetSpec | None,
    asked: Subsets | tuple[str | None, str | None, str | None],
) -> tuple[Subsets | None, list[Finding]]:
    """The splits the commands would take, and what is wrong with each.

    Args:
        asked: training, test and validation subset, None where nothing is asked for.
    """
    train, test, validation = asked
    try:
        subsets = choose_subsets(found, spec, train=train, test=test, validation=validation)
    except TadpipeError as error:
        findings = [from_error("empty-split", found.source, "$.database", error)]
        try:
            subsets = choose_subsets(found)  # what can be told without the names asked for
        except TadpipeError:
            return None, findings
        return subsets, findings + _each_split(found, spec, subsets)
    findings = _each_split(found, spec, subsets)
    if subsets.test is None and subsets.validation is None:
        text = f"all {len(found.videos)} videos are in '{subsets.train}'"
        findings.append(Finding("warning", "no-test-subset", found.source, "$.database", text))
    return subsets, findings


def check_names(found: Annotations, spec: DatasetSpec | None) -> list[Finding]:
    """Videos of one name, and those on the block list."""
    prefix = "" if spec is None else spec.feature_prefix
    bases: dict[str, list[Video]] = {}
    for video in found.videos.values():
        bases.setdefault(base_name(video.name, prefix), []).append(video)
    findings = []
    for videos in bases.values():
        if len(videos) > 1:
            leaks = len({video.subset.lower() for video in videos}) > 1
            kind = "leak-name" if leaks else "names-alike"
            findings.append(_group(found, kind, videos))
    for name, reason in {} if spec is None else spec.blocked.items():
        if name in found.videos:
            under = ", ".join(spec.blocked_under) if spec is not None else ""
            text = f"{reason}; left out under {under}"
            place = child("$.database", name)
            findings.append(Finding("note", "blocked-video", found.source, place, text))
    return findings


def check_twins(found: Annotations) -> list[Finding]:
    """Videos of one length with the very same actions."""
    groups: dict[object, list[Video]] = {}
    for video in found.videos.values():
        if len(video.actions) >= FEWEST_TWIN_ACTIONS:
            groups.setdefault((video.duration_sec, frozenset(video.actions)), []).append(video)
    return [_group(found, "same-actions", videos) for videos in groups.values() if videos[1:]]


def check_contents(groups: Iterable[Sequence[str]], videos: Mapping[str, Video]) -> list[Finding]:
    """Annotated videos whose files are equal, across splits or within one."""
    findings = []
    for names in sorted({tuple(sorted(group)) for group in groups}):
        known = [videos[name] for name in names if name in videos]
        if len(known) < 2:
            continue
        leaks = len({video.subset.lower() for video in known}) > 1
        text = " = ".join(f"{shown(video.name)} ({video.subset})" for video in known)
        how: Severity = "error" if leaks else "warning"
        kind = "leak-content" if leaks else "same-content"
        findings.append(Finding(how, kind, "", known[0].name, text))
    return findings


def base_name(name: str, prefix: str = "") -> str:
    """A name without folder, video suffix, the data set's prefix and case."""
    path = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return stem.removeprefix(prefix).casefold()


def _each_split(found: Annotations, spec: DatasetSpec | None, subsets: Subsets) -> list[Finding]:
    findings = []
    used = {name for name in subsets if name is not None}
    usual = {*TRAIN_NAMES, *TEST_NAMES}
    for name in found.subset_names():
        videos = found.subset(name).values()
        if any(video.actions for video in videos):
            if name not in used and spec is None:
                text = f"'{name}': {len(videos)} videos"
                meant = [] if name.lower() in usual else nearest(name.lower(), usual, 1)
                text += f"; is '{meant[0]}' meant?" if meant else ""
                is_odd: Severity = "warning" if meant else "note"
                findings.append(Finding(is_odd, "unused-subset", found.source, "$.database", text))
        elif name in used or (spec is None and name.lower() in (*TEST_NAMES, *VALIDATION_NAMES)):
            text = f"'{name}': {len(videos)} videos, no action"
            how: Severity = "error" if name in used else "warning"
            findings.append(Finding(how, "no-ground-truth", found.source, "$.database", text))
    training = found.subset(subsets.train)
    trained = {action.label for video in training.values() for action in video.actions}
    empty = [name for name, video in training.items() if not video.actions]
    for name in empty if trained else ():
        place = child("$.database", name)
        findings.append(Finding("note", "no-actions", found.source, place, f"'{subsets.train}'"))
    if subsets.test is not None and trained:
        tested = Counter(
            a.label for video in found.subset(subsets.test).values() for a in video.actions
        )
        for label in sorted(set(tested) - trained):
            text = f"{shown(label)}: {tested[label]} actions in '{subsets.test}'"
            findings.append(Finding("warning", "untrained-class", found.source, "", text))
    return findings


def _class_map(path: Path, error: AnnotationError) -> list[Finding]:
    """An AnnotationError of the class map or of the whole file."""
    class_map = str(path.parent / CLASS_MAP)
    findings = []
    for defect in error.defects or [Defect(str(path), "", error.what)]:
        kind = "class-map" if defect.file == class_map else "unreadable-annotations"
        text = f"{error.what} {defect.message}"
        findings.append(Finding("error", kind, defect.file, defect.place, text, error.todo))
    return findings


def _labels_not_in_map(path: Path, found: Annotations) -> list[Finding]:
    """Every label without a line in the class map; empty where the map itself is unusable."""
    class_map = path.parent / CLASS_MAP
    try:
        known = set(read_class_map(class_map))
    except AnnotationError:
        return []
    findings = []
    for label in sorted(set(found.labels) - known):
        uses = [v.name for v in found.videos.values() for a in v.actions if a.label == label]
        if uses:
            place = child("$.database", uses[0])
            text = f"{shown(label)} has no line in {class_map.name}; {len(uses)} actions"
            findings.append(Finding("error", "label-not-in-class-map", found.source, place, text))
    return findings


def _map_against_ids(found: Annotations, class_map: Path) -> list[Finding]:
    try:
        order = read_class_map(class_map)
    except AnnotationError as error:
        return [from_error("class-map", str(class_map), "", error, "warning")]
    numbers = {label: number for number, label in enumerate(order)}
    findings = []
    for label, number in found.label_ids.items():
        if numbers.get(label) != number:
            kind = "class-map-order" if label in numbers else "label-not-in-class-map"
            there = f"line {numbers[label]}" if label in numbers else "no line"
            text = f"{shown(label)}: label_id {number}, {there} (counted from 0) of the class map"
            findings.append(Finding("warning", kind, str(class_map), "", text))
    return findings


def _group(found: Annotations, kind: str, videos: Sequence[Video]) -> Finding:
    """A warning about videos that belong together, at the first of them."""
    text = ", ".join(f"{shown(video.name)} ({video.subset})" for video in videos)
    return Finding("warning", kind, found.source, child("$.database", videos[0].name), text)


def _several_labels(found: Annotations) -> list[Finding]:
    """Which labels share segments, and how often; one finding per set of labels."""
    counts: Counter[tuple[str, ...]] = Counter()
    first: dict[tuple[str, ...], str] = {}
    for video in found.videos.values():
        labels: dict[tuple[float, float], set[str]] = {}
        for action in video.actions:
            labels.setdefault((action.start_sec, action.end_sec), set()).add(action.label)
        for together in labels.values():
            if len(together) > 1:
                key = tuple(sorted(together))
                counts[key] += 1
                first.setdefault(key, video.name)
    return [
        Finding(
            "note",
            "several-labels",
            found.source,
            child("$.database", first[labels]),
            f"{' and '.join(map(shown, labels))} share {count} segment{'s'[: count != 1]}",
        )
        for labels, count in counts.items()
    ]


def _alike(label: str) -> str:
    """A label without case, blanks, underscores and hyphens."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return "".join(c for c in text if not c.isspace() and c not in "_-")
