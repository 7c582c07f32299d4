"""compare: detectors and seeds on one store, each run in a process of its own, one table."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tadpipe.config import apply_sets, read_toml
from tadpipe.errors import CheckpointError, ConfigError, TadpipeError
from tadpipe.evaluation.bootstrap import Interval
from tadpipe.pipeline import compare as compare_module
from tadpipe.pipeline import compare_queue
from tadpipe.pipeline.compare import Comparison, choose_presets, compare
from tadpipe.pipeline.compare_run import RunCost, RunRequest, lease_path, read_cost, run_in_child
from tadpipe.pipeline.compare_table import DetectorResult, Difference, PlannedRun, SeedResult
from tadpipe.pipeline.presets import preset_path
from tadpipe.pipeline.progress import SILENT
from tadpipe.pipeline.run_folder import write_json
from tadpipe.pipeline.subsets import Subsets
from tadpipe.store.durable import Lease
from tests.unit.pipeline.tiny_store import SMALL, make_store

LEARNS = ("training.epochs=6", "training.ema_decay=0.5", "training.learning_rate=0.01")
ETAD = (
    "model.window_len=32",
    "model.max_duration=16",
    "model.width=32",
    "model.mid_dim=16",
    "model.fc_dim=8",
    "model.roi_bins=8",
    "training.epochs=1",
    "training.min_steps=0",
    "nms.max_segments=20",
)
# Compares like the test does and is killed with SIGKILL in the middle of ASL's training.
COMPARE_AND_DIE = """
import os, signal, sys
from tadpipe.pipeline.compare import compare

class Die:
    label, steps = "", 0
    def begin(self, label, total, unit): self.label, self.steps = label, 0
    def advance(self, units=1, note=""):
        self.steps += units
        if self.label == "asl seed 0: train" and self.steps >= 12:
            os.kill(os.getpid(), signal.SIGKILL)
    def end(self, summary=""): pass

store, out, *presets = sys.argv[1:]
compare(store, detectors=["actionformer", "asl"], seeds=1, out=out, presets=presets,
        device="cpu", progress=Die())
"""
COST = RunCost(10, 2_000_000_000, 32, "cpu", 12, 6, 3.0, 2.0, 2**20, "memory", 6.0, 3.0)


def preset_file(folder: Path, detector: str, sets: tuple[str, ...]) -> str:
    """The detector's default preset with changes, as a file."""
    mapping = apply_sets(read_toml(preset_path(f"{detector}/default")), sets)
    tables = {key: value for key, value in mapping.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(v)}" for key, v in mapping.items() if key not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in table.items())]
    path = folder / f"{detector}.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs of one worker and of several then compute the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a small preset for each detector."""
    folder = tmp_path_factory.mktemp("compare")
    make_store(folder / "tiny.zarr")
    preset_file(folder, "actionformer", (*SMALL, *LEARNS, "training.checkpoint_every=5"))
    changed = ("nms.sigma=0.4", "training.checkpoint_every=5")
    preset_file(folder, "asl", (*SMALL, *LEARNS, *changed))
    preset_file(folder, "etad", ETAD)
    return folder


def run_compare(folder: Path, detectors: str = "actionformer asl", **given: Any) -> Comparison:
    names = detectors.split()
    presets = [str(folder / f"{name}.toml") for name in names]
    settings = {"seeds": 1, "presets": presets, "device": "cpu", "resamples": 50, **given}
    return compare(folder / "tiny.zarr", detectors=names, **settings)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Comparison:
    """A comparison that nothing disturbed, two runs at a time."""
    return run_compare(folder, out=folder / "whole", seeds=2, workers=2)


def scores(comparison: Comparison) -> list[Any]:
    """All that must not depend on how often the command was killed, by detector and seed."""
    return [(d.detector, seed.seed, seed.map_at) for d in comparison.detectors for seed in d.seeds]


