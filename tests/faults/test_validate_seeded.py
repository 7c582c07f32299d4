"""One project with 40 defects of 40 kinds: validate finds all of them in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tadpipe.cli.main import run
from tadpipe.pipeline.validate_findings import KINDS
from tests.faults.seeded_project import SEEDS, SETS, Seed, make_seeded_project

DOCS = Path(__file__).parents[2] / "docs" / "validate.md"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """Exit code and document of the one run."""
    folder = tmp_path_factory.mktemp("seeded")
    make_seeded_project(folder)
    arguments = ["--annotations", "labels.json", "--videos", "videos", "--features", "store.zarr"]
    arguments += ["--deep", "--val-subset", "nope", "--class-scores", "scores.json", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        lines: list[str] = []
        patch.setattr("click.echo", lambda text="", err=False: err or lines.append(text))
        code = run(["validate", *arguments, *(f"--set={item}" for item in SETS)])
    return code, json.loads("".join(lines))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.kind)
def test_seeded_defect_is_found_at_its_place(seed: Seed, found: tuple[int, dict[str, Any]]) -> None:
    places = {
        f"{each['file']}: {each['place']}: {each['message']}"
        for each in found[1]["findings"]
        if (each["kind"], each["severity"]) == (seed.kind, seed.severity)
    }
    assert any(seed.where in place for place in places), places


def test_seeds_are_of_different_kinds_and_end_in_exit_code_2(
    found: tuple[int, dict[str, Any]],
) -> None:
    assert len({seed.kind for seed in SEEDS}) == len(SEEDS) >= 25
    assert found[0] == 2
    assert not found[1]["ok"]


def test_every_finding_says_where_and_what_to_do(found: tuple[int, dict[str, Any]]) -> None:
    for each in found[1]["findings"]:
        assert each["file"] or each["place"], each
        assert each["meaning"], each
        assert each["todo"], each


def test_nothing_but_the_seeds_and_their_consequences_is_found(
    found: tuple[int, dict[str, Any]],
) -> None:
    kinds = {each["kind"] for each in found[1]["findings"]}
    assert kinds == {seed.kind for seed in SEEDS}


def test_features_of_sound_videos_are_not_among_them(found: tuple[int, dict[str, Any]]) -> None:
    kinds = {"damaged-features", "nan-rows", "constant-features", "odd-features"}
    kinds |= {"features-length", "features-of-another-file"}
    places = {each["place"] for each in found[1]["findings"] if each["kind"] in kinds}
    elsewhere = {"cut", "stretched"}  # their file and their stated duration are wrong
    assert places - elsewhere == {"bits", "flat", "holes", "lasting", "loud", "replaced"}


def test_page_explains_every_kind() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []
