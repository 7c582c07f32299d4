"""What an action is like - how long, how much of its video, one of how many - and bins of that.

DETAD's characteristics: read from the annotation file where it has them, else computed; context
and agreement are human judgements and exist only in a file. G ground-truth actions.
Source: DETAD (Alwassel et al., ECCV 2018, Sec. 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.evaluation.tables import Floats, Integers, TruthTable
from tadpipe.json_text import child, finite, read_json, shown
from tadpipe.registry import nearest

COVERAGE, LENGTH, INSTANCES = "coverage", "length", "num-instances"
CHARACTERISTICS = (COVERAGE, LENGTH, INSTANCES, "context-size", "context-distance", "agreement")
CONTEXT_DISTANCES = ("Inf", "N", "M", "F")  # 0 to 3: none, near, middle, far
QUANTILES = "quantiles"

ActionKey = tuple[str, float, float, str]  # video, start, end, label
Given = Mapping[ActionKey, Mapping[str, float]]  # the characteristics a file states


class Bins(NamedTuple):
    """Right-closed intervals; the lowest edge belongs to the first."""

    names: tuple[str, ...]  # B
    edges: tuple[float, ...]  # B + 1, from left to right

    def of(self, values: Floats) -> Integers:
        """Bin of each value, -1 for none and for NaN."""
        index = np.searchsorted(np.array(self.edges[1:]), values, side="left")
        inside = (values >= self.edges[0]) & (values <= self.edges[-1])
        return np.where(inside, index, -1)


_SIZES = ("XS", "S", "M", "L", "XL")
_FIFTHS = tuple(np.linspace(0.0, 1.0, 6).tolist())
_HUMAN = {
    "context-size": Bins(tuple("0123456"), tuple(float(n) for n in range(-1, 7))),
    "context-distance": Bins(CONTEXT_DISTANCES, (-1.0, 0.0, 1.0, 2.0, 3.0)),
    "agreement": Bins(("XW", "W", "M", "H", "XH"), _FIFTHS),
}
BIN_SETS: dict[str, dict[str, Bins]] = {  # the published bins, by data set
    "activitynet": {
        COVERAGE: Bins(_SIZES, _FIFTHS),
        LENGTH: Bins(_SIZES, (0.0, 30.0, 60.0, 120.0, 180.0, math.inf)),
        INSTANCES: Bins(_SIZES[:4], (-1.0, 1.0, 4.0, 8.0, math.inf)),
        **_HUMAN,
    },
    "thumos14": {
        COVERAGE: Bins(_SIZES, (0.0, 0.02, 0.04, 0.06, 0.08, 1.0)),
        LENGTH: Bins(_SIZES, (0.0, 3.0, 6.0, 12.0, 18.0, math.inf)),
        INSTANCES: Bins(_SIZES[:4], (-1.0, 1.0, 40.0, 80.0, math.inf)),
        **_HUMAN,
    },
}


@dataclass(frozen=True)
class Characteristic:
    """One characteristic of all actions, in bins."""

    name: str
    values: Floats  # [G], NaN where not known
    bins: Bins
    bin_of: Integers  # [G], -1 for no bin
    from_file: bool  # read, at least in part


class Measured(NamedTuple):
    """Values of one characteristic before they are binned."""

    values: Floats  # [G]
    from_file: bool


def measure(truth: TruthTable, durations: Mapping[str, float], given: Given) -> dict[str, Measured]:
    """The characteristics of all actions; those that no action has are left out.

    Args:
        durations: seconds of each video, as far as known; coverage needs them.
        given: what the annotation file states; it comes before what is computed.
    """
    length = truth.end_sec - truth.start_sec
    whole = np.array([durations.get(name, math.nan) for name in truth.videos])
    real = truth.video[length > 0]
    per_video = np.bincount(real, minlength=len(truth.videos)).astype(np.float64)
    computed = {
        COVERAGE: length / whole[truth.video],
        LENGTH: length,
        INSTANCES: per_video[truth.video],
    }
    rows = zip(
        (truth.videos[i] for i in truth.video.tolist()),
        truth.start_sec.tolist(),
        truth.end_sec.tolist(),
        (truth.labels[i] for i in truth.label.tolist()),
        strict=True,
    )
    stated = [given.get(row, {}) for row in rows] if given else []
    measured = {}
    for name in CHARACTERISTICS:
        values = computed.get(name, np.full(length.size, math.nan))
        read = np.array([node.get(name, math.nan) for node in stated] or values * math.nan)
        values = np.where(np.isnan(read), values, read)
        if not np.isnan(values).all():
            measured[name] = Measured(values, not np.isnan(read).all())
    return measured


def in_bins(
    measured: Mapping[str, Measured], bins: str | Mapping[str, Bins]
) -> tuple[Characteristic, ...]:
    """Put every characteristic into its bins.

    Args:
        bins: a name of BIN_SETS, "quantiles" (fifths of the actions at hand), or own bins; what
            own bins leave out is put into quantiles.
    """
    own = named_bins(bins) if isinstance(bins, str) else bins
    found = []
    for name, (values, from_file) in measured.items():
        chosen = own.get(name) or _HUMAN.get(name) or quantile_bins(values)
        found.append(Characteristic(name, values, chosen, chosen.of(values), from_file))
    return tuple(found)


def quantile_bins(values: Floats) -> Bins:
    """Up to five bins with about equally many of the values; equal values share a bin."""
    known = values[~np.isnan(values)]
    upper = np.quantile(known, (0.2, 0.4, 0.6, 0.8, 1.0), method="inverted_cdf")
    edges = np.r_[known.min(), np.unique(upper)]
    names = {1: _SIZES[2:3], 2: _SIZES[1:4:2], 3: _SIZES[1:4], 4: (*_SIZES[:2], *_SIZES[3:])}
    return Bins(names.get(edges.size - 1, _SIZES), tuple(edges.tolist()))


def named_bins(name: str) -> Mapping[str, Bins]:
    """The published bins of that name; none for "quantiles".

    Raises:
        ConfigError: no such name; the message has the nearest ones.
    """
    if name == QUANTILES:
        return {}
    if name not in BIN_SETS:
        known = (*BIN_SETS, QUANTILES)
        raise ConfigError(
            f"No bins '{name}'.",
            "",
            f"Use {', '.join(nearest(name, known) or known)}, or a JSON file with your own.",
        )
    return BIN_SETS[name]


def load_bins(path: str | Path) -> dict[str, Bins]:
    """Read own bins: `{"length": {"edges": [0, 5, 10, "inf"], "names": ["S", "M", "L"]}}`.

    Raises:
        AnnotationError: unreadable, or entries with mistakes; all are listed.
    """
    return bins_from_mapping(read_json(Path(path)), str(path))


def bins_from_mapping(document: Any, source: str = "") -> dict[str, Bins]:
    """Own bins from JSON values, as `load_bins`."""
    defects: list[Defect] = []
    found = {}
    if not isinstance(document, dict):
        defects.append(Defect(source, "$", f"{shown(document)} is not an object of bins"))
        document = {}
    for name, node in document.items():
        place = child("$", name)
        if name not in CHARACTERISTICS:
            known = f"known: {', '.join(CHARACTERISTICS)}"
            defects.append(Defect(source, place, f"no such characteristic; {known}"))
            continue
        edges = _edges(node.get("edges")) if isinstance(node, dict) else None
        names = node.get("names") if isinstance(node, dict) else None
        if edges is None:
            message = 'write {"edges": [rising numbers, "inf" at the end], "names": [...]}'
            defects.append(Defect(source, place, message))
        elif not isinstance(names, list) or len(names) != len(edges) - 1:
            defects.append(Defect(source, f"{place}.names", f"needs {len(edges) - 1} names"))
        else:
            found[name] = Bins(tuple(map(str, names)), edges)
    if defects:
        raise AnnotationError("The bins cannot be used.", defects, "Mend these entries.")
    return found


def _edges(value: Any) -> tuple[float, ...] | None:
    """Two or more rising numbers, the last may be "inf"; None for anything else."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    last = math.inf if value[-1] in ("inf", "Infinity", math.inf) else finite(value[-1])
    edges = [*map(finite, value[:-1]), last]
    numbers = [edge for edge in edges if edge is not None]
    rising = all(a < b for a, b in pairwise(numbers))
    return tuple(numbers) if rising and len(numbers) == len(edges) else None