def test_every_detector_has_every_seed_and_its_cost(whole: Comparison) -> None:
    assert [d.detector for d in whole.detectors] == ["actionformer", "asl"]
    for detector in whole.detectors:
        assert [seed.seed for seed in detector.seeds] == [0, 1]
        assert detector.average_map[0] > 0
        for seed in detector.seeds:
            cost = seed.cost
            assert cost.steps == cost.steps_timed == 21
            assert cost.flops > 0
            assert cost.window_len == 32
            assert (cost.peak_bytes or 0) > 0
            assert min(cost.timed_sec, cost.timed_cpu_sec, cost.detect_sec) > 0
            assert {"model.safetensors", "eval.json"} <= {p.name for p in seed.run.iterdir()}


def test_the_score_is_that_of_the_run_itself(whole: Comparison) -> None:
    for detector in whole.detectors:
        for seed in detector.seeds:
            own = json.loads((seed.run / "eval.json").read_text())
            assert list(seed.map_at) == own["map"]
            assert (whole.protocol, list(whole.tious)) == (own["protocol"], own["tious"])


def test_the_tables_are_kept_and_say_what_differs(whole: Comparison, folder: Path) -> None:
    text = (folder / "whole" / "compare.txt").read_text(encoding="utf-8")
    assert text == whole.text() + "\n"
    assert "2 videos, 2 seeds; mAP in percent, mean ± standard deviation" in text
    assert "scored by class, 2 classes" in text
    assert "actionformer - asl" in text
    assert "95 % interval of 50 paired resamples of the videos, seed 0" in text
    assert whole.recipes == {"nms.sigma": {"actionformer": 0.5, "asl": 0.4}}
    assert "nms.sigma" in text
    document = json.loads((folder / "whole" / "compare.json").read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(whole.to_mapping()))
    (difference,) = document["bootstrap"]["differences"]
    means = [d["average_map"]["mean"] for d in document["detectors"]]
    assert difference["difference"] == pytest.approx(means[0] - means[1])
    assert difference["low"] <= difference["high"]


