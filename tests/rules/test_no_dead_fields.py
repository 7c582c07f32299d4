"""No field of a configuration dataclass that nothing reads, and no command option either."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import click
import pytest

from tadpipe.cli.main import COMMANDS, cli

PACKAGE = Path(__file__).parents[2] / "tadpipe"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def config_fields() -> list[tuple[str, str]]:
    """(class, field) of every frozen dataclass whose name says that it configures something."""
    found = []
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith(
                ("Config", "Project", "Recipe", "Plan", "Spec", "Protocol")
            ):
                is_data = any("dataclass" in ast.unparse(item) for item in node.decorator_list)
                if is_data:
                    found += [
                        (node.name, item.target.id)
                        for item in node.body
                        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                    ]
    return found


@cache
def names_read() -> set[str]:
    """Attributes read anywhere outside `__post_init__`, where a check alone is no use."""
    read: set[str] = set()
    for tree in TREES.values():
        skipped = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
            for inner in ast.walk(node)
        }
        read |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and id(node) not in skipped
        }
    return read


@pytest.mark.parametrize(("owner", "field"), config_fields(), ids=lambda text: text)
def test_field_is_read(owner: str, field: str) -> None:
    assert field in names_read(), f"nothing reads {owner}.{field}"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_of_a_command_is_used_and_explained(command: str) -> None:
    context = click.Context(cli)
    top = cli.get_command(context, command)
    assert top is not None
    leaves = list(top.commands.values()) if isinstance(top, click.Group) else [top]
    for leaf in leaves:
        assert leaf.help, f"{leaf.name} has no help"
        source = TREES[PACKAGE / "cli" / f"{COMMANDS[command].split(':')[0].split('.')[-1]}.py"]
        used = [node.id for node in ast.walk(source) if isinstance(node, ast.Name)]
        for parameter in leaf.params:
            if isinstance(parameter, click.Option) and parameter.expose_value:
                assert parameter.name in used, f"{command}: nothing uses {parameter.opts}"
