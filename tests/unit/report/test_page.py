"""The page as text: what it embeds, and that data stays data."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
import vl_convert

from tadpipe.evaluation.false_positives import KINDS
from tadpipe.report.chart import Chart
from tadpipe.report.diagnosis_charts import diagnosis_charts
from tadpipe.report.model_charts import model_charts
from tadpipe.report.overview_charts import overview_charts
from tadpipe.report.page import embedded_json, page_html
from tadpipe.report.systems import (
    Cost,
    FrameSensitivity,
    LevelSimilarity,
    SensitivityCurves,
    System,
)
from tests.unit.report.test_viewer import make_system

NAMES = ("one", "</script><b>two")


def two_systems() -> list[System]:
    plain = make_system().__dict__
    similarity = LevelSimilarity([0.2, 0.5], "one", 2, [[1.0, 0.5], [0.5, 1.0]], [(0.0, 1.5)])
    curves = SensitivityCurves(("run", "jump"), [-0.5, 0.5], [[0.2, 0.3]] * 2, [[1.0, 0.9]] * 2)
    frames = FrameSensitivity("one", "run", 0.0, 4.0, [1.0, 2.0], *[[0.2, 0.3]] * 4)
    costs = (Cost(1_000_000, 2.0), Cost(2_000_000, 3.5, 10.0, 2**20, "made up", 0.5))
    return [
        System(**{**plain, "name": name, "cost": cost, "similarity": similarity,
                  "sensitivity": curves, "frame_sensitivity": (frames,),
                  "scores": plain["scores"] * 2})
        for name, cost in zip(NAMES, costs, strict=True)
    ]  # fmt: skip


def charts_of(systems: list[System]) -> list[Chart]:
    return [*overview_charts(systems), *diagnosis_charts(systems), *model_charts(systems)]


def make_page(title: str = "A title") -> str:
    return page_html(
        title=title, systems=[], tious=[0.5], about=["<!--SCRIPT-->"], charts=[], viewer={}
    )


@pytest.mark.parametrize("chart", charts_of(two_systems()), ids=lambda chart: chart.title)
def test_chart_is_sound_vega_lite(chart: Chart, capfd: pytest.CaptureFixture[str]) -> None:
    version = vl_convert.get_vegalite_versions()[-1]
    vega = vl_convert.vegalite_to_vega(chart.spec, vl_version=version, show_warnings=True)
    assert vega["marks"]
    assert "WARN" not in "".join(capfd.readouterr())


def test_shares_of_kinds_add_up_to_all_detections() -> None:
    profile = next(c for c in charts_of(two_systems()) if c.title.startswith("Kinds"))
    rows = profile.spec["data"]["values"]
    first = [row["share"] for row in rows if row["multiple"] == "1G"]
    assert (len(first), sum(first)) == (len(KINDS), pytest.approx(100, abs=0.05))


def test_single_run_has_no_bubbles() -> None:
    titles = [chart.title for chart in overview_charts(two_systems()[:1])]
    assert "Score against cost" not in titles


def test_detections_without_any_hit_leave_the_diagnosis_out() -> None:
    assert list(diagnosis_charts([make_system({})])) == []


def test_embedded_json_holds_no_markup_and_reads_back() -> None:
    document = {"</script>": "<!-- & \u2028 \ud800"}
    text = embedded_json(document)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"</script>": "<!-- & \u2028 ?"}


def test_data_is_never_taken_for_a_place_to_fill() -> None:
    data = re.search(r'id="report-data">(.*?)</script>', make_page(), re.S)
    assert data is not None
    assert json.loads(data[1])["about"] == ["<!--SCRIPT-->"]


def test_title_is_escaped() -> None:
    assert "<title>&lt;b&gt;</title>" in make_page("<b>")


def test_policy_allows_just_the_scripts_of_the_page() -> None:
    page = make_page()
    scripts = re.findall(
        r'<script(?: type="text/plain" id="chart-library")?>(.*?)</script>', page, re.S
    )
    assert len(scripts) == 2
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert re.findall(r"'sha256-([^']*)'", policy[1]) == hashes


def test_page_refers_to_nothing_outside() -> None:
    page = re.sub(r"<script[^>]*>.*?</script>", "", make_page(), flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
