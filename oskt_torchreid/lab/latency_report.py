"""Latency of networks as a table and as a picture of latency against mAP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from tabulate import tabulate

from ..deploy import Latency
from ..errors import ConfigError
from ..files import atomic, write_json
from ..report.plots import BLACK, BLUE, GREEN, Style, short_name
from ..report.tables import human_count

STOCK = "stock"
# Labels of neighbours have different heights, as shares of the axis: networks of nearly equal latency stay readable.
_NAME_HEIGHTS, _STOCK_HEIGHTS = (0.02, 0.26), (0.48, 0.64)
_STYLES = {"teacher": (BLACK, "*", 13), "student": (GREEN, "o", 8)}


@dataclass(frozen=True)
class LatencyRow:
    """One network.

    Attributes:
        name: as the run or torchreid calls it.
        kind: `teacher`, `student` or `stock`.
        params: parameters without the classifier.
        flops: multiply-adds of one image.
        file_size: bytes of the exported network; `None`: it was not exported.
        mean_ap: mAP as a fraction; `None`: not known.
        seen: a measurement per setting.
    """

    name: str
    kind: str
    params: int
    flops: int
    file_size: int | None
    mean_ap: float | None
    seen: tuple[Latency, ...]


def latency_table(rows: Sequence[LatencyRow], style: str = "simple") -> str:
    """A table with a line per network and backend: median and 95th percentile, in milliseconds, of each setting.

    Args:
        rows: measured with the same settings, in the same order.
        style: of tabulate; `github` for Markdown.
    """
    backends = list(dict.fromkeys(seen.backend for seen in rows[0].seen))
    ways = list(dict.fromkeys((seen.batch, seen.threads) for seen in rows[0].seen))
    lines = []
    for row in rows:
        for backend in backends:
            found = {(seen.batch, seen.threads): seen for seen in row.seen if seen.backend == backend}
            cells = _network_cells(row) if backend == backends[0] or style == "github" else [""] * 5
            lines.append((*cells, backend, *(_cell(found[way]) for way in ways)))
    columns = [f"{batch} image{'s' * (batch > 1)}, {count} thread{'s' * (count > 1)}" for batch, count in ways]
    headers = ("network", "params", "FLOPs", "file", "mAP", "backend", *columns)
    alignment = ("left", *["right"] * 4, "left", *["right"] * len(columns))
    return tabulate(lines, headers=headers, tablefmt=style, colalign=alignment, disable_numparse=True)


def write_latency(folder: str | Path, rows: Sequence[LatencyRow], title: str) -> None:
    """Writes `latency.json`, `latency.md` and `latency_vs_map.png` into a folder, each whole or not at all."""
    folder = Path(folder)
    write_json(folder / "latency.json", {"rows": [dataclasses.asdict(row) for row in rows]})
    notes = (
        "Milliseconds of a batch, median / 95th percentile. Parameters and FLOPs (multiply-adds of one image) are "
        "without the classifier, the file is the exported one, mAP (%) is the run's."
    )
    with atomic(folder / "latency.md") as temporary:
        temporary.write_text(f"# {title}\n\n{latency_table(rows, 'github')}\n\n{notes}\n", encoding="utf-8")
    latency_vs_map(rows, folder / "latency_vs_map.png", title)


def latency_vs_map(rows: Sequence[LatencyRow], path: str | Path, title: str = "") -> None:
    """Draws latency (log axis) against mAP in % and writes a PNG, atomically.

    A panel per backend, of the first setting that was measured with it. Stock models, whose mAP a run does not know,
    are lines at their latency.

    Args:
        rows: of `measure_run`.
        path: PNG file to write.
        title: of the picture; empty: none.

    Raises:
        ConfigError: no row has an mAP.
    """
    if all(row.mean_ap is None for row in rows):
        raise ConfigError("no network has an mAP; give the folder of a run that has evaluated its networks")
    backends = list(dict.fromkeys(seen.backend for seen in rows[0].seen))
    figure = Figure(figsize=(1.2 + 4.0 * len(backends), 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without changing pyplot's state
    panels = figure.subplots(1, len(backends), sharey=True, squeeze=False)[0]
    for axes, backend in zip(panels, backends, strict=True):
        _draw(axes, [(row, next(seen for seen in row.seen if seen.backend == backend)) for row in rows])
        axes.set_title(backend, fontsize=10)
    panels[0].set_ylabel("mAP (%)")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: Axes, measured: Sequence[tuple[LatencyRow, Latency]]) -> None:
    """One panel: networks of the run by latency and mAP, stock models by latency."""
    for kind, (color, marker, size) in _STYLES.items():
        points = sorted(
            (seen.median_ms, 100 * row.mean_ap, short_name(row.name))
            for row, seen in measured
            if row.kind == kind and row.mean_ap is not None
        )
        if points:
            x, y, names = zip(*points, strict=True)
            axes.plot(x, y, marker, color=color, markersize=size, linestyle="none", label=kind, zorder=3)
            for number, (place, name) in enumerate(zip(x, names, strict=True)):
                axes.axvline(place, color=color, linewidth=0.5, linestyle=":", alpha=0.6, zorder=0)
                _upright(axes, place, name, color, _NAME_HEIGHTS[number % 2])
    stock = sorted((seen.median_ms, row.name) for row, seen in measured if row.kind == STOCK)
    for number, (place, name) in enumerate(stock):
        axes.axvline(place, color=BLUE, linewidth=0.8, linestyle=":", zorder=1, label="" if number else STOCK)
        _upright(axes, place, name, BLUE, _STOCK_HEIGHTS[number % 2])
    _dress(axes, measured)


def _upright(axes: Axes, place: float, name: str, color: str, height: float) -> None:
    where: Style = {"textcoords": ("offset points", "axes fraction"), "rotation": 90, "fontsize": 7, "color": color}
    axes.annotate(name, (place, 0), xytext=(-3, height), ha="right", va="bottom", **where)


def _dress(axes: Axes, measured: Sequence[tuple[LatencyRow, Latency]]) -> None:
    values = [100 * row.mean_ap for row, _ in measured if row.mean_ap is not None]
    times = [seen.median_ms for _, seen in measured]
    first = measured[0][1]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.3, max(times) * 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(min(0.0, *values), min(105.0, max(values) + 10))
    axes.set_xlabel(f"ms for {first.batch} image(s), {first.threads} thread(s) (log scale)", fontsize=9)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _network_cells(row: LatencyRow) -> tuple[str, ...]:
    file_size = "-" if row.file_size is None else f"{row.file_size / 1e6:.2f} MB"
    mean_ap = "-" if row.mean_ap is None else f"{100 * row.mean_ap:.1f}"
    return row.name, human_count(row.params), human_count(row.flops), file_size, mean_ap


def _cell(seen: Latency) -> str:
    return f"{seen.median_ms:.3g} / {seen.p95_ms:.3g}"
