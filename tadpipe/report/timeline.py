"""Ground truth against detections on a time axis: as text for a terminal, and as a picture.

Every label has one colour and one letter, the same in both; letters carry the meaning where there
is no colour. Colours are those of Okabe and Ito, which colour-blind eyes tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tadpipe.annotations import Action, Detection
from tadpipe.config import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
SPARE_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
IDLE_CELL = "."
NAME_WIDTH = 7  # of "truth" and "found" with two spaces after them
MIN_SCORE = 0.3  # detections below are not drawn
LETTER_SHARE = 0.005  # of the picture's time axis that a letter on a bar takes
TICK_STEPS_SEC = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class VideoTimeline(NamedTuple):
    """One video's ground truth and detections."""

    name: str
    duration_sec: float
    truth: Sequence[Action]
    detections: Sequence[Detection]


def shown_detections(
    detections: Sequence[Detection], *, min_score: float = MIN_SCORE
) -> list[Detection]:
    """The detections a picture shows, in time order.

    Best first, those are taken whose middle lies in no other one that was taken: what a person
    would read off the list. The metric sees all detections.
    """
    taken: list[Detection] = []
    for found in sorted(detections, key=lambda found: -found.score):
        middle = (found.start_sec + found.end_sec) / 2
        free = all(not other.start_sec <= middle < other.end_sec for other in taken)
        if found.score >= min_score and free:
            taken.append(found)
    return sorted(taken, key=lambda found: found.start_sec)


def label_letters(labels: Sequence[str]) -> dict[str, str]:
    """A letter for each label, its own where it is free; "?" when all are used up."""
    letters: dict[str, str] = {}
    for label in labels:
        wanted = [char for char in label.lower() if char.isalnum()]
        free = (char for char in (*wanted, *SPARE_LETTERS) if char not in letters.values())
        letters[label] = next(free, "?")
    return letters


def label_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour "#rrggbb" for each label; they repeat after eight."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def terminal_timeline(
    truth: Sequence[Action] | None,
    detections: Sequence[Detection],
    duration_sec: float,
    *,
    labels: Sequence[str] | None = None,
    width: int = 80,
    colour: bool = False,
    min_score: float = MIN_SCORE,
) -> str:
    """Truth above detections, a time axis and a legend, as text of at most `width` columns.

    Args:
        truth: None where it is not known: no row for it.
        labels: in the order that decides their colours; default those that occur, sorted.
        colour: paint the cells with 24-bit terminal colours; letters are there in any case.
        min_score: detections below are left out.
    """
    shown = shown_detections(detections, min_score=min_score)
    if labels is None:
        labels = sorted({action.label for action in truth or ()} | {found.label for found in shown})
    columns = max(width - NAME_WIDTH, 10)
    letters, colours = label_letters(labels), label_colours(labels)
    rows = []
    for name, segments in (("truth", truth), ("found", shown)):
        if segments is None:
            continue
        cells = _cells(segments, duration_sec, columns)
        text = "".join(
            _run_text(label, len(list(run)), letters, colours if colour else {})
            for label, run in groupby(cells)
        )
        rows.append(f"{name:<{NAME_WIDTH}}{text}")
    rows.append(" " * NAME_WIDTH + _axis(duration_sec, columns))
    return "\n".join([*rows, *_legend(labels, letters, colours if colour else {}, width)])


def _cells(
    segments: Sequence[Action] | Sequence[Detection], duration_sec: float, columns: int
) -> list[str | None]:
    """The label in the middle of each column; a segment gets one column at least."""
    cells: list[str | None] = [None] * columns
    per_sec = columns / max(duration_sec, 1e-9)
    for segment in segments:
        first = min(max(round(segment.start_sec * per_sec), 0), columns - 1)
        last = min(max(round(segment.end_sec * per_sec), first + 1), columns)
        cells[first:last] = [segment.label] * (last - first)
    return cells


def _run_text(
    label: str | None, count: int, letters: Mapping[str, str], colours: Mapping[str, str]
) -> str:
    """`count` neighbouring cells of one label."""
    if label is None:
        return IDLE_CELL * count
    text = letters.get(label, "?") * count
    return _painted(text, colours[label]) if label in colours else text


