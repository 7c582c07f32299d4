"""The documentation speaks of what there is: every command and option, and no dead link."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tadpipe.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERYWHERE = {"--json", "--debug", "--help"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_command_page_names_every_option(name: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"## tadpipe {name}\n" in page
    section = page.split(f"## tadpipe {name}\n")[1].split("\n## ")[0]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    leaves = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for leaf in leaves:
        for parameter in leaf.params:
            if isinstance(parameter, click.Option) and not EVERYWHERE & set(parameter.opts):
                assert parameter.opts[0] in section, f"{name}: {parameter.opts[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pages_name_no_command_that_is_not_there() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = "\n".join(
            re.findall(r"```[a-z]*\n(.*?)```", text, re.S) + re.findall(r"`([^`]+)`", text)
        )
        for name in re.findall(r"^tadpipe ([a-z0-9-]+)", code, re.M):
            assert name in COMMANDS, f"{page.name}: tadpipe {name}"
