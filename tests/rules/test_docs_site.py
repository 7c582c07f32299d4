"""The documentation site builds without a warning, shows all there is, and loads nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import tadpipe
from tadpipe.cli.main import COMMANDS, cli
from tests.end_to_end.browser import console_errors, open_browser, page_url, requests

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]*"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: with --strict, a warning is an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    answer = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = (site / "cli-reference.html").read_text(encoding="utf-8")
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert f">tadpipe {name}<" in page
        leaves = command.commands.values() if isinstance(command, click.Group) else [command]
        for leaf in leaves:
            for parameter in leaf.params:
                if isinstance(parameter, click.Option):
                    assert f"<code>{parameter.opts[0]}" in page


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in tadpipe.__all__:
        assert f'id="tadpipe.{name}"' in page


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not LOADED.findall(page.read_text(encoding="utf-8")), page.name


def test_page_from_disk_is_searched_without_a_request(site: Path) -> None:
    with open_browser() as chrome:
        chrome.get(page_url(site / "index.html"))
        chrome.find_element(By.CSS_SELECTOR, ".md-search__input").send_keys("soft-NMS")
        found = WebDriverWait(chrome, 30).until(
            lambda _: chrome.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        )
        assert found
        assert all(url.startswith("file:") for url in requests(chrome))
        assert console_errors(chrome) == []
