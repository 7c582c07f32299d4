"""Charts of what models have learned: similarity of features by level, ASL's sensitivity.

After DyFADet (Yang et al., ECCV 2024, Fig. 5) and ASL (Shao et al., ICCV 2023, Fig. 4); drawn for
the runs whose folders hold what they are computed from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tadpipe.report.chart import Chart, Row, by_run, layered, quantity, single_view, tips
from tadpipe.report.systems import LevelSimilarity, SensitivityCurves, System

SECTION = "Models"


def model_charts(systems: Sequence[System]) -> Iterator[Chart]:
    """Cards of the systems that have them; none at all otherwise."""
    known = [(s.name, s.similarity) for s in systems if s.similarity is not None]
    if known:
        yield _average_similarity(known)
        for name, similarity in known:
            yield _matrix(name, similarity)
    for system in systems:
        if system.sensitivity is not None:
            yield _sensitivity(system.name, system.sensitivity)


def _average_similarity(known: Sequence[tuple[str, LevelSimilarity]]) -> Chart:
    names = [name for name, _ in known]
    rows: list[Row] = [
        {"run": name, "level": level, "cosine": cosine}
        for name, similarity in known
        for level, cosine in enumerate(similarity.average_cosine)
        if cosine == cosine  # a level of one row has no pairs
    ]
    encoding = {
        "x": {**quantity("level", "pyramid level, 0 is the finest", zero=False),
              "axis": {"tickMinStep": 1, "format": "d"}},
        "y": quantity("cosine", "average cosine similarity", zero=True),
        "color": by_run(names),
        "strokeDash": by_run(names, "strokeDash"),
        "tooltip": tips(run="run", level="level", cosine="average cosine"),
    }  # fmt: skip
    note = (
        "Between the features of a level at different times, after the neck; low means that times "
        "can be told apart. Mean over the stored videos with most actions."
    )
    spec = single_view(rows, {"type": "line", "point": True}, encoding)
    return Chart(SECTION, "Similarity of features by level", note, spec)


def _matrix(name: str, similarity: LevelSimilarity) -> Chart:
    rows = [
        {"a": i, "b": j, "cosine": cosine}
        for i, row in enumerate(similarity.matrix)
        for j, cosine in enumerate(row)
        if j <= i  # symmetric
    ]
    mirrored = [{**row, "a": row["b"], "b": row["a"]} for row in rows if row["a"] != row["b"]]
    boxes = [{"from": start, "to": end} for start, end in similarity.actions]
    axis = {"type": "quantitative", "scale": {"domain": [0, len(similarity.matrix)], "nice": False}}
    layers = [
        {
            "mark": {"type": "rect"},
            "encoding": {
                "x": {"field": "a", "title": "row of the level", **axis, "bin": {"step": 1}},
                "y": {"field": "b", "title": "row of the level", **axis, "bin": {"step": 1},
                      "sort": "descending"},
                "color": {**quantity("cosine", "cosine", scheme="cividis"),
                          "legend": {"orient": "top", "gradientLength": 120}},
            },
        },
        {
            "data": {"values": boxes},
            "mark": {"type": "rect", "fillOpacity": 0, "stroke": "#D55E00", "strokeWidth": 1.5},
            "encoding": {"x": {"field": "from", **axis}, "x2": {"field": "to"},
                         "y": {"field": "from", **axis}, "y2": {"field": "to"}},
        },
    ]  # fmt: skip
    note = f"{similarity.video}, level of stride {similarity.level_stride}; boxes are actions."
    spec = layered([*rows, *mirrored], layers)
    spec["height"] = 320
    return Chart(SECTION, f"Similarity of times: {name}", note, spec)


def _sensitivity(name: str, curves: SensitivityCurves) -> Chart:
    rows = [
        {"label": label, "position": position, "task": task, "value": value}
        for task, table in (
            ("classification", curves.classification),
            ("localisation", curves.localisation),
        )
        for label, values in zip(curves.labels, table, strict=True)
        for position, value in zip(curves.position, values, strict=True)
    ]
    label = curves.labels[0]
    spec = single_view(
        rows,
        {"type": "line"},
        {
            "x": quantity("position", "place: start -0.5, end 0.5", domain=[-0.5, 0.5]),
            "y": quantity("value", "sensitivity", zero=True),
            "color": {"field": "task", "type": "nominal", "title": None,
                      "scale": {"range": ["#0072B2", "#E69F00"]}, "legend": {"orient": "top"}},
            "strokeDash": {"field": "task", "type": "nominal", "title": None,
                           "legend": {"orient": "top"}},
            "tooltip": tips(label="class", task="sub-task", position="place", value="sensitivity"),
        },
        params=[{
            "name": "shown",
            "value": label,
            "bind": {"input": "select", "options": list(curves.labels), "name": "class "},
        }],
        transform=[{"filter": "datum.label === shown"}],
    )  # fmt: skip
    note = "Which part of an action its class and its ends depend on, as learned per class."
    return Chart(SECTION, f"Sensitivity within an action: {name}", note, spec)
