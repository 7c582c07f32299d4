"""The commands of the README on small videos, from extraction to the look into the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tadpipe.annotations import load_detections
from tadpipe.cli.main import run
from tadpipe.store.feature_store import FeatureStore
from tests.corpus import make_video
from tests.end_to_end.project import NAMES, SMALL_MODEL, command, make_project

CapFd = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose features are extracted and whose detector is trained."""
    folder = make_project(tmp_path_factory.mktemp("project with ünicode"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run(["extract", "--backbone", "videomae-tiny"]) == 0
        assert run(["train-detector", "--features", "store/thumos.zarr", *SMALL_MODEL]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))


def test_second_extraction_decodes_nothing(capfd: CapFd) -> None:
    code, report, _ = command(capfd, "extract")
    assert code == 0
    assert (report["done"], report["reused"], report["frames_decoded"]) == (0, len(NAMES), 0)


def test_extraction_lists_what_a_dry_run_said(capfd: CapFd) -> None:
    code, planned, _ = command(capfd, "extract", "--stride", "8", "--dry-run")
    assert code == 0
    assert planned["done"] == len(NAMES)
    assert len(FeatureStore.open("store/thumos.zarr").specs()) == 1
    code, done, _ = command(capfd, "extract", "--stride", "8", "--store", "store/eight.zarr")
    assert code == 0
    for key in ("done", "snippets", "frames_decoded", "bytes"):
        assert done[key] == planned[key]


def test_training_run_has_every_file(project: Path) -> None:
    names = {path.name for path in (project / "runs" / "actionformer").iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "recipe.json",
        "state.pt",
        "metrics.jsonl",
        "detections.json",
        "eval.json",
        "environment.json",
    }


def test_own_video_becomes_segments_in_every_format(capfd: CapFd, tmp_path: Path) -> None:
    video = make_video(tmp_path / "mein Vidéo №1.mp4", frames=130)
    outs = [tmp_path / f"out{suffix}" for suffix in (".json", ".csv", ".srt", ".vtt")]
    options = [f"--out={out}" for out in outs]
    code, report, _ = command(
        capfd, "detect", str(video), "--model=runs/actionformer", "--top-k=3", *options
    )
    assert code == 0
    found = load_detections(outs[0])["mein Vidéo №1"]
    assert 1 <= len(found) <= 3
    assert all(0 <= d.start_sec <= d.end_sec <= 131 / 30 for d in found)
    assert all(out.stat().st_size for out in outs)
    assert report["extraction"][0]["done"] == 1
    _, again, _ = command(
        capfd, "detect", str(video), "--model=runs/actionformer", f"--out={outs[0]}"
    )
    assert again["extraction"][0]["frames_decoded"] == 0


def test_what_was_found_is_drawn_without_colour_into_a_pipe(capfd: CapFd, tmp_path: Path) -> None:
    options = ["--model=runs/actionformer", f"--out={tmp_path / 'o.json'}"]
    assert run(["detect", "my videos/four.mp4", *options]) == 0
    text = capfd.readouterr().out
    (drawn,) = (line for line in text.splitlines() if line.startswith("found  "))
    assert len(drawn) == 120
    assert "four, 5.1 s" in text
    assert "\x1b" not in text


def test_backbone_weights_are_found_again_outside_the_project(
    capfd: CapFd, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video, run_folder = project / "my videos" / "four.mp4", project / "runs" / "actionformer"
    code, report, _ = command(capfd, "detect", str(video), f"--model={run_folder}")
    assert (code, report["extraction"][0]["done"]) == (0, 1)


def test_min_score_leaves_out_what_is_below(capfd: CapFd, tmp_path: Path) -> None:
    options = ["--model=runs/actionformer", f"--out={tmp_path / 'a.json'}"]
    _, every, _ = command(capfd, "detect", "my videos/four.mp4", *options)
    scores = [row["score"] for row in every["detections"]["four"]]
    limit = sorted(scores)[len(scores) // 2]
    _, best, _ = command(capfd, "detect", "my videos/four.mp4", *options, f"--min-score={limit}")
    assert [row["score"] for row in best["detections"]["four"]] == [s for s in scores if s >= limit]


def test_evaluating_a_run_repeats_its_score(capfd: CapFd) -> None:
    code, report, _ = command(capfd, "evaluate", "runs/actionformer")
    assert code == 0
    stored = json.loads(Path("runs/actionformer/eval.json").read_text(encoding="utf-8"))
    assert report["average_map"] == stored["average_map"]
    assert report["subset"] == "test"


def test_store_commands_describe_the_store(capfd: CapFd) -> None:
    code, info, _ = command(capfd, "store", "info")
    assert code == 0
    assert info["features"][0]["videos"] >= len(NAMES)
    _, listing, _ = command(capfd, "store", "ls")
    assert {row["name"] for row in listing["videos"]} >= set(NAMES)
    code, checked, _ = command(capfd, "store", "verify", "--deep")
    assert (code, checked["damaged"]) == (0, 0)
    _, status, _ = command(capfd, "store", "status")
    assert status["failed"] == []
    code, cleaned, _ = command(capfd, "store", "gc", "--dry-run")
    assert (code, cleaned["parts"]) == (0, [])


def test_damaged_video_is_named_and_extracted_again(capfd: CapFd) -> None:
    command(capfd, "extract", "--store", "store/hurt.zarr")
    (shard,) = Path("store/hurt.zarr").glob("features/*/parts/*/features/c.*")
    raw = bytearray(shard.read_bytes())
    raw[10] ^= 0xFF
    shard.write_bytes(raw)
    code, report, _ = command(capfd, "store", "verify", "store/hurt.zarr", "--deep")
    damaged = [finding["name"] for finding in report["findings"]]
    assert (code, len(damaged)) == (1, 1)
    command(capfd, "store", "verify", "store/hurt.zarr", "--deep", "--drop-damaged")
    _, again, _ = command(capfd, "extract", "--store", "store/hurt.zarr")
    assert [v["name"] for v in again["videos"] if v["status"] == "done"] == damaged
    code, report, _ = command(capfd, "store", "verify", "store/hurt.zarr", "--deep")
    assert code == 0


def test_hdf5_store_serves_the_same_commands(capfd: CapFd, tmp_path: Path) -> None:
    code, report, _ = command(capfd, "extract", "--store", "store/same.h5")
    assert (code, report["done"]) == (0, len(NAMES))
    ours, theirs = FeatureStore.open("store/same.h5"), FeatureStore.open("store/thumos.zarr")
    for name in NAMES:
        assert (ours[name][:] == theirs[name][:]).all()
    options = [*SMALL_MODEL, f"--out={tmp_path / 'run'}"]
    assert run(["train-detector", "--features", "store/same.h5", *options]) == 0
    capfd.readouterr()


def test_run_refuses_features_of_another_stride(capfd: CapFd, tmp_path: Path) -> None:
    command(capfd, "extract", "--stride=8", "--clip-len=8", "--store=store/other.zarr")
    code, answer, _ = command(
        capfd,
        "train-detector",
        "--features=store/other.zarr",
        "--out=runs/actionformer",
        "--resume",
        *SMALL_MODEL,
    )
    assert code == 2
    message = answer["error"]["message"]
    for words in ("store/other.zarr", "stride 8 frames", "stride 4 frames", "--stride 4"):
        assert words in message


def test_names_are_listed_with_one_line_each(capfd: CapFd) -> None:
    for family in ("detectors", "backbones", "datasets", "presets"):
        code, names, _ = command(capfd, "list", family)
        assert code == 0
        assert names[family]
        assert all(line for line in names[family].values())


def test_run_is_evaluated_from_another_folder(
    project: Path, capfd: CapFd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, report, _ = command(capfd, "evaluate", str(project / "runs" / "actionformer"))
    assert (code, report["subset"]) == (0, "test")


def test_the_projects_annotations_count_as_they_are_now(
    project: Path, capfd: CapFd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = json.loads((project / "labels.json").read_text(encoding="utf-8"))
    del labels["database"][NAMES[0]]
    (tmp_path / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    store = (project / "store" / "thumos.zarr").as_posix()
    settings = f'annotations = "labels.json"\nstore = "{store}"\n'
    (tmp_path / "tadpipe.toml").write_text(settings, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for features in ([], ["--features", store]):
        code, plan, _ = command(capfd, "train-detector", "--dry-run", *features, *SMALL_MODEL)
        assert (code, plan["videos"]) == (0, 2)


def test_another_video_of_the_same_name_leaves_the_store_as_it_was(
    capfd: CapFd, tmp_path: Path
) -> None:
    before = FeatureStore.open("store/thumos.zarr")[NAMES[0]][:]
    video = make_video(tmp_path / f"{NAMES[0]}.mp4", frames=90)
    out = tmp_path / "o.json"
    code, report, _ = command(
        capfd, "detect", str(video), "--model=runs/actionformer", f"--out={out}"
    )
    (name,) = report["detections"]
    assert (code, report["extraction"][0]["done"]) == (0, 1)
    assert name.startswith(f"{NAMES[0]} (")
    assert (FeatureStore.open("store/thumos.zarr")[NAMES[0]][:] == before).all()


def test_detecting_in_no_readable_video_names_the_reason(capfd: CapFd, tmp_path: Path) -> None:
    options = ["--model=runs/actionformer", f"--store={tmp_path / 'new.zarr'}"]
    code, report, _ = command(capfd, "detect", "none.mp4", *options, f"--out={tmp_path / 'o.json'}")
    assert code == 3
    assert report["extraction"][0]["videos"][0]["reason"] == "not-found"
    assert not (tmp_path / "o.json").exists()
