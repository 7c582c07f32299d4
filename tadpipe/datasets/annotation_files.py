"""Annotations from whatever files a data set is published as: the one loader of every command.

ActivityNet-style JSON for all; the CSV files of EPIC-Kitchens-100 and the moments files of Ego4D
with the data set named. What is known to be wrong in published files is left out and counted; in
other files it is an error.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from tadpipe.annotations import Annotations, load_annotations, settle
from tadpipe.datasets.ego4d_files import is_ego4d, load_ego4d
from tadpipe.datasets.epic_files import epic_document, is_epic, load_epic
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.json_text import shown

logger = logging.getLogger(__name__)

CLASS_MAP = "category_idx.txt"  # beside a JSON without label_id: one name per line, in order


def read_annotations(
    path: str | Path,
    spec: DatasetSpec | None = None,
    *,
    strict: bool | None = None,
    for_evaluation: bool = False,
) -> Annotations:
    """Read annotations as the data set publishes them.

    Args:
        path: ActivityNet-style JSON; a CSV of EPIC-Kitchens-100 or the folder of them; a moments
            file of Ego4D or the folder of them.
        spec: the data set, if it is a public one.
        strict: raise when there is any error. Default: only without a data set.
        for_evaluation: keep odd segments, as `load_annotations` says.
    Raises:
        AnnotationError: unreadable, or errors and `strict`.
        ConfigError: files that need a data set, and none or another is named.
    """
    path = Path(path)
    strict = spec is None if strict is None else strict
    if is_epic(path):
        if spec is None:
            raise ConfigError(
                "CSV annotations are read with their data set named.",
                str(path),
                "Use --dataset epic_kitchens_verb or epic_kitchens_noun, or give JSON.",
            )
        return settle(load_epic(path, spec, for_evaluation=for_evaluation), strict)
    if spec is not None and spec.clips is not None and is_ego4d(path):
        return settle(load_ego4d(path, spec.clips, for_evaluation=for_evaluation), strict)
    if path.is_dir():
        raise AnnotationError(
            "The folder holds no annotations of this data set.",
            [Defect(str(path), "files", "neither EPIC_100_*.csv nor, for Ego4D, moments_*.json")],
            "Name the annotation file; those of Ego4D need --dataset ego4d_mq.",
        )
    found = load_annotations(
        path,
        strict=strict,
        drop_labels=() if spec is None else spec.dropped_labels,
        label_key="label" if spec is None or spec.task is None else spec.task,
        for_evaluation=for_evaluation,
    )
    ordered = _in_class_order(found, path.parent / CLASS_MAP, spec)
    if spec is not None and len(ordered.labels) > spec.num_classes:
        logger.warning(
            "%s has %d labels, %s has %d classes",
            path,
            len(ordered.labels),
            spec.title,
            spec.num_classes,
        )
    return ordered


def annotation_copy(path: str | Path, spec: DatasetSpec | None = None) -> bytes:
    """What a store keeps of annotations: ActivityNet-style JSON that `read_annotations` reads back.

    A copy of EPIC-Kitchens-100 has verbs and nouns, so that one store serves both tasks.
    """
    path = Path(path)
    if spec is not None and is_epic(path):
        return json.dumps(epic_document(path, spec)).encode()
    from_clips = spec is not None and spec.clips is not None and is_ego4d(path)
    if not from_clips and not (path.parent / CLASS_MAP).is_file():
        return path.read_bytes()
    found = read_annotations(path, spec, strict=False, for_evaluation=True)
    return json.dumps(_document(found)).encode()


def annotation_text(found: Annotations) -> str:
    """Annotations as ActivityNet-style JSON."""
    return json.dumps(_document(found), ensure_ascii=False, indent=1) + "\n"


def _in_class_order(found: Annotations, class_map: Path, spec: DatasetSpec | None) -> Annotations:
    """Classes as `label_id` orders them, else as a class map does, else by numbered names."""
    if found.label_ids:
        return found
    if class_map.is_file():
        order = read_class_map(class_map)
        unknown = sorted(set(found.labels) - set(order))
        if unknown:
            raise AnnotationError(
                f"The class map lacks {len(unknown)} labels of the annotations.",
                [Defect(str(class_map), "", f"no line {shown(label)}") for label in unknown],
                f"Complete it, or move it away from {found.source}.",
            )
    elif spec is not None and spec.task and set(found.labels) <= set(spec.class_ids):
        order = spec.class_ids
    else:
        return found
    ids = {label: number for number, label in enumerate(order)}
    return replace(found, labels=order, label_ids=ids)


def read_class_map(path: Path) -> tuple[str, ...]:
    """Labels by class number: one name per line.

    Raises:
        AnnotationError: unreadable, or a name stands there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(
            "The class map cannot be read.", [Defect(str(path), "", str(error))]
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AnnotationError(
            "The class map names a class twice.",
            [Defect(str(path), "", shown(name)) for name in twice],
            "Write every class once, in the order of their numbers.",
        )
    return tuple(names)


def _document(found: Annotations) -> dict[str, Any]:
    """Annotations as an ActivityNet-style document."""
    database = {}
    for name, video in found.videos.items():
        known = {"duration": video.duration_sec, "fps": video.fps}
        entries = []
        for action in video.actions:
            entry: dict[str, Any] = {
                "segment": [action.start_sec, action.end_sec],
                "label": action.label,
            }
            if found.label_ids:
                entry["label_id"] = found.label_ids[action.label]
            entries.append(entry)
        database[name] = {
            "subset": video.subset,
            **{key: value for key, value in known.items() if value is not None},
            "annotations": entries,
        }
    return {"database": database}
