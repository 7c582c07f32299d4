"""Charts of the scores: mAP over tIoU, score against cost, and every class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from tadpipe.evaluation.curves import CURVE_TIOUS
from tadpipe.report.chart import (
    Chart,
    Row,
    Spec,
    by_run,
    layered,
    ordered,
    quantity,
    single_view,
    tips,
)
from tadpipe.report.systems import Spread, System, percent

SECTION = "Scores"
BAR = 11  # pixels of a bar in the chart of classes, with 6 between classes


def overview_charts(systems: Sequence[System]) -> Iterator[Chart]:
    """The charts above the diagnosis."""
    yield _map_by_tiou(systems)
    bubbles = _bubbles(systems)
    if bubbles is not None:
        yield bubbles
    yield _tiou_curve(systems)
    yield _classes(systems)


def _map_by_tiou(systems: Sequence[System]) -> Chart:
    names = [system.name for system in systems]
    rows = [
        {"run": system.name, "tiou": tiou, **_spread(value)}
        for system in systems
        for tiou, value in zip(system.scores[0].tious, system.map_at, strict=True)
    ]
    axis = {"format": ".2f", "values": list(systems[0].scores[0].tious), "labelOverlap": True}
    x = {**quantity("tiou", "tIoU threshold", zero=False, padding=12), "axis": axis}
    tooltip = tips(run="run", tiou="tIoU", value="mAP %", deviation="± over seeds")
    layers = [
        {
            "mark": {"type": "line", "interpolate": "linear"},
            "encoding": {
                "x": x,
                "y": quantity("value", "mAP %", zero=False),
                "color": by_run(names),
                "strokeDash": by_run(names, "strokeDash"),
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x, "y": {"field": "low", "type": "quantitative"},
                         "y2": {"field": "high"}, "color": by_run(names)},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {
                "x": x,
                "y": {"field": "value", "type": "quantitative"},
                "color": by_run(names),
                "shape": by_run(names, "shape"),
                "tooltip": tooltip,
            },
        },
    ]  # fmt: skip
    note = "Bars: one standard deviation over the seeds, where a run has several."
    return Chart(SECTION, "mAP at the thresholds of the evaluation", note, layered(rows, layers))


def _bubbles(systems: Sequence[System]) -> Chart | None:
    """Score against computation, as large as the model; None without two costs to compare."""
    names = [system.name for system in systems]
    rows: list[Row] = [
        {
            "run": system.name,
            "parameters": round(system.cost.parameters / 1e6, 3),
            "gflops": system.cost.gflops,
            "seconds": system.cost.detect_sec_per_minute,
            **_spread(system.average_map),
        }
        for system in systems
        if system.cost.parameters is not None and system.cost.gflops is not None
    ]
    if len(rows) < 2:
        return None
    x = {
        **quantity("gflops", "GFLOPs per window", zero=False, padding=40),
        "axis": {"tickCount": 6},
    }
    sizes = sorted({row["parameters"] for row in rows})
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x, "y": {"field": "low", "type": "quantitative"},
                         "y2": {"field": "high"}, "color": by_run(names)},
        },
        {
            "mark": {"type": "circle", "opacity": 0.75, "stroke": "#888", "strokeWidth": 1},
            "encoding": {
                "x": x,
                "y": quantity("value", "average mAP %", zero=False, padding=30),
                "color": by_run(names),
                "size": {
                    **quantity("parameters", "M parameters", range=[120, 1600], zero=True),
                    "legend": {"orient": "bottom", "values": sizes,
                               "symbolFillColor": "transparent"},
                },
                "tooltip": tips(run="run", value="average mAP %", deviation="± over seeds",
                                parameters="M parameters", gflops="GFLOPs per window",
                                seconds="detection: s per minute of video"),
            },
        },
    ]  # fmt: skip
    note = "The area of a bubble is the number of parameters of the detector."
    return Chart(SECTION, "Score against cost", note, layered(rows, layers))


def _tiou_curve(systems: Sequence[System]) -> Chart:
    names = [system.name for system in systems]
    rows = [
        {"run": system.name, "tiou": tiou, "value": percent(value)}
        for system in systems
        for tiou, value in zip(CURVE_TIOUS, system.diagnosis.tiou_map.tolist(), strict=True)
    ]
    encoding = {
        "x": quantity("tiou", "tIoU threshold", domain=[0, 1]),
        "y": quantity("value", "mAP %", zero=True),
        "color": by_run(names),
        "strokeDash": by_run(names, "strokeDash"),
        "tooltip": tips(run="run", tiou="tIoU", value="mAP %"),
    }
    note = "A steep fall at the right means good places with loose ends. First seed."
    return Chart(
        SECTION,
        "mAP at every tIoU",
        note,
        single_view(rows, {"type": "line", "point": True}, encoding),
    )


def _classes(systems: Sequence[System]) -> Chart:
    names = [system.name for system in systems]
    labels = systems[0].scores[0].labels
    counts = systems[0].scores[0].num_truth.tolist()
    table = np.array([[spread.mean for spread in system.class_ap()] for system in systems])
    order = [labels[k] for k in np.argsort(-table.mean(axis=0), kind="stable").tolist()]
    rows = [
        {"run": system.name, "label": label, "actions": count, **_spread(spread)}
        for system in systems
        for label, count, spread in zip(labels, counts, system.class_ap(), strict=True)
    ]
    y = ordered("label", None, order, axis={"labelLimit": 150})
    offset = {"field": "run", "sort": names}
    layers = [
        {
            "mark": {"type": "bar"},
            "encoding": {
                "y": y,
                "yOffset": offset,
                "x": quantity("value", "AP %, mean over the thresholds", domain=[0, 100]),
                "color": by_run(names),
                "tooltip": tips(run="run", label="class", value="AP %",
                                deviation="± over seeds", actions="actions"),
            },
        },
        {
            "mark": {"type": "rule", "color": "#888", "strokeWidth": 2},
            "encoding": {"y": y, "yOffset": {**offset, "bandPosition": 0.5},
                         "x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
        },
    ]  # fmt: skip
    spec = layered(rows, layers)
    spec["height"] = max(len(labels) * (BAR * len(systems) + 6), 60)
    return Chart(SECTION, "Classes", "Best class first, mean of all runs.", spec, is_wide=True)


def _spread(value: Spread) -> dict[str, float | None]:
    low, high = value.span()
    deviation = math.nan if value.deviation is None else value.deviation
    return {
        "value": percent(value.mean),
        "low": percent(low),
        "high": percent(high),
        "deviation": percent(deviation),
    }
