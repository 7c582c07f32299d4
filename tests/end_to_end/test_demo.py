"""The demo from its first video to its picture, as small as it can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tadpipe.annotations import load_annotations, load_detections
from tadpipe.cli.main import run
from tadpipe.errors import ConfigError
from tadpipe.pipeline import demo as module
from tadpipe.pipeline.demo import demo
from tadpipe.pipeline.demo_report import DemoReport
from tadpipe.training.pretrain import PretrainConfig

MINUTES = 1.0  # one video per subset
PRETRAIN = PretrainConfig(steps=2, batch_size=4, warmup_steps=0)
SETS = (
    "training.epochs=1",
    "training.warmup_epochs=0",
    "model.embed_dim=16",
    "model.neck_dim=16",
    "model.head_dim=16",
)


def small_demo(folder: Path) -> DemoReport:
    return demo(folder, minutes=MINUTES, seed=5, pretrain=PRETRAIN, sets=SETS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, DemoReport]:
    """A demo that was interrupted before its detector was trained, and then went on."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))

        def interrupted(*_arguments: object, **_options: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, "train_detector", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small_demo(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return folder, small_demo(folder)


def test_folder_is_a_project_that_the_commands_go_on_in(
    made: tuple[Path, DemoReport],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(made[0])
    assert run(["extract", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["frames_decoded"] == 0
    for model in ("runs/actionformer", "runs/e2e"):
        assert run(["detect", "videos/demo_test_000.mp4", "--model", model]) == 0
        assert run(["evaluate", model]) == 0


def test_report_has_scores_baselines_and_pictures(made: tuple[Path, DemoReport]) -> None:
    folder, report = made
    text = report.text(width=72)
    rows = ("frozen features", "control", "tuned end to end", "tuned features", "trivial", "chance")
    for word in (*rows, "truth", "found", "timeline.png"):
        assert word in text
    assert max(map(len, text.splitlines()[:10])) <= 110
    assert "\x1b" not in text
    assert "\x1b" in report.text(width=72, colour=True)
    assert (folder / "timeline.png").stat().st_size > 10_000
    stored = json.loads((folder / "results.json").read_text())
    assert stored == json.loads(json.dumps(report.to_mapping()))


def test_scores_are_those_of_the_held_out_videos(made: tuple[Path, DemoReport]) -> None:
    folder, report = made
    test = load_annotations(folder / "annotations.json").subset("test")
    assert load_detections(folder / "runs" / "e2e" / "held_out.json").keys() == test.keys()
    scores = {
        "actionformer": report.scores["actionformer"],
        "actionformer_tuned": report.tuned_scores["actionformer"],
        "control": report.control,
        "e2e": report.end_to_end,
    }
    for run_name, score in scores.items():
        assert score is not None
        assert score.subset == "test"
        assert score.score.videos == len(test)
        stored = json.loads((folder / "runs" / run_name / "eval.json").read_text())
        assert score.to_mapping()["average_map"] == pytest.approx(stored["average_map"])


def test_control_keeps_the_backbone_that_end_to_end_changes(
    made: tuple[Path, DemoReport],
) -> None:
    runs = made[0] / "runs"
    weights = {
        name: json.loads((runs / name / "recipe.json").read_text())["features"][0]["weights_sha256"]
        for name in ("actionformer", "control", "e2e", "actionformer_tuned")
    }
    assert weights["control"] == weights["actionformer"] != weights["e2e"]
    assert weights["actionformer_tuned"] == weights["e2e"]


def test_backbone_is_pretrained_on_training_videos_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tadpipe.pipeline import demo_backbone

    opened: list[str] = []
    open_frames = demo_backbone.open_frames

    def noted(path: Path) -> object:
        opened.append(path.stem)
        return open_frames(path)

    monkeypatch.setattr(demo_backbone, "open_frames", noted)

    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_demo(tmp_path)
    assert opened == ["demo_training_000"]


def test_repeated_demo_makes_nothing_again(made: tuple[Path, DemoReport]) -> None:
    folder, report = made
    kept = [*folder.glob("videos/*"), folder / "videomae-tiny.safetensors", folder / "tadpipe.toml"]
    kept += [path for path in (folder / "store" / "demo.zarr").rglob("c.*")]
    times = {path: path.stat().st_mtime_ns for path in kept}
    again = small_demo(folder)
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    assert again.to_mapping()["end_to_end"] == report.to_mapping()["end_to_end"]
    assert again.to_mapping()["detectors_tuned"] == report.to_mapping()["detectors_tuned"]


def test_folder_with_other_settings_is_refused(made: tuple[Path, DemoReport]) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        demo(made[0], minutes=2.0, seed=5, pretrain=PRETRAIN, sets=SETS)


def test_dry_run_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out), "--minutes", "1", "--dry-run", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert (plan["videos"], plan["videos_there"], plan["store_there"]) == (3, 0, False)
    assert not out.exists()


def test_videos_only_makes_videos_and_annotations(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--out", str(tmp_path / "m"), "--minutes", "1", "--videos-only", "--json"]
    assert run([*arguments, "--dry-run"]) == 0
    assert json.loads(capfd.readouterr().out)["videos"] == 3
    assert not (tmp_path / "m").exists()
    assert run(arguments) == 0
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"videos", "annotations.json"}
    assert len(load_annotations(json.loads(capfd.readouterr().out)["annotations"]).videos) == 3


@pytest.mark.parametrize(
    "arguments", [["--detectors", "no-such"], ["--detectors", ","], ["--minutes", "0"]], ids=str
)
def test_wrong_options_are_refused_before_anything_is_made(
    tmp_path: Path, arguments: list[str]
) -> None:
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out), *arguments]) == 2
    assert not out.exists()
