"""`--help` and `list` load nothing heavy, so that they answer at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "pandas", "zarr", "dask", "h5py", "decord", "av", "matplotlib", "tqdm"}
PROBE = """
import json, sys
from tadpipe.cli.main import run
code = run({arguments!r})
print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["extract", "--help"],
        ["train-detector", "--help"],
        ["detect", "--help"],
        ["evaluate", "--help"],
        ["store", "--help"],
        ["checkpoint", "import", "--help"],
        ["demo", "--help"],
        ["compare", "--help"],
        ["list", "detectors"],
        ["list", "backbones"],
        ["list", "datasets"],
        ["list", "presets"],
        ["list", "recipes"],
    ],
    ids=" ".join,
)
def test_command_loads_nothing_heavy(arguments: list[str]) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip()
    assert HEAVY.isdisjoint(json.loads(answer.stderr.splitlines()[-1]))


def test_help_loads_no_third_party_module_but_click() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=["--help"])],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(answer.stderr.splitlines()[-1]))
    bare = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    before = {name.split(".")[0] for name in json.loads(bare.stdout)}
    third_party = loaded - before - set(sys.stdlib_module_names)
    assert third_party == {"click", "tadpipe"}


def test_import_of_the_package_loads_nothing_heavy() -> None:
    code = "import json, sys, tadpipe; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert HEAVY.isdisjoint(json.loads(answer.stdout))
