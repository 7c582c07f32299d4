"""Options that every command spells the same way, and how results and progress are shown.

Results go to stdout (one JSON document with --json), progress and messages to stderr.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tadpipe.location import Address, location
from tadpipe.pipeline.progress import Progress, Silent

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class LocalPath(click.Path):
    """A file or folder that is written on this machine; only stores can be elsewhere."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        place = location(value)
        if isinstance(place, Address):
            self.fail(f"{place}: only a feature store can be on object storage.", param, ctx)
        return super().convert(place, param, ctx)


def shared_options(function: F) -> F:
    """--json (passed on as `as_json`) and --debug; `cli.main` looks for both where errors end."""
    for option in (
        click.option(
            "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
        ),
        click.option(
            "--json", "as_json", is_flag=True, help="Print the result as one JSON document."
        ),
    ):
        function = option(function)
    return function


seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of every random choice."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be read, reused and written; write nothing."
)
device_option = click.option(
    "--device", default=None, help="cpu, cuda, cuda:1 or auto.  [default: auto]"
)

skip_unscored_option = click.option(
    "--skip-unscored",
    is_flag=True,
    help="Videos without class scores get no detections; without it they are an error.",
)
rule_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change how class scores are fused, as class_scores.rule=product.  [the model's rule]",
)


def class_scores_option(default: str) -> Callable[[F], F]:
    """--class-scores; `default` says where it is taken from when left out."""
    return click.option(
        "--class-scores",
        type=click.Path(path_type=Path),
        default=None,
        help=f"File of video-level class scores, which name what is found; none.  [{default}]",
    )


def class_scores_file(given: Path | None, project: Path | None) -> Path | None:
    """The file asked for, else the project's; "none" turns that one off."""
    return None if given == Path("none") else first(given, project)


def first(*values: T | None) -> T | None:
    """The first value that is given: command line, project file, default."""
    return next((value for value in values if value is not None), None)


def emit(as_json: bool, mapping: dict[str, Any], text: str) -> None:
    """Show a result: the mapping as JSON, or the text."""
    if not _speaks():
        return
    if as_json:
        click.echo(json.dumps(_plain(mapping), ensure_ascii=True, indent=1, allow_nan=False))
    elif text:
        encoding = sys.stdout.encoding or "utf-8"  # a terminal that cannot show a name escapes it
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def _speaks() -> bool:
    """Whether this process shows anything: of those that torchrun started, the first one."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


def _plain(value: Any) -> Any:
    """A result in JSON's own values, which know no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_width() -> int:
    """Columns of the terminal; 120 where the output goes to a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 120


def text_colour() -> bool:
    """Whether to colour the output: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class TqdmProgress:
    """A bar on stderr; off when stderr is no terminal, the summary line is always printed."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, label: str, total: int | None, unit: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total, desc=label, unit=unit, file=sys.stderr, disable=None, leave=False
        )

    def advance(self, units: int = 1, note: str = "") -> None:
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(units)

    def end(self, summary: str = "") -> None:
        if self._bar is not None:
            self._bar.close()
        if summary:
            click.echo(summary, err=True)


def terminal_progress(as_json: bool) -> Progress:
    """Progress for a person; silent when a program reads the output."""
    return Silent() if as_json or not _speaks() else TqdmProgress()
