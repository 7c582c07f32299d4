"""Every command in the documentation parses: options, values and names of presets there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
import pytest

from tadpipe.backbones import BACKBONES
from tadpipe.cli.main import cli
from tadpipe.datasets import DATASETS
from tadpipe.datasets.conventions import CONVENTIONS
from tadpipe.datasets.feature_recipes import FEATURE_RECIPES
from tadpipe.detectors import DETECTORS
from tadpipe.pipeline.presets import load_preset
from tests.fenced import PAGES, Command, page_commands

KNOWN = {
    "backbone": BACKBONES,
    "convention": CONVENTIONS,
    "dataset": DATASETS,
    "detector": DETECTORS,
    "recipe": FEATURE_RECIPES,
}
INLINE = re.compile(r"`(tadpipe [a-z][^`\n]*)`")
PLACEHOLDER = re.compile(r"\.\.\.|\||\b[A-Z]{3,}\b|\[|\s--[a-z-]+$")  # not meant to be typed


def inline_commands() -> Iterator[Command]:
    """Whole commands within the text of a page."""
    for page in PAGES:
        for text in INLINE.findall(page.read_text(encoding="utf-8")):
            if not PLACEHOLDER.search(text):
                yield Command(page, text)


def parsed(command: Command) -> click.Context:
    """The command's context; nothing is run.

    Raises:
        click.UsageError: unknown command or option, missing or wrong value.
    """
    words = command.words
    context, found = click.Context(cli, info_name="tadpipe"), cli
    while isinstance(found, click.Group):
        name, child, words = found.resolve_command(context, words)
        assert child is not None
        if not isinstance(child, click.Group):
            return child.make_context(name, words, parent=context)
        context, found = click.Context(child, info_name=name, parent=context), child
    raise AssertionError(command.text)


def check_names(values: dict[str, Any]) -> None:
    """Names and settings among the options are those there are.

    Raises:
        TadpipeError: unknown preset, or a key or value that it does not take.
    """
    for key, known in KNOWN.items():
        if key == "backbone" and values.get("channels"):
            continue  # imported features may come from a backbone of the user's own
        assert values.get(key) is None or values[key] in known
    presets = values.get("presets") or [values["preset"]] if values.get("preset") else []
    detectors = [values.get("detector") or "actionformer"]
    if isinstance(values.get("detectors"), str):
        detectors = values["detectors"].split(",")
    if "sets" in values and "preset" in values and not presets:
        presets = [f"{name}/{values.get('preset_name') or 'default'}" for name in detectors]
    for preset in presets:
        load_preset(preset, values.get("sets", ()), values.get("detector"))


COMMANDS = [command for page in PAGES for command in page_commands(page)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_command_of_a_page_parses_and_names_what_there_is(command: Command) -> None:
    check_names(parsed(command).params)


def test_commands_within_the_text_parse() -> None:
    faults = []
    for command in inline_commands():
        try:
            parsed(command)
        except click.MissingParameter:
            continue  # named, not spelt out
        except click.UsageError as error:
            faults.append(f"{command.name}: {error.format_message()}")
    assert faults == []