def load_given(path: str | Path) -> Given:
    """The characteristics that an ActivityNet-style annotation file states for its actions.

    Raises:
        AnnotationError: unreadable, or a characteristic that is no number; all are listed.
    """
    document = read_json(Path(path))
    database = document.get("database") if isinstance(document, dict) else None
    given: dict[ActionKey, dict[str, float]] = {}
    defects: list[Defect] = []
    for video, node in (database if isinstance(database, dict) else {}).items():
        entries = node.get("annotations") if isinstance(node, dict) else None
        for i, entry in enumerate(entries if isinstance(entries, list) else ()):
            key = _key(video, entry)
            if key is None:
                continue  # a defect that `load_annotations` reports
            place = f"{child('$.database', video)}.annotations[{i}]"
            stated = {}
            for name in CHARACTERISTICS:
                if entry.get(name) is None:
                    continue
                number = _number(name, entry[name])
                if number is None:
                    message = f"{shown(entry[name])} is not a number"
                    defects.append(Defect(str(path), f"{place}.{name}", message))
                else:
                    stated[name] = number
            if stated:
                given[key] = stated
    if defects:
        raise AnnotationError(
            "Characteristics of actions cannot be read.", defects, "Correct or remove them."
        )
    return given


def _key(video: str, entry: Any) -> ActionKey | None:
    if not isinstance(entry, dict):
        return None
    segment, label = entry.get("segment"), entry.get("label")
    if not isinstance(segment, list) or len(segment) != 2 or not isinstance(label, str):
        return None
    start, end = finite(segment[0]), finite(segment[1])
    return None if start is None or end is None else (video, start, end, label)


def _number(name: str, value: Any) -> float | None:
    if name == "context-distance" and value in CONTEXT_DISTANCES:
        return float(CONTEXT_DISTANCES.index(value))
    return finite(value)


def occupied(bin_of: Integers, bins: Bins) -> NDArray[np.int64]:
    """The bins that have an action, in their order."""
    return np.unique(bin_of[(bin_of >= 0) & (bin_of < len(bins.names))])
