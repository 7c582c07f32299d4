"""What `tadpipe validate` says: findings by kind, lengths of the actions, settings that fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tadpipe.pipeline.text_table import prose
from tadpipe.pipeline.validate_findings import KINDS, SEVERITIES, Finding, Severity
from tadpipe.pipeline.validate_lengths import Lengths, counts_by_octave, histogram
from tadpipe.pipeline.video_files import printable

USAGE_EXIT = 2
PLACES = 10  # of a kind that are printed, unless asked otherwise


@dataclass(frozen=True)
class ValidationReport:
    """Everything that was found, and what was looked at."""

    findings: tuple[Finding, ...]
    checked: Mapping[str, str]  # file, folder, store or preset -> how much of it
    measured: str  # the subset whose actions are measured; "" = all videos
    lengths: Lengths | None
    suggestion: Mapping[str, Any] | None  # preset, stride, `--set` values, whether it is needed
    seconds: float

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """2 if there is any error; warnings and notes stop nothing."""
        return USAGE_EXIT if self.count("error") else 0

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lengths = self.lengths
        return {
            "ok": not self.count("error"),
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "checked": dict(self.checked),
            "findings": [finding.to_mapping() for finding in self._sorted()],
            "lengths": None
            if lengths is None
            else {
                "subset": self.measured,
                "actions": len(lengths.sec),
                "steps_per_sec": lengths.steps_per_sec,
                "histogram": counts_by_octave(lengths.sec),
            },
            "suggestion": None if self.suggestion is None else dict(self.suggestion),
            "seconds": self.seconds,
        }

    def text(self, width: int, *, limit: int = PLACES) -> str:
        """For a terminal of `width` columns; of each kind `limit` places, 0 = all."""
        lines = [printable(f"{part}: {what}") for part, what in self.checked.items()]
        for severity in SEVERITIES:
            lines += self._of_severity(severity, width, limit)
        lines += self._lengths_text(width)
        counts = ", ".join(_counted(self.count(severity), severity) for severity in SEVERITIES)
        return "\n".join([*lines, "", f"{counts} ({self.seconds:.1f} s)"])

    def _sorted(self) -> list[Finding]:
        return sorted(self.findings, key=lambda finding: SEVERITIES.index(finding.severity))

    def _of_severity(self, severity: Severity, width: int, limit: int) -> Iterator[str]:
        kinds: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.severity == severity:
                kinds.setdefault(finding.kind, []).append(finding)
        for kind, findings in kinds.items():
            yield ""
            yield f"{severity.upper()}  {KINDS[kind].title} [{kind}]: {len(findings)}"
            shown = findings[:limit] if limit else findings
            yield from (f"  {_place(finding)}" for finding in shown)
            if len(shown) < len(findings):
                yield f"  ... and {len(findings) - len(shown)} more (--limit 0 shows all)"
            for text in dict.fromkeys([KINDS[kind].meaning, *(f"-> {f.todo}" for f in shown)]):
                yield from (f"    {line}" for line in prose(printable(text), width - 4))

    def _lengths_text(self, width: int) -> Iterator[str]:
        if self.lengths is None or not self.lengths.sec:
            return
        yield ""
        of = f" of '{self.measured}'" if self.measured else ""
        yield printable(f"Lengths of {len(self.lengths.sec)} actions{of}")
        yield from (f"  {line}" for line in histogram(self.lengths, width - 2))
        made = self.suggestion
        if made is not None:
            yield ""
            how = "Settings that fit" if made["is_needed"] else "Settings by these lengths alone"
            yield f"{how} (preset {made['preset']}, features at stride {made['stride']}):"
            yield from (f"  --set {key}={_toml(value)}" for key, value in made["set"].items())


def _place(finding: Finding) -> str:
    parts = (finding.file, finding.place, finding.message)
    return ": ".join(printable(part) for part in parts if part)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}"


def _toml(value: int | Sequence[Sequence[float]]) -> str:
    """A value that can be pasted behind --set in a shell."""
    text = str(value)
    return f"'{text}'" if " " in text or "[" in text else text
