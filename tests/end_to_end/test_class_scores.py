"""Class scores on the command line: own videos, a class-agnostic detector, and the mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tadpipe.annotations import load_detections
from tadpipe.cli.main import run
from tests.end_to_end.project import NAMES, SMALL_MODEL, command, make_project

CapFd = pytest.CaptureFixture[str]
VIDEO = "my videos/four.mp4"  # the one of the test subset
AGNOSTIC = ["--set=windows.class_agnostic=true", "--set=nms.multiclass=false"]


def write_scores(path: Path, videos: tuple[str, ...] = NAMES) -> Path:
    scores = {video: [0.25, 0.75] for video in videos}
    path.write_text(json.dumps({"results": scores, "classes": ["left", "right"]}))
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that names its class scores, with a class-agnostic detector trained by them."""
    folder = make_project(tmp_path_factory.mktemp("class scores"))
    write_scores(folder / "scores.json")
    settings = (folder / "tadpipe.toml").read_text(encoding="utf-8")
    (folder / "tadpipe.toml").write_text(
        settings + 'class_scores = "scores.json"\n', encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run(["extract"]) == 0
        assert run(["train-detector", *SMALL_MODEL, *AGNOSTIC]) == 0
        plain = ["--class-scores=none", "--out=runs/plain"]
        assert run(["train-detector", *SMALL_MODEL, *AGNOSTIC, *plain]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))


def test_the_project_file_names_the_class_scores_of_training() -> None:
    labels = {row.label for row in load_detections("runs/actionformer/detections.json")["four"]}
    assert labels == {"left", "right"}
    plain = load_detections("runs/plain/detections.json")["four"]
    assert {row.label for row in plain} == {"action"}


def test_evaluate_labels_a_run_and_changes_the_rule(capfd: CapFd) -> None:
    _, one_label, _ = command(capfd, "evaluate", "runs/plain")
    assert (one_label["class_agnostic"], list(one_label["classes"])) == (True, ["action"])
    code, root, _ = command(capfd, "evaluate", "runs/plain", "--class-scores=scores.json")
    assert code == 0
    assert set(root["classes"]) == {"left", "right"}
    stored = json.loads(Path("runs/actionformer/eval.json").read_text(encoding="utf-8"))
    assert root["map"] == stored["map"]
    given = ["--class-scores=scores.json", "--set=class_scores.top_k=1"]
    _, changed, _ = command(capfd, "evaluate", "runs/plain", *given)
    assert changed["class_scores"]["top_k"] == 1
    assert changed["classes"]["left"]["num_detections"] == 0


def test_detect_names_what_a_class_agnostic_model_finds(capfd: CapFd, tmp_path: Path) -> None:
    given = ["detect", VIDEO, "--model=runs/plain", f"--out={tmp_path / 'd.json'}", "--top-k=4"]
    code, report, _ = command(capfd, *given)
    assert code == 0
    found = load_detections(tmp_path / "d.json")["four"]
    assert len(found) == 4
    assert found[0].label == "right"
    assert [row.score for row in found] == sorted((row.score for row in found), reverse=True)
    assert report["class_scores"]["file"].endswith("scores.json")
    code, plain, _ = command(capfd, *given, "--class-scores=none")
    assert {row["label"] for row in plain["detections"]["four"]} == {"action"}
    assert (plain["class_agnostic"], plain["class_scores"]) == (True, None)
    best = plain["detections"]["four"][0]["score"]
    assert found[0].score == (0.75 * best) ** 0.5


def test_detect_says_that_labels_are_missing(capfd: CapFd, tmp_path: Path) -> None:
    out = f"--out={tmp_path / 'd.json'}"
    given = ["detect", VIDEO, "--model=runs/plain", out]
    assert run([*given, "--class-scores=none"]) == 0
    assert "no class scores given" in capfd.readouterr().out
    assert run(given) == 0
    assert "labels by class scores scores.json" in capfd.readouterr().out


def test_a_video_without_class_scores_is_skipped_when_asked_for(
    capfd: CapFd, tmp_path: Path
) -> None:
    few = write_scores(tmp_path / "few.json", NAMES[:1])
    given = ["detect", VIDEO, "--model=runs/plain", f"--out={tmp_path / 'd.json'}"]
    assert run([*given, f"--class-scores={few}"]) == 2
    said = capfd.readouterr().err
    assert "few.json does not have: four" in said
    assert "--skip-unscored" in said
    assert not (tmp_path / "d.json").exists()
    code, report, _ = command(capfd, *given, f"--class-scores={few}", "--skip-unscored")
    assert (code, report["unscored"], report["detections"]) == (0, ["four"], {"four": []})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "runs/actionformer", "--class-scores=scores.json"], "labels already"),
        (["evaluate", "runs/plain", "--skip-unscored"], "Give --class-scores FILE"),
        (["evaluate", "runs/plain", "--class-scores=labels.json"], "no key 'results'"),
        (["evaluate", "runs/plain", "--class-scores=none.csv"], "Unknown kind"),
        (["evaluate", "runs/plain", "--class-scores=gone.json"], "gone.json"),
        (
            ["evaluate", "runs/plain", "--class-scores=scores.json", "--set=class_scores.rul=1"],
            "rule (now 'sqrt')",
        ),
        (
            ["evaluate", "runs/plain", "--class-scores=scores.json", "--set=nms.sigma=1"],
            "Only class_scores can be changed",
        ),
        (["train-detector", *SMALL_MODEL, "--out=runs/x"], "need class-agnostic NMS"),
        (
            ["train-detector", *SMALL_MODEL, *AGNOSTIC, "--set=class_scores.rule=mean"],
            "sqrt, product",
        ),
        (["compare", "--detectors=actionformer,asl", "--out=c"], "need class-agnostic NMS"),
        (["detect", VIDEO, "--model=runs/plain", "--set=class_scores.top_k=0"], "At least one"),
    ],
)
def test_mistakes_are_errors_of_three_parts(arguments: list[str], words: str, capfd: CapFd) -> None:
    assert run(arguments) == 2
    said = capfd.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) >= 2
    assert "Traceback" not in said


def test_end_to_end_training_names_what_it_finds(capfd: CapFd) -> None:
    code, report, _ = command(
        capfd, "e2e", "--tune=frozen", *SMALL_MODEL, *AGNOSTIC, "--set=e2e.augment.enabled=false"
    )
    assert code == 0
    assert report["evaluation"]["class_scores"]["file"].endswith("scores.json")
    labels = {row.label for row in load_detections("runs/e2e/detections.json")["four"]}
    assert labels == {"left", "right"}
    write_scores(Path("three.json"), NAMES[:3])
    code = run(["e2e", "--tune=frozen", *SMALL_MODEL, *AGNOSTIC, "--class-scores=three.json"])
    assert code == 2
    assert "four" in capfd.readouterr().err
