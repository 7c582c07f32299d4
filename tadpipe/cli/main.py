"""The `tadpipe` command: a lazy group, and the one place where errors become exit codes.

Exit codes: 0 done; 1 failed or interrupted; 2 wrong usage or configuration; 3 done in part.
Command files import click only; the work is imported inside each command.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import click

from tadpipe import __version__
from tadpipe.errors import TadpipeError
from tadpipe.registry import nearest

COMMANDS = {
    "demo": "tadpipe.cli.demo:demo",
    "init": "tadpipe.cli.init:init",
    "validate": "tadpipe.cli.validate:validate",
    "extract": "tadpipe.cli.extract:extract",
    "train-detector": "tadpipe.cli.train_detector:train_detector",
    "e2e": "tadpipe.cli.e2e:e2e",
    "detect": "tadpipe.cli.detect:detect",
    "evaluate": "tadpipe.cli.evaluate:evaluate",
    "compare": "tadpipe.cli.compare:compare",
    "report": "tadpipe.cli.report:report",
    "annotations": "tadpipe.cli.annotations:label_files",
    "store": "tadpipe.cli.store:store",
    "checkpoint": "tadpipe.cli.checkpoint:checkpoint",
    "list": "tadpipe.cli.list:list_names",
}


class LazyGroup(click.Group):
    """Imports a command's file when the command is asked for; suggests near misses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            guesses = nearest(args[0], COMMANDS)
            hint = f" Did you mean {' or '.join(guesses)}?" if guesses else ""
            raise click.UsageError(
                f"No command '{args[0]}'.{hint} Commands: {', '.join(COMMANDS)}.", ctx
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: tadpipe demo. In a folder of your own: tadpipe init.",
)
@click.version_option(__version__, prog_name="tadpipe")
def cli() -> None:
    """Temporal action detection: features from videos, a store that keeps them, detectors."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are shown, not raised."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Looked for by hand: a usage error ends the parsing before click has read them.
    debug, as_json = "--debug" in given, "--json" in given
    try:
        outcome = cli.main(args=given, prog_name="tadpipe", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as error:
        if not as_json:
            error.show()
            return error.exit_code
        return _show("UsageError", error.format_message(), error.exit_code, as_json)
    except (click.Abort, KeyboardInterrupt):
        text = (
            "Interrupted. What was finished is kept; run the same command again to go on "
            "(train-detector, e2e: with --resume)."
        )
        return _show("Interrupted", text, 1, as_json)
    except TadpipeError as error:
        if debug:
            raise
        return _show(type(error).__name__, str(error), error.exit_code, as_json)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if debug:
            raise
        return _show(type(error).__name__, _unexpected(error), 1, as_json)


def _unexpected(error: Exception) -> str:
    """What the system refused, or else a defect of ours."""
    if isinstance(error, OSError) and error.strerror:
        what = f"The system refused: {error.strerror}."
        where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        todo = "Check that the place exists, that you may write there, and that the disk has room."
        return str(TadpipeError(what, where, todo))
    return (
        f"Unexpected {type(error).__name__}: {error}\n"
        "  This is a defect of tadpipe. Run again with --debug and report the traceback."
    )


def _show(kind: str, text: str, exit_code: int, as_json: bool) -> int:
    """An error on stderr, and as the one JSON document on stdout where that was asked for."""
    encoding = sys.stderr.encoding or "utf-8"
    printable = text.encode(encoding, "backslashreplace").decode(encoding)
    click.echo(printable if kind == "Interrupted" else f"Error: {printable}", err=True)
    if as_json:
        document = {"error": {"kind": kind, "message": text, "exit_code": exit_code}}
        with suppress(OSError):  # stdout may be what failed; stderr has said it
            click.echo(json.dumps(document, ensure_ascii=True))
    return exit_code
