"""Compare tadpipe with stored official numbers: python -m tests.parity CASE_DIR... [--json].

Exit status 0 only if every stored array of every case was compared or read as an input and
everything compared is within its tolerance.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import click
import torch

from tests.parity.case import Case
from tests.parity.kinds import run


@click.command(help=__doc__)
@click.argument("cases", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(cases: tuple[Path, ...], as_json: bool) -> None:
    torch.set_num_threads(1)
    reports = [run_case(path) for path in cases]
    if as_json:
        click.echo(json.dumps(reports, indent=1, default=float))
    else:
        for report in reports:
            show(report)
        good = sum(bool(report["ok"]) for report in reports)
        click.echo(f"{good} of {len(reports)} cases ok")
    sys.exit(0 if all(report["ok"] for report in reports) else 1)


def run_case(path: Path) -> dict[str, object]:
    """Run one case; an exception inside it is a failure of that case only."""
    try:
        case = Case.open(path)
        run(case)
    except Exception:
        return {"case": str(path), "ok": False, "error": traceback.format_exc(), "arrays": []}
    return {
        "case": str(path),
        "ok": case.ok(),
        "skipped": case.skipped(),
        "arrays": [comparison._asdict() for comparison in case.comparisons],
    }


def show(report: dict[str, object]) -> None:
    click.echo(f"{'ok  ' if report['ok'] else 'FAIL'} {report['case']}")
    if "error" in report:
        click.echo(report["error"])
    for row in report["arrays"]:  # type: ignore[attr-defined]
        state = "ok" if row["ok"] else "FAIL"
        click.echo(
            f"    {state:4} {row['name']:<48} abs {row['max_abs']:.3g}  rel {row['max_rel']:.3g}"
            f"  ({row['tolerance']}) {row['note']}"
        )
    for name in report.get("skipped", ()):  # type: ignore[attr-defined]
        click.echo(f"    FAIL {name:<48} skipped")


if __name__ == "__main__":
    main()
