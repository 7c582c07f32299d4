"""The page of `tadpipe report` in a real browser, with hostile names in everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tadpipe.pipeline.report import write_report
from tests.corpus import make_video
from tests.end_to_end.browser import (
    WIDTH,
    console_errors,
    open_browser,
    page_url,
    requests,
    set_width,
)

PATIENCE_SEC = 120  # before a condition counts as never met
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "<!--<script>window.hacked=1</script>",
    "' onmouseover='window.hacked=1",
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
    "${window.hacked=1} \u2028 \u202e &lt;b&gt; datum.x",
    "<!--DATA--><!--SCRIPT-->",
)
PLAYED = "play me: 100% #1?"
LABELS = ("run", HOSTILE[1])
DURATION_SEC = 5.0


def write_inputs(folder: Path) -> tuple[list[Path], Path]:
    """Results of two detectors on a film and a video of each hostile name."""
    database: dict[str, Any] = {}
    good: dict[str, Any] = {}
    bad: dict[str, Any] = {}
    for number, name in enumerate((PLAYED, *HOSTILE)):
        actions = [([0.5, 2.0], LABELS[0]), ([2.5, 4.0 + 0.1 * number], LABELS[1])]
        database[name] = {
            "subset": "test",
            "duration": DURATION_SEC,
            "annotations": [{"segment": s, "label": label} for s, label in actions],
        }
        good[name] = [
            {"segment": [s[0] + 0.1, s[1]], "label": label, "score": 0.9 - 0.05 * i}
            for i, (s, label) in enumerate(actions)
        ]
        bad[name] = [
            {"segment": [0.1 * i, 1.0 + 0.1 * i], "label": LABELS[i % 2], "score": 0.5 - 0.02 * i}
            for i in range(20)
        ]
    bad[PLAYED].append({"segment": [0.0, 1.0], "label": HOSTILE[0], "score": 0.1})  # no class
    (folder / "labels.json").write_text(json.dumps({"database": database}))
    paths = []
    for name, found in (("good", good), ("<b>bad</b>", bad)):
        paths.append(folder / f"{name}.json".replace("/", "_"))
        paths[-1].write_text(json.dumps({"results": found}))
    videos = folder / "films"
    videos.mkdir()
    make_video(videos / f"{PLAYED}.mp4", frames=150, fps=30)
    return paths, videos


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs, videos = write_inputs(folder)
    out = folder / "report.html"
    write_report(runs, out=out, annotations=folder / "labels.json", videos=[videos])
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with open_browser() as chrome:
        yield chrome


@pytest.fixture
def chrome(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    """The page, freshly loaded, with no earlier message left."""
    set_width(browser, WIDTH)
    console_errors(browser)
    requests(browser)
    browser.get(page_url(page))
    return browser


def wait(chrome: webdriver.Chrome, script: str) -> None:
    """Until a JavaScript condition holds."""
    WebDriverWait(chrome, PATIENCE_SEC).until(lambda each: each.execute_script(f"return {script}"))


def listed(chrome: webdriver.Chrome) -> list[str]:
    names: list[str] = chrome.execute_script(
        "return [...document.querySelectorAll('#video-list .name')].map((e) => e.textContent)"
    )
    return names


def choose_video(chrome: webdriver.Chrome, name: str) -> None:
    chrome.execute_script(
        "[...document.querySelectorAll('#video-list button')]"
        ".find((e) => e.video.name === arguments[0]).click()",
        name,
    )


def set_slider(chrome: webdriver.Chrome, name: str, value: int) -> None:
    chrome.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', { bubbles: true }))",
        name,
        str(value),
    )


def segments(chrome: webdriver.Chrome, lane: int) -> list[WebElement]:
    found: list[WebElement] = chrome.execute_script(
        "return [...document.querySelectorAll('.seg')]"
        ".filter((e) => e.segment.lane === arguments[0])",
        lane,
    )
    return found


def click(chrome: webdriver.Chrome, segment: WebElement) -> None:
    """With the pointer, away from the header that stays on top."""
    chrome.execute_script(
        "arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", segment
    )
    segment.click()


def draw_first_chart(chrome: webdriver.Chrome) -> None:
    chrome.execute_script("document.querySelector('.chart').scrollIntoView()")
    wait(chrome, "document.querySelector('.chart svg') !== null")


def draw_everything(chrome: webdriver.Chrome) -> None:
    """Scroll to every chart and wait until it is there."""
    for place in chrome.find_elements(By.CSS_SELECTOR, ".chart"):
        chrome.execute_script("arguments[0].scrollIntoView()", place)
        WebDriverWait(chrome, PATIENCE_SEC).until(
            lambda each, place=place: each.execute_script(
                "return arguments[0].querySelector('svg') !== null", place
            )
        )


def test_page_asks_for_nothing_reports_no_error_and_runs_no_label(
    chrome: webdriver.Chrome, page: Path
) -> None:
    draw_everything(chrome)
    assert (requests(chrome), console_errors(chrome)) == ([page_url(page)], [])
    assert chrome.execute_script("return window.hacked === undefined")


def test_names_and_labels_from_files_run_nothing(chrome: webdriver.Chrome) -> None:
    for name in HOSTILE:
        choose_video(chrome, name)
        for segment in segments(chrome, 1)[:2]:
            chrome.execute_script("arguments[0].click()", segment)
    assert chrome.execute_script("return window.hacked === undefined")


def test_names_are_shown_as_they_are(chrome: webdriver.Chrome) -> None:
    assert set(listed(chrome)) == {PLAYED, *HOSTILE}


def test_messages_are_shown_as_text(chrome: webdriver.Chrome) -> None:
    notes = chrome.execute_script("return document.getElementById('notes').textContent")
    assert f"1 predicted labels are no class: {HOSTILE[0]} (1)" in notes


def test_search_keeps_videos_whose_name_or_label_matches(chrome: webdriver.Chrome) -> None:
    chrome.find_element(By.ID, "search").send_keys("PLAY me")
    assert listed(chrome) == [PLAYED]


def test_worst_error_comes_first_when_sorted_so(chrome: webdriver.Chrome) -> None:
    Select(chrome.find_element(By.ID, "sort-run")).select_by_index(1)
    Select(chrome.find_element(By.ID, "sort")).select_by_value("worst")
    worst = chrome.execute_script("return viewer.listed.map((v) => v.runs[1].w)")
    assert worst == sorted(worst, reverse=True)


def test_slider_leaves_the_best_detections(chrome: webdriver.Chrome) -> None:
    set_slider(chrome, "top-k", 3)
    assert len(segments(chrome, 1)) == 3


def test_score_slider_hides_what_is_below(chrome: webdriver.Chrome) -> None:
    set_slider(chrome, "top-k", 200)
    set_slider(chrome, "min-score", 400)
    scores = chrome.execute_script(
        "return [...document.querySelectorAll('.seg')].map((e) => e.segment)"
        ".filter((s) => s.lane === 1).map((s) => s.score)"
    )
    assert scores == [0.5, 0.48, 0.46, 0.44, 0.42, 0.4]


def test_click_on_a_segment_says_what_it_is(chrome: webdriver.Chrome) -> None:
    choose_video(chrome, PLAYED)
    click(chrome, segments(chrome, 0)[0])
    text = chrome.find_element(By.ID, "details").text
    assert "0.60 to 2.00 s" in text
    assert "true positive" in text


def test_click_on_a_segment_plays_the_video_from_there(chrome: webdriver.Chrome) -> None:
    choose_video(chrome, PLAYED)
    click(chrome, segments(chrome, -1)[1])
    wait(chrome, "document.getElementById('player').currentTime >= 2.5")
    wait(chrome, "document.getElementById('player').played.length > 0")


def test_video_stops_at_the_end_of_the_segment(chrome: webdriver.Chrome) -> None:
    choose_video(chrome, PLAYED)
    click(chrome, segments(chrome, 0)[0])
    wait(chrome, "viewer.stopAt === null && document.getElementById('player').paused")
    assert chrome.execute_script("return document.getElementById('player').currentTime") >= 2.0


def test_pictures_are_shown_before_the_video_is_loaded(chrome: webdriver.Chrome) -> None:
    choose_video(chrome, PLAYED)
    strip = chrome.find_element(By.ID, "strip")
    assert strip.value_of_css_property("background-image").startswith('url("data:image/jpeg')


def test_keys_walk_along_segments_and_rows(chrome: webdriver.Chrome) -> None:
    choose_video(chrome, PLAYED)
    timeline = chrome.find_element(By.ID, "timeline")
    timeline.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    chosen = chrome.execute_script("return [viewer.selected.lane, viewer.selected.index]")
    assert chosen == [0, 1]


def test_key_n_opens_the_next_video(chrome: webdriver.Chrome) -> None:
    before = chrome.execute_script("return viewer.listed[1].name")
    chrome.find_element(By.TAG_NAME, "body").send_keys("n")
    assert chrome.find_element(By.ID, "video-name").get_property("textContent") == before


def test_dark_theme_redraws_the_charts(chrome: webdriver.Chrome) -> None:
    draw_first_chart(chrome)
    theme = "return document.documentElement.dataset.theme"
    before = chrome.execute_script(theme)
    chrome.execute_script("window.scrollTo(0, 0)")
    chrome.find_element(By.ID, "theme").click()
    assert chrome.execute_script(theme) != before
    assert console_errors(chrome) == []


def test_nothing_is_wider_than_a_phone(chrome: webdriver.Chrome) -> None:
    set_width(chrome, 390)
    draw_first_chart(chrome)
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= 390


def test_costs_that_no_run_has_take_no_column(chrome: webdriver.Chrome) -> None:
    heads = chrome.execute_script(
        "return [...document.querySelectorAll('#overview th')].map((e) => e.textContent)"
    )
    assert heads[0] == "run"
    assert heads[-1] == "average"
