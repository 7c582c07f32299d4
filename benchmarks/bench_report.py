"""The report: seconds to write it, its size, and how fast the page answers, at THUMOS14's size.

Three runs on 200 videos with 200 detections each, as results files, and a film of each video (one
minute, 320 x 180) that pictures are taken of. The page is then opened in headless Chromium:
first paint, errors of the console with every chart drawn, and the time from moving the slider (with
1 to 200 detections of each run) to the page being laid out anew and to the next painted frame.
Run: python benchmarks/bench_report.py [--json PATH] [--videos N] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from bench_evaluate import problem

from tadpipe import __version__
from tadpipe.annotations import Video, save_detections
from tadpipe.config import write_atomically
from tadpipe.pipeline.report import write_report

RUNS, PER_VIDEO, ACTIONS, CLASSES = 3, 200, 3300, 20
FILM_SEC, FILM_FPS, FILM_SIZE = 60, 25, (320, 180)
SLIDER_STEPS = 30
MEASURE_SLIDER = """
const [steps, done] = arguments;
const slider = document.getElementById('top-k'), answered = [], painted = [];
const afterPaint = () => new Promise((resolve) => requestAnimationFrame(() => {
  const channel = new MessageChannel();
  channel.port1.onmessage = resolve;
  channel.port2.postMessage(0);
}));
(async () => {
  for (let i = 0; i < steps; i += 1) {
    slider.value = String(1 + (i * 37) % 200);
    await afterPaint();
    const started = performance.now();
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    document.body.getBoundingClientRect();
    answered.push(performance.now() - started);
    await afterPaint();
    painted.push(performance.now() - started);
  }
  done([answered, painted]);
})();
"""
PAINTED = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def write_inputs(folder: Path, videos: int) -> tuple[Path, list[Path], Path]:
    """Annotations, three results files and the films."""
    truth, _ = problem(videos, 1, ACTIONS * videos // 200, CLASSES, 0)
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps({"database": {n: _entry(v) for n, v in truth.items()}}))
    runs = []
    for seed in range(RUNS):
        _, found = problem(videos, PER_VIDEO, ACTIONS * videos // 200, CLASSES, 0)
        rng = np.random.default_rng(seed)
        moved = {
            name: sorted(
                (row._replace(score=float(row.score * rng.uniform(0.5, 1))) for row in rows),
                key=lambda row: -row.score,
            )
            for name, rows in found.items()
        }
        runs.append(folder / f"run{seed}.json")
        save_detections(runs[-1], moved)
    films = folder / "films"
    films.mkdir()
    first = films / f"{next(iter(truth))}.mp4"
    _write_film(first)
    for name in list(truth)[1:]:
        os.link(first, films / f"{name}.mp4")
    return annotations, runs, films


def _entry(video: Video) -> dict[str, Any]:
    actions = [{"segment": [a.start_sec, a.end_sec], "label": a.label} for a in video.actions]
    return {"subset": "test", "duration": video.duration_sec, "annotations": actions}


def _write_film(path: Path) -> None:
    rng = np.random.default_rng(0)
    width, height = FILM_SIZE
    ground = rng.integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
    ground = ground.repeat(10, axis=0).repeat(10, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FILM_FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(FILM_SEC * FILM_FPS):
            picture = np.roll(ground, i, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def cpu_sec() -> float:
    """Of this process and of the children that have ended."""
    own, ended = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def measure_page(page: Path) -> dict[str, Any] | None:
    """First paint, slider and console in a browser; None without one."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        return None
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = Options()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        chrome.set_script_timeout(300)
        chrome.get(page.resolve().as_uri())
        paint = WebDriverWait(chrome, 60).until(lambda each: each.execute_script(PAINTED))
        chrome.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        cpu = _main_thread_sec(chrome)
        answered, painted = chrome.execute_async_script(MEASURE_SLIDER, SLIDER_STEPS)
        cpu = _main_thread_sec(chrome) - cpu
        charts = _draw_charts(chrome)
        messages = [entry["message"] for entry in chrome.get_log("browser")]
        version = chrome.capabilities["browserVersion"]
    finally:
        chrome.quit()
    return {
        "chromium": version,
        "first_paint_ms": paint,
        "slider_ms_median": statistics.median(answered),
        "slider_ms_maximum": max(answered),
        "slider_painted_ms_median": statistics.median(painted),
        "slider_painted_ms_maximum": max(painted),
        "slider_cpu_ms_mean": 1000 * cpu / SLIDER_STEPS,
        "charts": charts,
        "console": messages,
    }


def _main_thread_sec(chrome: Any) -> float:
    """CPU time of the page's own thread so far, painting included."""
    metrics = chrome.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "TaskDuration")


def _draw_charts(chrome: Any) -> int:
    """Scroll to every chart and wait until it is there."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    places = chrome.find_elements(By.CSS_SELECTOR, ".chart")
    for place in places:
        chrome.execute_script("arguments[0].scrollIntoView({ behavior: 'instant' })", place)
        WebDriverWait(chrome, 60).until(
            lambda each, place=place: each.execute_script(
                "return arguments[0].querySelector('svg') !== null", place
            )
        )
    return len(places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--keep", type=Path, default=None, help="folder to keep the page in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        annotations, runs, films = write_inputs(Path(name), arguments.videos)
        page = (arguments.keep or Path(name)) / "report.html"
        load = os.getloadavg()[0]
        started, cpu = time.perf_counter(), cpu_sec()
        result = write_report(runs, out=page, annotations=annotations, videos=[films])
        report = {
            "tadpipe": __version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_before": load,
            "runs": RUNS,
            "videos": arguments.videos,
            "detections_per_video": result.shown,
            "wall_sec": time.perf_counter() - started,
            "cpu_sec": cpu_sec() - cpu,
            "size_mb": result.size_bytes / 1e6,
            "page": measure_page(page),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json is not None:
        write_atomically(arguments.json, text + "\n")


if __name__ == "__main__":
    main()