def wide_comparison() -> Comparison:
    """Ten thresholds, three detectors and settings too long for a line."""
    seeds = tuple(SeedResult(i, Path("run"), (0.3 + 0.1 * i,) * 10, 0.35, COST) for i in range(2))
    names = ("actionformer", "cltdr_gmg", "etad_opentad")
    scored = [DetectorResult(name, f"{name}/default", 20, False, seeds) for name in names]
    unlabelled = dataclasses.replace(scored[2], labels=1, class_agnostic=True)
    ranges = [[4 * i, 8 * i] for i in range(20)]
    return Comparison(
        planned=tuple(PlannedRun(name, "p", 0, Path("run"), "finished", 1) for name in names),
        features=("store.zarr",),
        subsets=Subsets("training", "validation", None),
        train_videos=200,
        test_videos=212,
        test_minutes=700.0,
        recipes={"model.regression_ranges": dict.fromkeys(names, ranges)},
        level=0.95,
        resamples=1000,
        seed=0,
        protocol="opentad",
        tious=tuple(0.5 + 0.05 * i for i in range(10)),
        scored_videos=212,
        detectors=(*scored[:2], unlabelled),
        differences=(Difference(names[0], names[1], Interval(0.01, -0.02, 0.03, 0.2)),),
    )


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_of_the_tables_is_wider_than_the_terminal(width: int) -> None:
    text = wide_comparison().text(width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    for words in ("0.95", "average", "detect CPU s/min", "sign flips", "cltdr_gmg"):
        assert words in text
    assert text.count("35.00 ± 7.07") == 30  # mean and deviation of ten thresholds, three times


def test_repeated_it_reuses_every_run_and_gives_the_same_table(
    whole: Comparison, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_queue, "run_in_child", None)  # nothing is left to run
    again = run_compare(folder, out=folder / "whole", seeds=2)
    assert again.text() == whole.text()
    assert {run.state for run in again.planned} == {"finished"}
    fewer = run_compare(folder, "asl", out=folder / "whole", seeds=1)
    assert scores(fewer) == [row for row in scores(whole) if row[:2] == ("asl", 0)]
    assert fewer.differences == ()


def test_interrupted_and_killed_it_continues_to_the_same_scores(
    whole: Comparison, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finished = whole.detectors[0].seeds[0]
    shutil.copytree(finished.run, out / "actionformer" / "seed0")

    class CtrlC:
        def begin(self, label: str, total: int | None, unit: str) -> None:
            self.steps = 0

        def advance(self, units: int = 1, note: str = "") -> None:
            self.steps += units
            if self.steps == 2:
                raise KeyboardInterrupt

        def end(self, summary: str = "") -> None:
            raise AssertionError("no stage comes to its end")

    with pytest.raises(KeyboardInterrupt):
        run_compare(folder, out=out, progress=CtrlC())
    assert (out / "asl" / "seed0" / "state.pt").exists()  # long before step 5
    presets = [str(folder / f"{name}.toml") for name in ("actionformer", "asl")]
    killed = subprocess.run(
        [sys.executable, "-c", COMPARE_AND_DIE, str(folder / "tiny.zarr"), str(out), *presets],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    planned = run_compare(folder, out=out, dry_run=True).planned
    assert [run.state for run in planned] == ["finished", "unfinished"]
    continued = run_compare(folder, out=out)
    assert scores(continued) == [row for row in scores(whole) if row[1] == 0]
    former, asl = (detector.seeds[0].cost for detector in continued.detectors)
    assert former == finished.cost
    assert 0 < asl.steps_timed < asl.steps == 21
    assert "1 run resumed: time scaled up" in continued.text()


def test_class_agnostic_detectors_have_a_table_of_their_own(
    whole: Comparison, folder: Path
) -> None:
    both = run_compare(folder, "actionformer etad", out=folder / "whole")
    assert [(d.class_agnostic, d.labels) for d in both.detectors] == [(False, 2), (True, 1)]
    assert both.differences == ()
    text = both.text()
    assert "scored under the one label 'action'; not comparable with the others" in text
    assert "model.window_len" not in both.recipes
    assert both.recipes["windows.class_agnostic"] == {"actionformer": False, "etad": True}
    assert "model.max_buffer_len_factor" in both.recipes  # ETAD has none
    assert whole.detectors[0].seeds[0] == both.detectors[0].seeds[0]


def test_dry_run_says_what_would_be_done_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    planned = run_compare(folder, out=tmp_path / "out", seeds=2, dry_run=True)
    lines = planned.text().splitlines()
    assert lines[0].startswith("would train actionformer (preset ")
    assert [line.split(", ")[1] for line in lines[:4]] == ["seed 0", "seed 0", "seed 1", "seed 1"]
    assert planned.to_mapping()["dry_run"] is True
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_configuration_is_not_reused(whole: Comparison, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nms\.sigma was 0\.5, now 0\.3"):
        run_compare(folder, out=folder / "whole", sets=["nms.sigma=0.3"])


def test_a_changed_test_set_is_noticed(
    whole: Comparison, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"video 8": []}
    monkeypatch.setattr(compare_module, "load_detections", lambda path: found)
    with pytest.raises(ConfigError, match="different: video 9"):
        run_compare(folder, out=folder / "whole")


def test_presets_go_to_their_detectors() -> None:
    chosen = choose_presets(["tridet", "asl"], ["asl/thumos14_i3d"], "demo")
    assert chosen == {"tridet": "tridet/demo", "asl": "asl/thumos14_i3d"}


@pytest.mark.parametrize(
    ("detectors", "presets", "words"),
    [
        ([], [], "at least one detector"),
        (["asl", "asl"], [], "each of them once"),
        (["aslan"], [], "asl"),
        (["asl"], ["tridet/default"], "preset tridet/default: tridet"),
        (["asl"], ["asl/default", "asl/demo"], "each has one"),
    ],
)
def test_detectors_and_presets_that_do_not_fit_are_refused(
    detectors: list[str], presets: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_presets(detectors, presets, "default")


def test_presets_for_different_data_are_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "asl.toml"
    path.write_text('dataset = "thumos14"\n' + (folder / "asl.toml").read_text())
    given = {"presets": [str(folder / "actionformer.toml"), str(path)], "out": tmp_path / "out"}
    with pytest.raises(ConfigError, match="presets are for different data"):
        run_compare(folder, **given)
    assert not (tmp_path / "out").exists()


def test_annotations_without_a_test_subset_are_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    action = {"segment": [1.0, 2.0], "label": "a"}
    document = {
        "database": {"video 0": {"subset": "train", "duration": 5.0, "annotations": [action]}}
    }
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="No subset to score on"):
        run_compare(folder, annotations=path, out=tmp_path / "out")


def requests_of(folder: Path, *names: str) -> list[RunRequest]:
    return [
        RunRequest(("s",), name, "p", (), str(folder / name / "seed0"), *[None] * 6, "cpu", 0, 1)
        for name in names
    ]


def finished(request: RunRequest) -> bool:
    write_json(Path(request.out) / "cost.json", dataclasses.asdict(COST))
    return True


def test_several_workers_run_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=60)

    def finish(request: RunRequest, *_: object) -> bool:
        together.wait()  # raises unless two get here
        return finished(request)

    monkeypatch.setattr(compare_queue, "run_in_child", finish)
    compare_queue.finish_runs(requests_of(tmp_path, "a", "b", "c", "d"), 2, SILENT)
    assert len(list(tmp_path.glob("*/seed0/cost.json"))) == 4


def test_when_a_run_fails_the_others_are_stopped_and_the_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(request: RunRequest, _progress: object, _label: str, stop: threading.Event) -> bool:
        if request.detector == "failing":
            raise TadpipeError("It broke.")
        assert stop.wait(60)
        raise KeyboardInterrupt  # as a child that was told to stop

    monkeypatch.setattr(compare_queue, "run_in_child", finish)
    with pytest.raises(TadpipeError, match="It broke"):
        compare_queue.finish_runs(requests_of(tmp_path, "waiting", "failing", "never"), 2, SILENT)
    assert not list(tmp_path.glob("*/seed0/cost.json"))


def test_a_child_that_is_told_to_stop_saves_its_state(folder: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    class StopAtFirstStep:
        def begin(self, label: str, total: int | None, unit: str) -> None: ...

        def advance(self, units: int = 1, note: str = "") -> None:
            stop.set()

        def end(self, summary: str = "") -> None: ...

    run = tmp_path / "seed0"
    preset = str(folder / "asl.toml")
    features = (str(folder / "tiny.zarr"),)
    request = RunRequest(features, "asl", preset, (), str(run), *[None] * 6, "cpu", 0, 1)
    with pytest.raises(KeyboardInterrupt):
        run_in_child(request, StopAtFirstStep(), "asl", stop)
    assert (run / "state.pt").exists()
    assert not (run / "cost.json").exists()


def test_a_run_that_another_process_works_on_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(tmp_path, "held", "free")
    (tmp_path / "held").mkdir()
    lease = Lease.take(lease_path(Path(requests[0].out)))
    assert lease
    order: list[str] = []

    def finish(request: RunRequest, *_: object) -> bool:
        order.append(request.detector)
        return finished(request)

    monkeypatch.setattr(compare_queue, "run_in_child", finish)
    monkeypatch.setattr(compare_queue.time, "sleep", lambda seconds: lease.release())
    compare_queue.finish_runs(requests, 1, SILENT)
    assert order == ["free", "held"]


@pytest.mark.parametrize(
    ("boot", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "seed0: signal 9"),
        ("raise SystemExit(4)", "seed0: exit status 4"),
        (
            """print('{"error": {"what": "It broke.", "where": "step 3", "todo": "Mend."}}')""",
            "It broke.",
        ),
    ],
    ids=["signal", "exit", "error"],
)
def test_a_failed_run_is_named(
    boot: str, words: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tadpipe.pipeline.compare_run.BOOT", f"input()\n{boot}")
    with pytest.raises(TadpipeError) as caught:
        run_compare(folder, out=tmp_path / "out")
    assert words in str(caught.value)
    assert "actionformer/seed0" in str(caught.value)


def test_times_of_a_resumed_run_are_scaled_up() -> None:
    assert (COST.train_sec, COST.train_cpu_sec) == (6.0, 4.0)
    unknown = dataclasses.replace(COST, steps_timed=0)
    assert (unknown.train_sec, unknown.train_cpu_sec) == (None, None)


def test_a_damaged_cost_is_an_error(tmp_path: Path) -> None:
    for text in ("{", '{"parameters": 1}'):
        (tmp_path / "cost.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"cost\.json"):
            read_cost(tmp_path)
