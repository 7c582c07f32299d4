"""Files of video-level class scores, as the authors of video classifiers release them.

`.json` {"results": {video: [K scores] or [[K scores]]}, "class" or "classes": [K names]}: CUHK,
TCANet, UniFormerV2, InternVideo, Swin. `.npy` [1574, 101]: UntrimmedNet on the THUMOS14 test
videos. `.pkl` {video: [K scores]}: ActionFormer. All become {video: {label: score}}; whatever is
wrong with a file is told at once, and nothing in a pickle is executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tadpipe.class_scores import name_class_scores
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.json_text import JsonReader, child, collector_paused, kind, read_json, shown
from tadpipe.store.feature_files import PICKLE_SUFFIXES
from tadpipe.store.restricted_pickle import RefusedPickleError, load_arrays

VideoScores = dict[str, dict[str, float]]  # video -> label -> score

MAX_BYTES = 2**29  # a file of 20,000 videos and 200 classes has a fifth of that
MAX_SHOWN = 10  # defects of one file that are listed
CLASS_KEYS = ("class", "classes")
EXAMPLE = '{"results": {"video": [scores]}, "class": [names]}'

# The 20 classes of THUMOS14 by their numbers among the 101 of its trimmed videos, from 1.
THUMOS14_NUMBERS = {
    "BaseballPitch": 7,
    "BasketballDunk": 9,
    "Billiards": 12,
    "CleanAndJerk": 21,
    "CliffDiving": 22,
    "CricketBowling": 23,
    "CricketShot": 24,
    "Diving": 26,
    "FrisbeeCatch": 31,
    "GolfSwing": 33,
    "HammerThrow": 36,
    "HighJump": 40,
    "JavelinThrow": 45,
    "LongJump": 51,
    "PoleVault": 68,
    "Shotput": 79,
    "SoccerPenalty": 85,
    "TennisSwing": 92,
    "ThrowDiscus": 93,
    "VolleyballSpiking": 97,
}
UNTRIMMEDNET_SHAPE = (1574, 101)  # row = number of the test video - 1, column = class number - 1


def read_class_scores(
    path: str | Path, labels: Sequence[str] = (), label_ids: Mapping[str, int] | None = None
) -> VideoScores:
    """Read a score file; the suffix tells its kind.

    Args:
        labels: of the annotations; each must have scores. Classes they do not have are kept.
        label_ids: their `label_id`, which numbers the scores of a file without class names. A
            file of 20 scores without names is in the order of THUMOS14's classes, by name.
    Raises:
        AnnotationError: the file cannot be read, is of another kind, or has defects: a video
            with another number of scores, no finite number, no class names, an unknown label.
    """
    path = Path(path)
    readers = {".json": _read_json, ".npy": _read_untrimmednet}
    readers |= dict.fromkeys(PICKLE_SUFFIXES, _read_pickle)
    read = readers.get(path.suffix.lower())
    if read is None:
        raise _error(
            "Unknown kind of class-score file.",
            [(f"suffix '{path.suffix}'", f"known: {', '.join(sorted(readers))}")],
            path,
            "Give the file as its authors released it.",
        )
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise _error("The file cannot be read.", [("$", error.strerror or "")], path) from None
    if size is None or size > MAX_BYTES:
        reason = "no such file" if size is None else f"{size} bytes, more than {MAX_BYTES}"
        raise _error("The class scores cannot be read.", [("$", reason)], path, "Check the path.")
    names = _ClassNames(path, tuple(labels), dict(label_ids or {}))
    with collector_paused():
        scores = read(path, names)
    if not scores:
        raise _error("The file has class scores of no video.", [("$", "empty")], path)
    names.check_labels(next(iter(scores.values())))
    return scores


class _ClassNames:
    """Which label a column of scores belongs to, as far as the annotations tell."""

    def __init__(self, path: Path, labels: tuple[str, ...], ids: dict[str, int]) -> None:
        self.path = path
        self.labels = labels
        self.by_id = {number: label for label, number in ids.items()}

    def numbered(self, numbers: Sequence[int], where: str) -> list[str]:
        """The labels of columns that are known by their number only.

        Raises:
            AnnotationError: the annotations do not number their labels like that.
        """
        if set(numbers) == set(self.by_id) and len(numbers) == len(self.by_id):
            return [self.by_id[number] for number in numbers]
        thumos = list(THUMOS14_NUMBERS)  # by name, which is the order of ActionFormer's label_id
        in_order = list(numbers) == list(range(len(thumos)))
        if in_order and not self.by_id and set(self.labels) <= set(thumos):
            return thumos
        ids = f"label_id for {len(self.by_id)} labels" if self.by_id else "no label_id"
        raise _error(
            "The class scores do not name their classes.",
            [(where, f"{len(numbers)} classes without names; the annotations have {ids}")],
            self.path,
            "Use a file with class names, or annotations that number just these classes.",
        )

    def check_labels(self, scored: Mapping[str, float]) -> None:
        """Every annotated label must have a score.

        Raises:
            AnnotationError: some have none; names those, and classes that nobody knows.
        """
        missing = [label for label in self.labels if label not in scored]
        if not missing:
            return
        odd = sorted(set(scored) - set(self.labels))
        raise _error(
            "The class scores are for other labels than the annotations.",
            [
                ("annotated, without scores", _some(missing)),
                ("scored, not annotated", _some(odd) or "none"),
            ],
            self.path,
            "Use the score file of this data set; names must be spelled alike.",
        )


def _read_json(path: Path, names: _ClassNames) -> VideoScores:
    """`results` and `class` or `classes`, which may be left out or hold numbers."""
    document = read_json(path)
    reader = JsonReader(str(path))
    results = reader.table(document, "results", EXAMPLE)
    _stop(reader.defects, path)
    given = next((document[key] for key in CLASS_KEYS if key in document), None)
    labels = _labels_of(given, names, path) if given is not None else None
    return _named(results, labels, names, "$.results")


def _labels_of(given: Any, names: _ClassNames, path: Path) -> list[str]:
    """The class list of a file: names, or numbers of the annotations' labels."""
    place = "$.class"
    if not isinstance(given, list) or not given:
        raise _error(
            "The list of classes is not one.", [(place, f"{kind(given)}: {shown(given)}")], path
        )
    if all(type(entry) is int for entry in given):
        return names.numbered(given, place)
    seen: set[str] = set()
    defects = []
    for i, entry in enumerate(given):
        if not isinstance(entry, str) or not entry.strip():
            defects.append(Defect(str(path), f"{place}[{i}]", f"{shown(entry)} is not a name"))
        elif entry in seen:
            defects.append(Defect(str(path), f"{place}[{i}]", f"{shown(entry)} occurs twice"))
        else:
            seen.add(entry)
    _stop(defects, path)
    return given


