"""A stored parity case: its arrays, and a record of what was compared and what was only read.

A case is a folder with `case.json`, `io.npz` and weight files. A kind's module takes the case
apart with `read` (inputs) and `check` (stored outputs); whatever is left untouched counts as
skipped, and a skipped array fails the case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file


class Comparison(NamedTuple):
    """One stored array against ours."""

    name: str
    max_abs: float
    max_rel: float
    tolerance: str
    ok: bool
    note: str = ""


@dataclass
class Case:
    """A loaded case and the comparisons made so far."""

    path: Path
    config: dict[str, Any]
    arrays: Mapping[str, np.ndarray]
    touched: set[str] = field(default_factory=set)
    comparisons: list[Comparison] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Case:
        config = json.loads((path / "case.json").read_text(encoding="utf-8"))
        archive = path / "io.npz"
        arrays: dict[str, np.ndarray] = {}
        if archive.exists():
            with np.load(archive, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        return cls(path, config, arrays)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def read(self, name: str) -> np.ndarray:
        """An input of the case."""
        self.touched.add(name)
        return self.arrays[name]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.read(name)))

    def weights(self, file: str = "weights.safetensors") -> dict[str, torch.Tensor]:
        return load_file(self.path / file)

    def check(
        self,
        name: str,
        ours: Any,
        *,
        atol: float = 0.0,
        rtol: float = 0.0,
        where: np.ndarray | None = None,
        label: str = "",
    ) -> None:
        """Compare a stored array with ours: |ours - stored| <= atol + rtol * |stored|.

        Args:
            where: compare only these elements (arrays whose rest is stated to be arbitrary).
            label: printed instead of `name`, when one array is compared several times.
        """
        self.touched.add(name)
        self.compare(label or name, ours, self.arrays[name], atol=atol, rtol=rtol, where=where)

    def compare(
        self,
        name: str,
        ours: Any,
        stored: Any,
        *,
        atol: float = 0.0,
        rtol: float = 0.0,
        where: np.ndarray | None = None,
    ) -> None:
        """Compare two values that need not be arrays of the case."""
        a = ours.detach().cpu().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
        b = np.asarray(stored)
        tolerance = f"atol {atol:g} rtol {rtol:g}" if atol or rtol else "exact"
        if a.shape != b.shape:
            note = f"shape {a.shape}, stored {b.shape}"
            self.comparisons.append(Comparison(name, np.inf, np.inf, tolerance, False, note))
            return
        if where is not None:
            a, b = a[where], b[where]
        if a.dtype.kind in "USO" or b.dtype.kind in "USO":
            same = bool(np.array_equal(a, b))
            self.comparisons.append(Comparison(name, 0.0 if same else np.inf, 0.0, "exact", same))
            return
        a, b = a.astype(np.float64), b.astype(np.float64)
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(equal, 0.0, np.abs(a - b))
        gap = np.where(np.isnan(gap), np.inf, gap)
        ok = bool((gap <= atol + rtol * np.abs(b))[~equal].all())
        largest = float(gap.max(initial=0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(equal, 0.0, gap / np.abs(b))
        self.comparisons.append(
            Comparison(name, largest, float(relative.max(initial=0.0)), tolerance, ok)
        )

    def claim(self, name: str, holds: bool, note: str = "") -> None:
        """Record a statement that must hold (a strict load, a list of names)."""
        self.comparisons.append(
            Comparison(name, 0.0 if holds else np.inf, 0.0, "holds", holds, note)
        )

    def skipped(self) -> list[str]:
        """Arrays nobody read or compared."""
        return sorted(set(self.arrays) - self.touched)

    def ok(self) -> bool:
        return bool(self.comparisons) and all(c.ok for c in self.comparisons) and not self.skipped()


Runner = Callable[[Case], None]