def _painted(text: str, colour: str) -> str:
    """Black text on a coloured ground, or white where the ground is dark."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    ink = "30" if 0.3 * red + 0.6 * green + 0.1 * blue > 110 else "97"
    return f"\x1b[{ink};48;2;{red};{green};{blue}m{text}\x1b[0m"


def _axis(duration_sec: float, columns: int) -> str:
    """Tick marks with seconds; the unit stands at the first one."""
    room = 8  # columns from one tick to the next, at least
    per_sec = columns / max(duration_sec, 1e-9)
    step = next((s for s in TICK_STEPS_SEC if s * per_sec >= room), TICK_STEPS_SEC[-1])
    line = ""
    for tick in range(0, int(duration_sec) + 1, step):
        place = round(tick * per_sec)
        text = f"|{tick} s" if tick == 0 else f"|{tick}"
        if place >= len(line) and place + len(text) <= columns:
            line = line.ljust(place) + text
    return line


def _legend(
    labels: Sequence[str], letters: Mapping[str, str], colours: Mapping[str, str], width: int
) -> list[str]:
    """`c circle   s sweep`, wrapped to the width."""
    lines: list[str] = []
    used = 0
    for label in labels:
        letter = letters[label]
        entry = f"{_painted(letter, colours[label]) if colours else letter} {label}"
        size = len(label) + 2 + 3
        if not lines or used + size > width:
            lines.append(" " * NAME_WIDTH + entry)
            used = NAME_WIDTH + size
        else:
            lines[-1] += "   " + entry
            used += size
    return lines


def timeline_png(
    path: Path,
    videos: Sequence[VideoTimeline],
    *,
    labels: Sequence[str],
    title: str = "",
    min_score: float = MIN_SCORE,
) -> None:
    """Draw ground truth above detections for each video; the file appears whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 1.2 + 0.95 * len(videos)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(videos), 1, sharex=True, squeeze=False)[:, 0]
    colours = label_colours(labels)
    longest_sec = max(video.duration_sec for video in videos)
    for ax, video in zip(axes, videos, strict=True):
        _draw_video(ax, video, colours, min_score, longest_sec)
    axes[-1].set_xlabel("seconds")
    axes[-1].set_xlim(0, longest_sec)
    patches = [Patch(facecolor=colours[label], edgecolor="black", label=label) for label in labels]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=min(len(labels), 8))
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are no formulas
    figure.suptitle(title, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": "tadpipe"})
    write_atomically(path, picture.getvalue())


def _draw_video(
    ax: Axes,
    video: VideoTimeline,
    colours: Mapping[str, str],
    min_score: float,
    longest_sec: float,
) -> None:
    """Two lanes of bars, with the label on those that are wide enough for it."""
    shown = shown_detections(video.detections, min_score=min_score)
    lanes: tuple[tuple[float, Sequence[Action] | Sequence[Detection]], ...] = (
        (1.0, video.truth),
        (0.0, shown),
    )
    ax.axvspan(video.duration_sec, 1e9, color="#eeeeee")  # after the end of the video
    for height, segments in lanes:
        for segment in segments:
            ax.barh(
                height,
                segment.end_sec - segment.start_sec,
                left=segment.start_sec,
                height=0.8,
                color=colours.get(segment.label, "#ffffff"),
                edgecolor="black",
                linewidth=0.6,
            )
            length_sec = segment.end_sec - segment.start_sec
            if length_sec < LETTER_SHARE * longest_sec * len(segment.label):
                continue
            ax.text(
                (segment.start_sec + segment.end_sec) / 2,
                height,
                segment.label,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if colours.get(segment.label) == "#0072B2" else "black",
                clip_on=True,
                parse_math=False,
            )
    ax.set_yticks([1.0, 0.0], ["truth", "found"])
    ax.set_ylim(-0.5, 1.5)
    ax.set_title(video.name, fontsize=9, loc="left", pad=2, parse_math=False)
