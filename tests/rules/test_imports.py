"""Who may import whom: read from the source, checked against the one table here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tadpipe"
BASE = {
    "annotations",
    "config",
    "detection_files",
    "epic_csv",
    "errors",
    "json_text",
    "location",
    "project",
    "registry",
    "timeline",
}

# unit -> (units of tadpipe it may import, third-party packages it may import)
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    **{unit: (BASE, set()) for unit in BASE},
    "video": (BASE, {"av", "decord", "numpy"}),
    "store": (
        BASE,
        {"zarr", "h5py", "dask", "numpy", "xxhash", "numcodecs", "fsspec", "google_crc32c"},
    ),
    "evaluation": (BASE, {"numpy", "pandas"}),
    "backbones": (BASE, {"torch", "safetensors", "huggingface_hub"}),
    "sampling": (BASE, {"torch"}),
    "resample": (BASE, {"torch"}),
    "class_scores": (BASE, {"numpy"}),
    "detectors": (BASE | {"sampling", "resample"}, {"torch", "numpy", "safetensors"}),
    "datasets": (BASE | {"store", "resample"}, {"torch", "numpy"}),
    "training": (
        BASE | {"detectors", "backbones", "datasets", "sampling", "resample"},
        {"torch", "numpy", "safetensors", "tensorboard"},
    ),
    "report": (BASE | {"evaluation"}, {"numpy", "matplotlib", "vl_convert"}),
    "pipeline": (
        BASE
        | {"video", "store", "backbones", "detectors", "datasets", "training", "evaluation"}
        | {"report", "sampling", "resample", "class_scores"},
        {"torch", "numpy", "av", "safetensors", "yaml", "pympi", "webvtt", "dask", "distributed"},
    ),
    "cli": (BASE | {"pipeline", "detectors", "backbones", "datasets"}, {"click", "tqdm"}),
}
# Modules that hold names only, so that anyone may read them without importing a layer.
NAME_DICTIONARIES = {"tadpipe.detectors", "tadpipe.backbones", "tadpipe.datasets"}


def unit_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.stem not in {"__init__", "__main__"}
]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert unit in ALLOWED, f"{unit} is not in the table of layers"
    own, third_party = ALLOWED[unit]
    for module in imports_of(path):
        top = module.split(".")[0]
        if module == "tadpipe" or module in NAME_DICTIONARIES:
            continue
        if top == "tadpipe":
            assert unit_of(module) in own | {unit}, f"{path}: {unit} may not import {module}"
        elif top not in sys.stdlib_module_names:
            assert top in third_party, f"{path}: {unit} may not import {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda p: p.name)
def test_command_file_imports_only_click_and_light_modules_at_load_time(path: Path) -> None:
    light = {"tadpipe", "tadpipe.pipeline.progress"}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                {alias.name for alias in node.names}
                if isinstance(node, ast.Import)
                else {node.module or ""}
            )
            for name in names:
                top = name.split(".")[0]
                allowed = (
                    top in sys.stdlib_module_names
                    or top == "click"
                    or name in light
                    or name in NAME_DICTIONARIES
                    or (top == "tadpipe" and unit_of(name) in BASE | {"cli"})
                )
                assert allowed, f"{path.name} imports {name} at load time"


def test_layers_have_no_cycle() -> None:
    graph = {unit: own - {unit} for unit, (own, _) in ALLOWED.items()}
    for unit in BASE:
        graph[unit] = set()
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {unit for unit, needs in graph.items() if unit not in done and needs <= done}
        assert ready, f"cycle among {set(graph) - done}"
        done |= ready


def test_modules_inside_a_package_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("tadpipe", *path.relative_to(PACKAGE).with_suffix("").parts))
        top_level = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tadpipe.")
        ]
        graph[name] = {node.module or "" for node in top_level}
    done: set[str] = set()
    while True:
        ready = {
            name
            for name, needs in graph.items()
            if name not in done and all(need in done or need not in graph for need in needs)
        }
        if not ready:
            break
        done |= ready
    assert done == set(graph), f"import cycle among {sorted(set(graph) - done)}"
