"""What the jobs of a comparison are made of: ordinary runs with a few changed keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import Config, merged
from ...runs.oskt.specification import StudentSpec
from ..measurements import CHAIN_METHOD

TEACHER, RESULTS_NAME = "teacher", "results.json"
CHAIN_NAME, TEACHER_PLACE = "chain.safetensors", "teacher/teacher.pth"

Changes = dict[str, Any]
Rates = Mapping[str, Mapping[str, float]]
"""Learning rate by scenario (teacher, refine, finetune, passes, trained-on, transfer) and method."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        scenario: finetune, passes, transfer-16, ablation:NAME or tuning.
        folder: below the comparison's own.
        changes: dotted keys of the configuration and their values.
        labels: further entries for the report: data seed, seed, rate.
    """

    scenario: str
    folder: str
    changes: Changes
    labels: dict[str, Any] = field(default_factory=dict)

    def config(self, config: Config) -> Config:
        """The configuration of this run."""
        folder = str(Path(config.data.save_dir) / self.folder)
        return merged(config, {**self.changes, "data.save_dir": folder, "page": False})


def student_entries(methods: Sequence[str], widths: Sequence[float]) -> list[str]:
    """Entries of `oskt.students`; the chain's own are named only by their width."""
    return [f"width={w:g}" if m == CHAIN_METHOD else f"{m}:width={w:g}" for w in widths for m in methods]


def split_name(name: str) -> tuple[str, float] | None:
    """Method and width of a row's name; `None` for the teacher and for files."""
    spec = StudentSpec.parse(name)
    return (spec.method or CHAIN_METHOD, float(spec.value)) if spec.way == "width" else None


def tuned(rates: Rates, scenario: str) -> Changes:
    """Keys that set the chosen rates of a scenario."""
    chosen = rates[scenario]
    changes = {f"oskt.control_lr.{name}": rate for name, rate in chosen.items() if name != CHAIN_METHOD}
    return {**changes, "oskt.finetune.lr": chosen[CHAIN_METHOD]} if CHAIN_METHOD in chosen else changes
