"""Charts of what models have learned: similarity of features by level, ASL's sensitivity.

After DyFADet (Yang et al., ECCV 2024, Fig. 5) and ASL (Shao et al., ICCV 2023, Fig. 4); drawn for
the runs whose folders hold what they are computed from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tadpipe.report.chart import Chart, Row, Spec, by_run, layered, quantity, single_view, tips
from tadpipe.report.systems import FrameSensitivity, LevelSimilarity, SensitivityCurves, System

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
        if system.frame_sensitivity:
            yield _frame_sensitivity(system.name, system.frame_sensitivity)


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


def _frame_sensitivity(name: str, actions: Sequence[FrameSensitivity]) -> Chart:
    """Curves over the seconds of a chosen action, as in ASL's Fig. 4."""
    titles = [
        f"{i + 1}. {a.label}, {a.video}, {a.start_sec:.1f} to {a.end_sec:.1f} s"
        for i, a in enumerate(actions)
    ]
    rows = [
        {"action": title, "second": second, "task": task, "part": part, "value": value}
        for title, action in zip(titles, actions, strict=True)
        for task, part, values in (
            ("classification", "frame", action.classification),
            ("classification", "class alone", action.class_classification),
            ("localisation", "frame", action.localisation),
            ("localisation", "class alone", action.class_localisation),
        )
        for second, value in zip(action.time_sec, values, strict=True)
    ]
    ends = [
        {"action": title, "second": second}
        for title, action in zip(titles, actions, strict=True)
        for second in (action.start_sec, action.end_sec)
    ]
    x = {
        **quantity("second", "seconds of the video; lines: start and end", zero=False),
        "axis": {"tickCount": 6, "labelOverlap": True},
    }
    chosen = [{"filter": "datum.action === shown"}]
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "point": {"size": 22}},
            "transform": chosen,
            "encoding": {
                "x": x,
                "y": quantity("value", "sensitivity h = p + q", zero=True),
                "color": {"field": "task", "type": "nominal", "title": None,
                          "scale": {"range": ["#0072B2", "#E69F00"]}, "legend": {"orient": "top"}},
                "strokeDash": {"field": "part", "type": "nominal", "title": None,
                               "scale": {"domain": ["frame", "class alone"],
                                         "range": [[1, 0], [2, 3]]},
                               "legend": {"orient": "bottom"}},
                "tooltip": tips(task="sub-task", part="part", second="second",
                                value="sensitivity"),
            },
        },
        {
            "data": {"values": ends},
            "mark": {"type": "rule", "color": "#888", "strokeWidth": 2},
            "transform": chosen,
            "encoding": {"x": {"field": "second", "type": "quantitative"}},
        },
    ]  # fmt: skip
    params = [{
        "name": "shown",
        "value": titles[0],
        "bind": {"input": "select", "options": titles, "name": "action "},
    }]  # fmt: skip
    note = (
        "How much each frame of one action weighs in training. Dotted: the part that all actions "
        "of its class share."
    )
    spec = layered(rows, layers, params=params)
    return Chart(SECTION, f"Sensitivity of the frames of an action: {name}", note, spec)
