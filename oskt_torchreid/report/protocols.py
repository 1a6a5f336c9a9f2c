"""The numbers of networks of sets: a row per network, protocol by protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..config import Config
from ..files import atomic, write_json
from .results import Row, read_versioned
from .set_plots import Bar, protocol_bars
from .tables import human_count

FORMAT_VERSION = 1
INTERPOLATED_NAME, TRAPEZOID_NAME, INP_NAME = "mAP_interpolated", "mAP_trapezoid", "mINP"
_CONTROLS = (
    "Points of mAP that students are above their controls. A student without distillation begins as the student does "
    "and learns from the same sets for as many epochs, from labels alone. A teacher that is trained on keeps all its "
    "weights, and its own views, for as many epochs. These are differences of one training seed; "
    "`oskt bench vkd-controls` measures several."
)
_INP = "mINP, in %: the number of a query's matches as a share of the place of the last one, mean over queries."


@dataclass(frozen=True)
class SetRow:
    """One network.

    Attributes:
        name: how the run calls it.
        kind: teacher, student or control.
        params: parameters without the classifier.
        flops: multiply-adds of one frame.
        views: frames of a set that it was trained on.
        protocols: per protocol `mAP_interpolated`, `mAP_trapezoid`, `rank1`, `rank5`, ... as fractions.
        epochs: behind the numbers.
        seconds: of its training.
        targets: the protocols' numbers of every target; `protocols` are those of the first.
        beside: of a control: name of the student that it is measured against.
    """

    name: str
    kind: str
    params: int
    flops: int
    views: int
    protocols: Mapping[str, Mapping[str, float]]
    epochs: int
    seconds: float
    targets: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    beside: str = ""

    def as_row(self) -> Row:
        """The row of the first protocol."""
        first = next(iter(self.protocols))
        targets = {name: _plain_names(protocols[first]) for name, protocols in self.targets.items()}
        numbers = _plain_names(self.protocols[first])
        return Row(
            *(self.name, self.kind, self.params, self.flops),
            map_after=numbers["mAP"],
            rank1_after=numbers["rank1"],
            epochs=self.epochs,
            seconds=self.seconds,
            targets=targets,
        )

    def on(self, target: str) -> SetRow:
        """The row with the numbers of one target only."""
        return dataclasses.replace(self, protocols=self.targets[target], targets={target: self.targets[target]})

    @property
    def mean_precisions(self) -> dict[str, float]:
        """Interpolated mAP of every protocol, as fractions."""
        return {name: values[INTERPOLATED_NAME] for name, values in self.protocols.items()}

    def summary(self) -> str:
        """`V2V mAP 71.2, I2V mAP 60.3`, in %."""
        return ", ".join(f"{name} mAP {100 * value:.1f}" for name, value in self.mean_precisions.items())


def _plain_names(numbers: Mapping[str, float]) -> dict[str, float]:
    """`mAP` for the interpolated one, which every report shows first."""
    return {
        name.replace(INTERPOLATED_NAME, "mAP"): value for name, value in numbers.items() if TRAPEZOID_NAME not in name
    }


def set_table(rows: Sequence[SetRow], style: str = "github") -> str:
    """A table in %: interpolated mAP (and the trapezoid one in brackets) and rank-1 of every protocol.

    If there are several targets, each has a table under its name; re-ranked numbers have their own columns.
    """
    targets = list(rows[0].targets) if rows else []
    if len(targets) < 2:
        return _table(rows, style)
    return "\n\n".join(f"{name}:\n\n{_table([row.on(name) for row in rows], style)}" for name in targets)


def _table(rows: Sequence[SetRow], style: str) -> str:
    numbers = {name: _percents(values) for name, values in rows[0].protocols.items()} if rows else {}
    columns = [f"{name} {what}" for name, percents in numbers.items() for what in percents]
    headers = ["network", "params", "FLOPs", "views", *columns, "epochs", "seconds"]
    cells = []
    for row in rows:
        measured = [text for values in row.protocols.values() for text in _percents(values).values()]
        counts = (human_count(row.params), human_count(row.flops), str(row.views))
        cells.append((row.name, *counts, *measured, str(row.epochs), f"{row.seconds:.0f}"))
    align = ("left", *["right"] * (len(headers) - 1)) if cells else None
    return tabulate(cells, headers, tablefmt=style, colalign=align, disable_numparse=True)


def inp_table(rows: Sequence[SetRow], style: str = "github") -> str:
    """mINP in % of every protocol; empty where it was not measured."""
    if not any(INP_NAME in values for row in rows for values in row.protocols.values()):
        return ""
    headers = ["network", *(f"{name} {INP_NAME}" for name in rows[0].protocols)]
    cells = [
        (
            row.name,
            *(f"{100 * values[INP_NAME]:.1f}" if INP_NAME in values else "-" for values in row.protocols.values()),
        )
        for row in rows
    ]
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(cells, headers, tablefmt=style, colalign=align, disable_numparse=True)


def _percents(values: Mapping[str, float]) -> dict[str, str]:
    """Cells of one protocol by the words of their columns."""
    cells = {}
    for prefix, words in (("", ""), ("reranked_", " re-ranked")):
        if f"{prefix}{INTERPOLATED_NAME}" in values:
            average, trapezoid = values[f"{prefix}{INTERPOLATED_NAME}"], values[f"{prefix}{TRAPEZOID_NAME}"]
            cells[f"mAP{words}"] = f"{100 * average:.1f} ({100 * trapezoid:.1f})"
            cells[f"rank-1{words}"] = f"{100 * values[f'{prefix}rank1']:.1f}"
    return cells


def gains(rows: Sequence[SetRow]) -> list[tuple[SetRow, SetRow, dict[str, float]]]:
    """Every control, the student beside it, and how much higher the student's mAP is in every protocol."""
    students = {row.name: row for row in rows if row.kind == "student"}
    pairs = [(row, students[row.beside]) for row in rows if row.beside in students]
    return [
        (control, student, {name: value - control.mean_precisions[name] for name, value in own.items()})
        for control, student in pairs
        for own in (student.mean_precisions,)
    ]


