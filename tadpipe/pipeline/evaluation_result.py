"""The result of an evaluation: scores, what they were computed from, text and files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tadpipe.config import write_atomically
from tadpipe.errors import Defect
from tadpipe.evaluation.detection_map import DetectionScore
from tadpipe.evaluation.diagnosis import Diagnosis
from tadpipe.evaluation.proposals import ProposalRecall
from tadpipe.pipeline.class_fusion import source_text
from tadpipe.pipeline.error_table import errors_text
from tadpipe.pipeline.score_table import count_text, score_text

EVALUATION_FILE = "eval.json"  # in a run folder
ERRORS_FILE = "errors.json"
TEXT_WIDTH = 120  # of the tables of errors, where no terminal has its own


@dataclass(frozen=True)
class Evaluation:
    """The scores of one evaluation and what they were computed from."""

    scores: Mapping[str, DetectionScore]  # task -> score; the only task is "detection", but EPIC
    subset: str
    detections: str = ""  # files, "" when given as objects
    annotations: str = ""
    dataset: str | None = None
    defects: tuple[Defect, ...] = ()  # of the annotations
    blocked_because: Mapping[str, str] | None = None  # video -> reason, as far as known
    proposals: ProposalRecall | None = None  # AR@AN, when asked for
    has_one_label: bool = False  # class-agnostic detections, and no class scores
    class_scores: Mapping[str, Any] | None = None  # where the labels come from, if from a file
    unscored: tuple[str, ...] = ()  # videos without class scores, whose detections were dropped
    errors: Mapping[str, Diagnosis] | None = None  # task -> diagnosis, when asked for

    @property
    def score(self) -> DetectionScore:
        """The score of detection; of EPIC's three tasks the score of actions."""
        return list(self.scores.values())[-1]

    @property
    def average_map(self) -> float:
        """Mean of mAP over the thresholds, a fraction."""
        return self.score.average_map

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready; fractions, not percent. Several tasks are nested by name."""
        mapping: dict[str, Any] = {
            "detections": self.detections,
            "annotations": self.annotations,
            "dataset": self.dataset,
            "subset": self.subset,
            "class_agnostic": self.has_one_label,
            "class_scores": self.class_scores,
            "unscored": list(self.unscored),
        }
        if len(self.scores) == 1:
            mapping |= self.score.to_mapping()
        else:
            mapping |= {task: score.to_mapping() for task, score in self.scores.items()}
        if self.blocked_because:
            reasons = self.blocked_because
            mapping["blocked_because"] = {v: reasons[v] for v in self.score.blocked if v in reasons}
        if self.proposals is not None:
            mapping["proposals"] = {
                "auc": self.proposals.auc,
                "average_recall": self.proposals.average_recall.tolist(),
                "proposals_per_video": self.proposals.proposals_per_video.tolist(),
            }
        mapping["annotation_defects"] = [str(defect) for defect in self.defects]
        if self.errors is not None:
            mapping["errors"] = self._errors_mapping(self.errors)
        return mapping

    def _errors_mapping(self, errors: Mapping[str, Diagnosis]) -> dict[str, Any]:
        documents = {task: diagnosis.to_mapping() for task, diagnosis in errors.items()}
        return documents if len(documents) > 1 else next(iter(documents.values()))

    def text(self, per_class: bool = False, width: int = TEXT_WIDTH) -> str:
        """The scores as tables for a person, in percent; those of errors are `width` wide."""
        heads = [name for name in (self.dataset, self.subset and f"subset {self.subset}") if name]
        blocks = [
            score_text(
                score,
                ", ".join([*heads, *([task] if len(self.scores) > 1 else [])]),
                per_class=per_class,
                blocked_because=self.blocked_because or {},
            )
            for task, score in self.scores.items()
        ]
        if self.proposals is not None:
            curve = self.proposals
            points = [n for n in (1, 5, 10, 50, 100) if n <= curve.proposals_per_video[-1] + 0.5]
            recalls = "  ".join(f"AR@{n} {100 * curve.at(n):.2f}" for n in points)
            blocks.append(f"proposals: {recalls}  AUC {100 * curve.auc:.2f}")
        if self.has_one_label or self.class_scores is not None:
            blocks.append(source_text(self.class_scores, self.unscored))
        errors = sum(not defect.is_warning for defect in self.defects)
        if errors:
            entries = count_text(errors, "annotation entry", "annotation entries")
            blocks.append(f"{entries} with errors left out")
        if len(self.defects) > errors:
            odd = [str(defect) for defect in self.defects if defect.is_warning]
            oddities = count_text(len(odd), "oddity", "oddities")
            blocks.append(f"{oddities} in the annotations, first: {odd[0]}")
        for task, diagnosis in (self.errors or {}).items():
            head = f"\n{task}" if len(self.scores) > 1 else ""
            blocks.append(f"{head}\n{errors_text(diagnosis, width=width, per_class=per_class)}")
        return "\n".join(blocks)

    def save(self, path: Path) -> None:
        """Write it as JSON; into a folder as `eval.json`, and the errors as `errors.json`."""
        mapping = self.to_mapping()
        if path.is_dir():
            if "errors" in mapping:
                write_atomically(path / ERRORS_FILE, json.dumps(mapping.pop("errors")) + "\n")
            path = path / EVALUATION_FILE
        write_atomically(path, json.dumps(mapping, indent=1) + "\n")
