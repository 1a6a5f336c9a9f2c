"""The numbers of networks of sets: a row per network, protocol by protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files import atomic, write_json
from .results import Row, read_versioned
from .tables import human_count

FORMAT_VERSION = 1
INTERPOLATED, TRAPEZOID = "mAP_interpolated", "mAP_trapezoid"


@dataclass(frozen=True)
class SetRow:
    """One network.

    Attributes:
        name: how the run calls it.
        kind: teacher or student.
        params: parameters without the classifier.
        flops: multiply-adds of one frame.
        views: frames of a set that it was trained on.
        protocols: per protocol ``mAP_interpolated``, ``mAP_trapezoid``, ``rank1``, ``rank5``, ... as fractions.
        epochs: behind the numbers.
        seconds: of its training.
    """

    name: str
    kind: str
    params: int
    flops: int
    views: int
    protocols: Mapping[str, Mapping[str, float]]
    epochs: int
    seconds: float

    def as_row(self) -> Row:
        """The row of the first protocol."""
        first = next(iter(self.protocols.values()))
        numbers = {"map_after": first[INTERPOLATED], "rank1_after": first["rank1"]}
        sizes = {"params": self.params, "flops": self.flops}
        return Row(self.name, self.kind, **sizes, **numbers, epochs=self.epochs, seconds=self.seconds)

    def summary(self) -> str:
        """``V2V mAP 71.2, I2V mAP 60.3``, in %."""
        return ", ".join(f"{name} mAP {100 * values[INTERPOLATED]:.1f}" for name, values in self.protocols.items())


def set_table(rows: Sequence[SetRow], style: str = "github") -> str:
    """A table in %: interpolated mAP (and the trapezoid one in brackets) and rank-1 of every protocol."""
    names = list(rows[0].protocols) if rows else []
    headers = [
        "network",
        "params",
        "FLOPs",
        "views",
        *(f"{name} {what}" for name in names for what in ("mAP", "rank-1")),
    ]
    cells = []
    for row in rows:
        numbers = []
        for values in row.protocols.values():
            numbers += [
                f"{100 * values[INTERPOLATED]:.1f} ({100 * values[TRAPEZOID]:.1f})",
                f"{100 * values['rank1']:.1f}",
            ]
        counts = (human_count(row.params), human_count(row.flops), str(row.views))
        cells.append((row.name, *counts, *numbers, str(row.epochs), f"{row.seconds:.0f}"))
    align = ("left", *["right"] * (len(headers) + 1))
    headers += ["epochs", "seconds"]
    return tabulate(cells, headers, tablefmt=style, colalign=align if cells else None, disable_numparse=True)


def read_set_rows(path: str | Path) -> list[SetRow]:
    """Reads the rows of a ``results.json`` that ``write_set_report`` wrote.

    Raises:
        ConfigError: missing, damaged, of another format version, or with rows of other fields.
    """
    return read_versioned(path, FORMAT_VERSION, _rows, "a run of engine 'vkd'")


def _rows(content: Mapping[str, Any]) -> list[SetRow]:
    return [SetRow(**row) for row in content["rows"]]


def write_set_report(folder: Path, rows: Sequence[SetRow], config: Any, facts: Mapping[str, Any]) -> None:
    """Writes ``results.json`` and ``results.md``, each whole or not at all."""
    content = {
        "format_version": FORMAT_VERSION,
        "facts": dict(facts),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_json(folder / "results.json", content)
    node = config.vkd
    notes = [
        f"# {config.model.name} on {', '.join(config.data.targets)}",
        set_table(rows),
        "mAP (in brackets with the trapezoid average precision) and rank-1 in %, on identities that no network was "
        "trained on, by cosine distance. V: a tracklet, I: its first frame; queries come first. Parameters and FLOPs "
        "(multiply-adds of one frame) leave out the classifier; seconds are those of training.",
        f"Students saw {node.num_student_views} of the {node.num_views} views of a set that their teacher did "
        f"({node.strategy}); alpha {node.alpha:g}, beta {node.beta:g}, temperature {node.temperature:g}.",
    ]
    with atomic(folder / "results.md") as temporary:
        temporary.write_text("\n\n".join(notes) + "\n", encoding="utf-8")
