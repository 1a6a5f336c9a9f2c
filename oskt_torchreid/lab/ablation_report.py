"""The contribution of the terms of VKD's loss: students with single terms left out, over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..config import Config
from ..files import atomic, write_json
from ..report.protocols import INTERPOLATED_NAME, SetRow
from .measurements import Spread

FORMAT_VERSION = 1
JSON_NAME, MARKDOWN_NAME = "ablation.json", "ablation.md"
WHOLE = "all terms"


@dataclass(frozen=True)
class TermMeasurement:
    """One student.

    Attributes:
        term: the one left out, or `WHOLE`.
        seed: of its training.
        row: the numbers.
    """

    term: str
    seed: int
    row: SetRow


@dataclass(frozen=True)
class ViewsMeasurement:
    """One student of other numbers of views.

    Attributes:
        teacher_views: frames of a set that the teacher sees while it teaches; 0: without distillation.
        student_views: of those, how many the student sees.
        seed: of its training.
        row: the numbers.
    """

    teacher_views: int
    student_views: int
    seed: int
    row: SetRow


def ablation_table(teacher: SetRow, measurements: Sequence[TermMeasurement]) -> str:
    """Markdown: mAP in %, mean and standard deviation over seeds, and the difference to all terms, pair by pair."""
    protocols = list(teacher.protocols)
    rows = [("teacher", *(cell for name in protocols for cell in (f"{_percent(teacher, name):.1f}", "")))]
    for term in dict.fromkeys(m.term for m in measurements):
        cells = []
        for name in protocols:
            cells.append(_spread(measurements, term, name).percent())
            cells.append("" if term == WHOLE else _difference(measurements, term, name))
        rows.append((term if term == WHOLE else f"without {term}", *cells))
    headers = ("student", *(header for name in protocols for header in (f"{name} mAP", "difference")))
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)


def views_table(measurements: Sequence[ViewsMeasurement], protocol: str) -> str:
    """Markdown: mAP in % by the teacher's views (rows) and the student's (columns), mean and standard deviation."""
    columns = sorted({m.student_views for m in measurements})
    rows = []
    for wide in sorted({m.teacher_views for m in measurements}):
        found = [[m for m in measurements if (m.teacher_views, m.student_views) == (wide, few)] for few in columns]
        cells = [Spread.of(m.row.mean_precisions[protocol] for m in each).percent() for each in found]
        rows.append((str(wide) if wide else "without distillation", *cells))
    headers = ("teacher's views", *(f"student's: {few}" for few in columns))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=["right"] * len(headers))


def write_ablation(
    folder: Path,
    teacher: SetRow,
    measurements: Sequence[TermMeasurement],
    config: Config,
    views: Sequence[ViewsMeasurement] = (),
) -> None:
    """Writes `ablation.json` and `ablation.md`, each whole or not at all.

    Args:
        folder: where to.
        teacher: of all students.
        measurements: of every term and seed.
        config: whole tree of the run with all terms.
        views: of other numbers of views.
    """
    write_json(
        folder / JSON_NAME,
        {
            "format_version": FORMAT_VERSION,
            "teacher": dataclasses.asdict(teacher),
            "mAP": _summary(measurements, list(teacher.protocols)),
            "measurements": [dataclasses.asdict(measurement) for measurement in measurements],
            "views": [dataclasses.asdict(measurement) for measurement in views],
        },
    )
    paragraphs = (*_paragraphs(teacher, measurements, config), *_views_paragraphs(teacher, views))
    text = "\n\n".join(paragraphs) + "\n"
    with atomic(folder / MARKDOWN_NAME) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _paragraphs(teacher: SetRow, measurements: Sequence[TermMeasurement], config: Config) -> Iterator[str]:
    node = config.vkd
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(m.seed for m in measurements))
    yield f"# Terms of VKD: {config.model.name} on {', '.join(config.data.targets)}"
    yield ablation_table(teacher, measurements)
    yield (
        "mAP (interpolated) in %, on identities that no network was trained on; mean ± standard deviation over the "
        f"training seeds {seeds} of the student, all under one teacher. A difference is the mean over pairs of "
        "students of one seed, ± its standard error. V: a tracklet, I: its first frame; queries come first."
    )
    yield (
        f"The teacher saw {node.num_views} views of a set ({node.strategy}), students {node.num_student_views}, for "
        f"{node.student_stage.max_epoch} epochs; alpha {node.alpha:g}, beta {node.beta:g}, temperature "
        f"{node.temperature:g}. 'Restart' is that of last stage and head: without it, both follow the teacher."
    )


def _views_paragraphs(teacher: SetRow, views: Sequence[ViewsMeasurement]) -> Iterator[str]:
    if not views:
        return
    yield "## Views"
    for protocol in teacher.protocols:
        yield f"{protocol} mAP in % of students, by the frames of a set that both see in the student's training:"
        yield views_table(views, protocol)


def _summary(measurements: Sequence[TermMeasurement], protocols: Sequence[str]) -> Mapping[str, Any]:
    terms = dict.fromkeys(m.term for m in measurements)
    return {term: {name: dataclasses.asdict(_spread(measurements, term, name)) for name in protocols} for term in terms}


def _spread(measurements: Sequence[TermMeasurement], term: str, protocol: str) -> Spread:
    return Spread.of(_percent(m.row, protocol) / 100 for m in measurements if m.term == term)


def _difference(measurements: Sequence[TermMeasurement], term: str, protocol: str) -> str:
    """Mean difference to all terms in points, over pairs of one seed, with its standard error."""
    whole = {m.seed: _percent(m.row, protocol) for m in measurements if m.term == WHOLE}
    differences = Spread.of(
        _percent(m.row, protocol) - whole[m.seed] for m in measurements if m.term == term and m.seed in whole
    )
    error = f" ± {differences.deviation / differences.count**0.5:.1f}" if differences.count > 1 else ""
    return f"{differences.mean:+.1f}{error}"


def _percent(row: SetRow, protocol: str) -> float:
    return 100 * row.protocols[protocol][INTERPOLATED_NAME]
