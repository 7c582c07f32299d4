"""The files of a training run: what it was started with, and that it is not overwritten.

`config.json` is the fully resolved configuration, `environment.json` says on what the run was
made. A folder that holds a run is only ever resumed, and only with the same configuration.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tadpipe import __version__
from tadpipe.config import write_atomically
from tadpipe.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
BACKBONE_FILE = "backbone.safetensors"  # of an end-to-end run: the tuned backbone, averaged
FEATURES_DIR = "features.zarr"  # of an end-to-end run: what its tuned backbone extracted
PACKAGES = ("torch", "numpy", "zarr", "h5py", "safetensors", "av", "decord", "pandas")


def backbone_weights(weights: str | Path | None) -> str | Path | None:
    """The file of weights where a run folder may be named: that of its tuned backbone.

    Raises:
        CheckpointError: a folder without one.
    """
    if weights is None or not Path(weights).is_dir():
        return weights
    path = Path(weights) / BACKBONE_FILE
    if not path.is_file():
        raise CheckpointError(
            "The folder holds no tuned backbone.",
            f"{weights} has no {BACKBONE_FILE}",
            "Name the folder of a finished `tadpipe e2e` run that tuned the backbone, or a file.",
        )
    return path


def usual_store(run: str | Path | None, project: Path) -> Path:
    """Where features go unless a store is named: those of a tuned backbone stay with its run."""
    if run is not None and (Path(run) / BACKBONE_FILE).is_file():
        return Path(run) / FEATURES_DIR
    return project


def write_json(path: Path, mapping: Mapping[str, Any]) -> None:
    """Readable JSON, written atomically."""
    write_atomically(path, json.dumps(mapping, indent=1, ensure_ascii=False) + "\n")


def check_run_folder(folder: Path, config: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse to overwrite a run, or to resume it with another configuration.

    Raises:
        ConfigError: the folder holds a run and `resume` is not set, or values differ.
        CheckpointError: its config.json is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        return
    if not resume:
        raise ConfigError(
            "The run folder holds a run already.",
            str(folder),
            "Go on with it by --resume, or write to another folder with --out.",
        )
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            "The run's configuration cannot be read.", f"{path}: {error}"
        ) from None
    changed = list(_differences(before, json.loads(json.dumps(config))))
    if changed:
        raise ConfigError(
            "A run is resumed with the configuration it was started with.",
            "\n".join(f"{path}: {line}" for line in changed[:10]),
            "Give the same options again, or start a new run with another --out.",
        )


def environment(device: str, seed: int) -> dict[str, Any]:
    """Versions, device, git commit of tadpipe, seed."""
    return {
        "tadpipe": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else "",
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def _differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Leaves that differ, as `table.key: was a, now b`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{place}.{key}" if place else key
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{place} was {before!r}, now {now!r}"


def _git_commit() -> str | None:
    """The commit of the checkout tadpipe runs from; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
