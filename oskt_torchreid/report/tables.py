"""Results as a table, for the terminal and for Markdown."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..files import atomic
from .results import Row

HEADERS = ("network", "kind", "params", "FLOPs", "mAP before", "rank-1 before", "mAP", "rank-1", "epochs", "seconds")
INP_HEADER = "mINP"
RERANKED_HEADERS = ("mAP re-ranked", "rank-1 re-ranked")
_NONE = "-"


def text_table(rows: Sequence[Row]) -> str:
    """Table for the terminal, one for each of several targets; mAP and rank-1 in %, 'before' is before fine-tuning."""
    return _tables(rows, "simple")


def markdown_table(rows: Sequence[Row]) -> str:
    """The same in Markdown."""
    return _tables(rows, "github")


def write_markdown(path: str | Path, rows: Sequence[Row], title: str, notes: Sequence[str] = ()) -> None:
    """Writes title, table and notes (one paragraph each) as a Markdown file, atomically."""
    text = "\n\n".join([f"# {title}", markdown_table(rows), *notes]) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def human_count(count: int) -> str:
    """Three digits and a unit: 2,193,616 -> '2.19 M'."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * 0.9995:
            return f"{count / size:#.3g} {unit}".replace(". ", " ")
    return str(count)


def _tables(rows: Sequence[Row], style: str) -> str:
    """A table, or of several targets one for each under its name."""
    targets = list(dict.fromkeys(name for row in rows for name in (*row.targets, *row.targets_before)))
    if len(targets) < 2:
        return _table(rows, style)
    return "\n\n".join(f"{name}:\n\n{_table([row.on(name) for row in rows], style)}" for name in targets)


def table_cells(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of the table, as text; numbers are those of the first target."""
    penalised, reranked = any(row.best_inp is not None for row in rows), any(row.reranked for row in rows)
    further = ((INP_HEADER,) if penalised else ()) + (RERANKED_HEADERS if reranked else ())
    headers = (*HEADERS[:-2], *further, *HEADERS[-2:])
    return headers, [_cells(row, penalised, reranked) for row in rows]


def _table(rows: Sequence[Row], style: str) -> str:
    headers, cells = table_cells(rows)  # formatted there: tabulate would turn '2.10' into '2.1'
    align = ("left", "left", *["right"] * (len(headers) - 2)) if cells else None
    return tabulate(cells, headers=headers, tablefmt=style, colalign=align, disable_numparse=True)


def _cells(row: Row, penalised: bool, reranked: bool) -> tuple[str, ...]:
    numbers: tuple[float | None, ...] = (row.map_before, row.rank1_before, row.map_after, row.rank1_after)
    if penalised:
        numbers += (row.best_inp,)
    if reranked:
        numbers += (row.reranked.get("mAP"), row.reranked.get("rank1"))
    return (
        row.name,
        row.kind,
        human_count(row.params),
        human_count(row.flops),
        *map(_percent, numbers),
        str(row.epochs),
        _NONE if row.seconds is None else f"{row.seconds:.0f}",
    )


def _percent(fraction: float | None) -> str:
    return _NONE if fraction is None else f"{100 * fraction:.1f}"
