"""A chart of the report: a Vega-Lite specification with the words around it.

Charts are as wide as their card. Fields have fixed names; labels of data occur only as values, so
that no name can be taken for a formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tadpipe.report.systems import run_colours

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
HEIGHT = 260  # pixels of the plot
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 2], [2, 4])

Row = Mapping[str, Any]
Spec = dict[str, Any]


class Chart(NamedTuple):
    """One card of the page."""

    section: str
    title: str
    note: str  # how to read it
    spec: Spec
    is_wide: bool = False  # takes a whole row of the page

    def to_mapping(self) -> dict[str, Any]:
        return self._asdict()


def single_view(rows: Sequence[Row], mark: Any, encoding: Mapping[str, Any], **top: Any) -> Spec:
    """A specification with its data inside."""
    return {
        "$schema": SCHEMA,
        "data": {"values": list(rows)},
        "width": "container",
        "height": HEIGHT,
        "mark": mark,
        "encoding": dict(encoding),
        **top,
    }


def layered(rows: Sequence[Row], layers: Sequence[Spec], **top: Any) -> Spec:
    """Marks over one another on shared data."""
    return {
        "$schema": SCHEMA,
        "data": {"values": list(rows)},
        "width": "container",
        "height": HEIGHT,
        "layer": list(layers),
        **top,
    }


def by_run(names: Sequence[str], channel: str = "color") -> dict[str, Any]:
    """The systems' own colour, shape or dash; without a legend where there is only one."""
    ranges: dict[str, list[Any]] = {
        "color": run_colours(names),
        "shape": [SHAPES[i % len(SHAPES)] for i in range(len(names))],
        "strokeDash": [DASHES[i % len(DASHES)] for i in range(len(names))],
    }
    return {
        "field": "run",
        "type": "nominal",
        "title": None,
        "sort": list(names),
        "scale": {"domain": list(names), "range": ranges[channel]},
        "legend": {"orient": "top", "columns": 2, "labelLimit": 260} if len(names) > 1 else None,
    }


def quantity(field: str, title: str, **scale: Any) -> dict[str, Any]:
    """A measured value on an axis."""
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def ordered(field: str, title: str | None, names: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Names on an axis, in the order given."""
    return {"field": field, "type": "nominal", "title": title, "sort": list(names), **more}


def tips(**titles: str) -> list[dict[str, Any]]:
    """What is shown of a mark under the pointer."""
    return [{"field": name, "title": title} for name, title in titles.items()]