def gain_table(rows: Sequence[SetRow], style: str = "github") -> str:
    """How far students are above their controls, in points of interpolated mAP; empty without controls."""
    found = gains(rows)
    if not found:
        return ""
    cells = [
        (f"{student.name} - {control.name}", *(f"{100 * gain:+.1f}" for gain in gained.values()))
        for control, student, gained in found
    ]
    headers = ["difference", *(f"{name} mAP" for name in found[0][2])]
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(cells, headers, tablefmt=style, colalign=align, disable_numparse=True)


def run_bars(rows: Sequence[SetRow]) -> dict[str, dict[str, Bar]]:
    """Bars of every network; those of controls say how far the student is above them."""
    notes = {control.name: gained for control, _, gained in gains(rows)}
    bars = {}
    for row in rows:
        gained = notes.get(row.name, {})
        bars[row.name] = {
            name: Bar(100 * value, note=f"student {100 * gained[name]:+.1f}" if gained else "")
            for name, value in row.mean_precisions.items()
        }
    return bars


def read_set_rows(path: str | Path) -> list[SetRow]:
    """Reads the rows of a `results.json` that `write_set_report` wrote.

    Raises:
        ConfigError: missing, damaged, of another format version, or with rows of other fields.
    """
    return read_versioned(path, FORMAT_VERSION, _rows, "a run of engine 'vkd'")


def _rows(content: Mapping[str, Any]) -> list[SetRow]:
    return [SetRow(**row) for row in content["rows"]]


def write_set_report(folder: Path, rows: Sequence[SetRow], config: Config, facts: Mapping[str, Any]) -> None:
    """Writes `results.json` and `results.md`, with controls also `protocols.png`, each whole or not at all."""
    content = {
        "format_version": FORMAT_VERSION,
        "facts": dict(facts),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_json(folder / "results.json", content)
    node, title = config.vkd, f"{config.model.name} on {', '.join(config.data.targets)}"
    measured, penalties = gain_table(rows), inp_table(rows)
    notes = [
        f"# {title}",
        set_table(rows),
        *([f"{measured}\n\n{_CONTROLS}"] if measured else []),
        *([f"{penalties}\n\n{_INP}"] if penalties else []),
        "mAP (in brackets with the trapezoid average precision) and rank-1 in %, on identities that no network was "
        "trained on, by cosine distance. V: a tracklet, I: its first frame; queries come first. Parameters and FLOPs "
        "(multiply-adds of one frame) leave out the classifier; seconds are those of training.",
        f"Students saw {node.num_student_views} of the {node.num_views} views of a set that their teacher did "
        f"({node.strategy}); alpha {node.alpha:g}, beta {node.beta:g}, temperature {node.temperature:g}.",
    ]
    if measured:
        protocol_bars(run_bars(rows), folder / "protocols.png", title)
    with atomic(folder / "results.md") as temporary:
        temporary.write_text("\n\n".join(notes) + "\n", encoding="utf-8")
