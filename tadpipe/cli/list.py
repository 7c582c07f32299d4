"""tadpipe list: the names one can ask for, with one line each; imports nothing heavy."""

from __future__ import annotations

import click

from tadpipe.cli.options import emit, shared_options

FAMILIES = ("detectors", "backbones", "datasets", "presets", "recipes")


@click.command(name="list")
@click.argument("family", type=click.Choice(FAMILIES))
@shared_options
def list_names(family: str, as_json: bool) -> None:
    """Names of detectors, backbones, datasets, presets or recipes of features.

    Example: tadpipe list detectors
    """
    from tadpipe.pipeline.names import names_of

    names = names_of(family)
    width = max(map(len, names), default=0)
    lines = (f"{name:<{width}}  {line}" for name, line in names.items())
    emit(as_json, {family: names}, "\n".join(lines))
