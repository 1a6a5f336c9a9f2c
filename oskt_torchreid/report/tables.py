"""Results as a table, for the terminal and for Markdown."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..files import atomic
from .results import Row

HEADERS = ("network", "kind", "params", "FLOPs", "mAP before", "rank-1 before", "mAP", "rank-1", "epochs", "seconds")
_ALIGN = ("left", "left", *["right"] * (len(HEADERS) - 2))
_NONE = "-"


def text_table(rows: Sequence[Row]) -> str:
    """Table for the terminal; 'before' is before fine-tuning, mAP and rank-1 are in %."""
    return _table(rows, "simple")


def markdown_table(rows: Sequence[Row]) -> str:
    """The same table in Markdown."""
    return _table(rows, "github")


def write_markdown(path: str | Path, rows: Sequence[Row], title: str, notes: Sequence[str] = ()) -> None:
    """Writes title, table and notes (one paragraph each) as a Markdown file, atomically."""
    text = "\n\n".join([f"# {title}", markdown_table(rows), *notes]) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def human_count(count: int) -> str:
    """Three digits and a unit: 2,193,616 -> '2.19 M'."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * 0.9995:
            return f"{count / size:#.3g} {unit}".replace(". ", " ")
    return str(count)


def _table(rows: Sequence[Row], style: str) -> str:
    # Everything is formatted here: tabulate would turn '2.10' into '2.1'.
    cells = [_cells(row) for row in rows]
    return tabulate(cells, headers=HEADERS, tablefmt=style, colalign=_ALIGN if cells else None, disable_numparse=True)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.kind,
        human_count(row.params),
        human_count(row.flops),
        _percent(row.map_before),
        _percent(row.rank1_before),
        _percent(row.map_after),
        _percent(row.rank1_after),
        str(row.epochs),
        _NONE if row.seconds is None else f"{row.seconds:.0f}",
    )


def _percent(fraction: float | None) -> str:
    return _NONE if fraction is None else f"{100 * fraction:.1f}"