def _read_pickle(path: Path, names: _ClassNames) -> VideoScores:
    """{video: scores} as lists or arrays of numbers, without class names."""
    try:
        document = load_arrays(path)
    except RefusedPickleError as error:
        raise _error(
            "The pickle holds more than numbers.",
            [("$", str(error))],
            path,
            "It was not opened; save the scores as JSON: " + EXAMPLE,
        ) from None
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, EOFError),
        *(pickle.UnpicklingError, MemoryError, RecursionError, OverflowError),
    ) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise _error("The pickle is damaged.", [("$", said)], path, "Get it again.") from None
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise _error(
            "Expected scores by video.",
            [("$", f"{type(document).__name__}, or keys that are no names")],
            path,
            "The pickle must hold {video: scores}.",
        )
    return _named({name: _plain(entry) for name, entry in document.items()}, None, names, "$")


def _read_untrimmednet(path: Path, names: _ClassNames) -> VideoScores:
    """The 20 columns of THUMOS14's classes, of all its 1,574 test videos."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, OverflowError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise _error("The array cannot be read.", [("$", said)], path, "Get it again.") from None
    if array.shape != UNTRIMMEDNET_SHAPE or array.dtype.kind not in "fiu":
        raise _error(
            "Not the scores of UntrimmedNet on THUMOS14.",
            [("$", f"{list(array.shape)} {array.dtype}, not {list(UNTRIMMEDNET_SHAPE)} numbers")],
            path,
            "Rows are the 1,574 test videos, columns the 101 classes.",
        )
    chosen = np.array(array[:, [number - 1 for number in THUMOS14_NUMBERS.values()]], float)
    rows = {f"video_test_{i + 1:07d}": row for i, row in enumerate(chosen.tolist())}
    return _named(rows, list(THUMOS14_NUMBERS), names, "$")


def _named(
    entries: Mapping[str, Any], labels: Sequence[str] | None, names: _ClassNames, place: str
) -> VideoScores:
    """Scores by label of every entry; all defects are found before any is told."""
    scores: VideoScores = {}
    defects = []
    for video, entry in entries.items():
        spot = child(place, video)
        if not isinstance(entry, list) or not entry:
            defects.append(Defect(str(names.path), spot, f"{kind(entry)}, not a list of scores"))
            continue
        if labels is None:
            inner = entry[0] if len(entry) == 1 and isinstance(entry[0], list) else entry
            labels = names.numbered(range(len(inner)), spot)
        try:
            scores[video] = name_class_scores(entry, labels)
        except ConfigError as error:
            defects.append(Defect(str(names.path), spot, error.where))
    _stop(defects, names.path)
    return scores


def _plain(value: Any) -> Any:
    """Arrays as lists, also inside a list."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _stop(defects: Sequence[Defect], path: Path) -> None:
    """Raise if there are defects; the first ones are shown."""
    if not defects:
        return
    listed = list(defects[:MAX_SHOWN])
    if len(defects) > MAX_SHOWN:
        listed.append(Defect(str(path), "$", f"and {len(defects) - MAX_SHOWN} more"))
    raise AnnotationError(
        f"The class scores have {len(defects)} error{'s'[: len(defects) != 1]}.",
        listed,
        f"Mend the file; its form is {EXAMPLE}",
    )


def _error(
    what: str, places: Sequence[tuple[str, str]], path: Path, todo: str = "Check the file."
) -> AnnotationError:
    return AnnotationError(what, [Defect(str(path), *place) for place in places], todo)


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > MAX_SHOWN else ""
    return ", ".join(shown(name) for name in names[:MAX_SHOWN]) + more
