"""What mkdocs does beyond its plugins: pages made from the commands and from measurements."""

from __future__ import annotations

import inspect
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from tadpipe.cli.main import cli

PAGES = {"benchmarks/results/*.md": "measured", "CONTRIBUTING.md": ""}  # -> folder of the site
COMMANDS = "<!-- commands -->"  # stands in cli-reference.md
EXAMPLE = re.compile(r"^Example: (.*)$", re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take pages of the repository that are not in docs/ into the site."""
    for path, target in _repository_pages(config):
        page = File.generated(config, target, content=path.read_text(encoding="utf-8"))
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that hold in the repository to the site's pages; list the commands."""
    here = posixpath.dirname(page.file.src_uri)
    root = Path(config.docs_dir).parent
    for path, target in _repository_pages(config):
        link = os.path.relpath(path, root / "docs" / here).replace(os.sep, "/")
        markdown = markdown.replace(f"]({link})", f"]({posixpath.relpath(target, here or '.')})")
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(command_sections()))
    return markdown


def _repository_pages(config: MkDocsConfig) -> Iterator[tuple[Path, str]]:
    """Each file with its place in the site."""
    for pattern, folder in PAGES.items():
        for path in sorted(Path(config.docs_dir).parent.glob(pattern)):
            yield path, posixpath.join(folder, path.name.lower())


def command_sections() -> Iterator[str]:
    """Markdown: help, usage and options of every command, in the order of `tadpipe --help`."""
    root = click.Context(cli, info_name="tadpipe")
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root)
        yield from _section(command, context, level=2)
        if isinstance(command, click.Group):
            for child, leaf in command.commands.items():
                yield from _section(
                    leaf, click.Context(leaf, info_name=child, parent=context), level=3
                )


def _section(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield f"\n{'#' * level} {context.command_path}\n"
    yield f"```\n{usage}\n```\n"
    yield EXAMPLE.sub(r"Example:\n\n```\n\1\n```", text)
    if isinstance(command, click.Group):
        return
    yield "\n| option | does |\n|---|---|"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and parameter.name != "help":
            names, does = (" ".join(part.split()).replace("|", r"\|") for part in record)
            yield f"| `{names}` | {does.replace('<', '&lt;').replace('[', '&#91;')} |"
