"""The names of every family with one line each, read from source and preset files as text.

Nothing is imported: a module's first docstring line, a function's docstring and a preset's
comments say what the name is, so that listing needs no torch.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from tadpipe.backbones import BACKBONES
from tadpipe.datasets import DATASETS
from tadpipe.datasets.feature_recipes import FEATURE_RECIPES
from tadpipe.detectors import DETECTORS
from tadpipe.errors import ConfigError

PRESETS = Path(__file__).parents[1] / "presets"
TABLES = {"detectors": DETECTORS, "backbones": BACKBONES, "datasets": DATASETS}


def names_of(family: str) -> dict[str, str]:
    """Name -> one line, for "detectors", "backbones", "datasets", "presets" or "recipes"."""
    if family == "presets":
        return {
            path.relative_to(PRESETS).with_suffix("").as_posix(): _preset_line(path)
            for path in sorted(PRESETS.glob("*/*.toml"))
        }
    if family == "recipes":
        return {name: recipe.line() for name, recipe in FEATURE_RECIPES.items()}
    if family not in TABLES:
        raise ConfigError(f"Unknown family '{family}'.", todo=f"Known: {', '.join(TABLES)}.")
    return {name: _docstring_line(target) for name, target in TABLES[family].items()}


def _docstring_line(target: str) -> str:
    """First docstring line of the function or value named, else of its module."""
    module, _, attribute = target.partition(":")
    # find_spec imports the parent package, whose __init__ holds names only.
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError("A name leads to no module.", target)
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            own = ast.get_docstring(node)
            if own:
                return own.splitlines()[0]
    for node, below in pairwise(tree.body):
        match node, below:
            case (
                ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if name == attribute:
                return text.splitlines()[0]
    return (ast.get_docstring(tree) or "").splitlines()[0]


def _preset_line(path: Path) -> str:
    """The preset's first comment lines: the command, then the score it should reach."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines[:3] if line.startswith("#")]
    return " | ".join(comments)
