"""The commands of README and guides, run as written in a small project.

What only the reader has is stood in for: files and runs that a command reads are made before it
runs, by the kind of their name. What needs a download, released features or more than a
processor is not run; tests/rules/test_docs_commands.py parses it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tadpipe.cli.main import run
from tadpipe.config import apply_sets, read_toml
from tadpipe.pipeline.presets import preset_path
from tests.corpus import make_video
from tests.end_to_end.project import SMALL_MODEL, make_project
from tests.fenced import PAGES, ROOT, Command, expanded, page_commands

NOT_RUN = {
    r"--preset \S+/(thumos14|activitynet|epic|ego4d)": "released features",
    r"--preset-name thumos14_i3d": "released features",
    r"\.(pth|pt|tar|safetensors)\b": "weights that are fetched by hand",
    r"--weights FILE|--backbone videomae-b$": "weights that are downloaded",
    r"store import|thumos14\.json|store/rgb\.zarr": "released features and labels",
    r"runs/(tridet_official|mq|verb)\b": "a run on a released data set",
    r"--class-scores": "a video classifier's scores, and a run on a released data set",
    r"^torchrun|--scheduler": "several processes or machines",
    r"compare .*dyfadet": "minutes of a processor",
    r"^tadpipe demo$": "nine minutes of a processor",
    r"e2e.picture_size": "a backbone that takes other sizes of pictures than the tiny one",
}
SMALL_PRESET = [*(part.removeprefix("--set=") for part in SMALL_MODEL), "training.batch_size=2"]
GUIDES = [page for page in PAGES if page.parent.name != "tutorials"]


def to_run(page: Path) -> list[Command]:
    """The page's commands but for those with a reason not to run them."""
    return [c for c in page_commands(page) if not any(re.search(p, c.text) for p in NOT_RUN)]


SLOW = {"demo.md", "e2e.md", "adapters.md"}  # their commands train a detector or a backbone
RUN_HERE = [
    pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in GUIDES
    if to_run(page)
]


def toml(preset: dict[str, object]) -> str:
    """A preset's text; JSON's numbers, strings, lists and truth values are TOML's, too."""
    lines = [f"{key} = {json.dumps(v)}" for key, v in preset.items() if not isinstance(v, dict)]
    for name, table in preset.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in table.items())]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with features and a run, on a preset that trains in a second."""
    folder = make_project(tmp_path_factory.mktemp("template") / "project")
    (folder / "my videos").rename(folder / "videos")
    preset = apply_sets(read_toml(preset_path("actionformer/demo")), SMALL_PRESET)
    (folder / "small.toml").write_text(toml(preset), encoding="utf-8")
    project = folder / "tadpipe.toml"
    text = project.read_text(encoding="utf-8").replace("my videos", "videos")
    project.write_text(text + 'preset = "small.toml"\n', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run(["extract"]) == 0
        assert run(["train-detector", "--out", "runs/template"]) == 0
    return folder


def stand_in(words: list[str]) -> None:
    """Make what a command reads and is not there yet."""
    for before, word in zip(["", *words], words, strict=False):
        path = Path(word.removesuffix("/detections.json"))
        if before in ("--out", "--store") or path.exists() or word.startswith("-"):
            continue
        if path.suffix == ".mp4":
            make_video(path, frames=130)
        elif before == "--weights" and path.parent.name == "runs":
            assert run(["e2e", "--out", word]) == 0
        elif path.parent.name == "runs" or word == "compare":
            target = path / "actionformer" / "seed0" if word == "compare" else path
            shutil.copytree("runs/template", target)
        elif path.suffix == ".zarr":
            shutil.copytree("store/thumos.zarr", path)
        elif word == "*.eaf":
            assert run(["annotations", "export", "labels.json", "--to", "elan", "--out", "."]) == 0


@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_run_as_written(
    page: Path,
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for command in to_run(page):
        words = command.words
        if words[0] == "init":  # made as written, then the project of the stand-ins again
            own = Path("tadpipe.toml").read_text(encoding="utf-8")
            Path("tadpipe.toml").unlink()
            assert run(words) == 0
            Path("tadpipe.toml").write_text(own, encoding="utf-8")
            continue
        if words[0] != "compare":
            stand_in(words[1:])
        assert run(expanded(words)) == 0, command.text + "\n" + capfd.readouterr().err


@pytest.mark.parametrize("part", NOT_RUN)
def test_reason_not_to_run_is_still_needed(part: str) -> None:
    commands = [command for page in GUIDES for command in page_commands(page)]
    assert any(re.search(part, command.text) for command in commands)
