"""Pictures of a comparison: size against mAP with the spread over seeds, and mAP after every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import ConfigError
from ..files import atomic
from ..report.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Style, size_axis
from .measurements import Measurement

# Okabe and Ito's colours, also distinguished by markers and dashes.
_STYLES = (
    (GREEN, "o", "-"),
    (VERMILION, "X", "--"),
    (BLUE, "s", "--"),
    (ORANGE, "P", "--"),
    (PURPLE, "v", ":"),
    (SKY, "<", ":"),
    (GREY, "D", "-."),
    (BLACK, "^", "-."),
)
_ASIDE = 1.045  # how far apart, as a factor, methods of one size are drawn
_TITLES = {"before": "before any training", "finetune": "equal fine-tuning", "passes": "equal passes"}


def comparison_plot(measurements: Sequence[Measurement], path: str | Path, title: str = "") -> None:
    """Draws parameters (log axis) against mAP in %, a panel for each: before training, equal fine-tuning, equal passes.

    Bars are standard deviations over seeds; methods are next to each other at each size. At equal passes the chain's
    students are those of equal fine-tuning, whose refinement is counted.

    Args:
        measurements: of all scenarios.
        path: PNG file, written atomically.
        title: of the picture; empty: none.

    Raises:
        ConfigError: nothing was measured.
    """
    panels = [panel for panel in _TITLES if _panel(measurements, panel)]
    if not panels:
        raise ConfigError("nothing was measured yet; run the comparison before drawing it")
    figure, axes = _figure(len(panels), title)
    styles = _styles(measurements)
    for panel, panel_axes in zip(panels, axes, strict=True):
        found = _panel(measurements, panel)
        for index, (method, points) in enumerate(found.items()):
            color, marker, line = styles[method]
            sizes, means, deviations = (np.array(column) for column in zip(*points, strict=True))
            sizes = sizes * _ASIDE ** (index - (len(found) - 1) / 2)  # or bars of one size would hide one another
            style: Style = {"color": color, "marker": marker, "markersize": 5, "linestyle": line, "linewidth": 1.2}
            panel_axes.errorbar(sizes, means, deviations, capsize=2, label=method, **style)
        _draw_teacher(panel_axes, measurements)
        size_axis(panel_axes, (size for points in found.values() for size, _, _ in points))
        panel_axes.set_title(_TITLES[panel], fontsize=10)
    _finish(figure, axes, path)


def convergence_plot(measurements: Sequence[Measurement], path: str | Path, title: str = "") -> None:
    """Draws mAP in % after every epoch of training, mean and standard deviation over seeds, a panel per width.

    The chain's students begin after the refinement's epochs, as many passes over the data later; a dotted line marks
    what they are before any fine-tuning. Runs that were evaluated less often than others of their method are left out.

    Args:
        measurements: of all scenarios; those with curves are drawn.
        path: PNG file, written atomically; nothing is written if there is no curve.
        title: of the picture; empty: none.
    """
    widths = sorted({m.width for m in measurements if m.scenario == "passes" and m.row.curve})
    if not widths:
        return
    figure, axes = _figure(len(widths), title)
    styles = _styles(measurements)
    for width, panel in zip(widths, axes, strict=True):
        last = 0
        for method, scenario in _drawn(measurements):
            chosen = [m for m in measurements if (m.scenario, m.method, m.width) == (scenario, method, width)]
            longest = max((len(m.row.curve) for m in chosen if m.row.curve), default=0)
            chosen = [m for m in chosen if m.row.curve and len(m.row.curve) == longest]
            if chosen:
                last = max(last, _draw_curve(panel, chosen, method, styles[method], last))
        _draw_teacher(panel, measurements)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("passes over the training data")
        panel.set_title(f"width {width:g}", fontsize=10)
    _finish(figure, axes, path)


def _drawn(measurements: Sequence[Measurement]) -> Iterator[tuple[str, str]]:
    """Methods at equal passes, then the chain, which is fine-tuned at their end."""
    for method in dict.fromkeys(m.method for m in measurements if m.scenario == "passes"):
        yield method, "passes"
    yield "oskt", "finetune"


def _draw_curve(axes: Axes, chosen: Sequence[Measurement], method: str, style: tuple[str, str, str], last: int) -> int:
    """One method's curve; returns its last epoch. The chain's ends with the others."""
    color, marker, line = style
    epochs = np.array([epoch for epoch, _ in chosen[0].row.curve])
    values = 100 * np.array([[value for _, value in m.row.curve] for m in chosen])
    if method == "oskt":
        begin = max(0, last - int(epochs[-1]))
        start = 100 * np.array([[m.row.map_before] for m in chosen])
        epochs, values = np.array([begin, *(begin + epochs)]), np.hstack([start, values])
        axes.axhline(values[:, 0].mean(), color=color, linestyle=":", linewidth=0.8)
    mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    axes.plot(epochs, mean, color=color, marker=marker, linestyle=line, markersize=4, label=method)
    axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
    return int(epochs[-1])


def _panel(measurements: Sequence[Measurement], panel: str) -> dict[str, list[tuple[float, float, float]]]:
    """Points of each method: parameters, mean and standard deviation of mAP in %, from narrow to wide."""
    scenario = "passes" if panel == "passes" else "finetune"
    chosen = [m for m in measurements if m.scenario == scenario and m.method != "teacher"]
    if panel == "passes" and chosen:
        widths = {m.width for m in chosen}
        ours = [m for m in measurements if (m.scenario, m.method) == ("finetune", "oskt") and m.width in widths]
        chosen = [*ours, *chosen]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for method in dict.fromkeys(m.method for m in chosen):
        for width in sorted({m.width for m in chosen if m.method == method}):
            rows = [m.row for m in chosen if (m.method, m.width) == (method, width)]
            measured = [row.map_before if panel == "before" else row.map_after for row in rows]
            values = 100 * np.array([value for value in measured if value is not None])
            if values.size:
                deviation = values.std(ddof=1) if values.size > 1 else 0.0
                found.setdefault(method, []).append((rows[0].params, values.mean(), deviation))
    return found


def _styles(measurements: Sequence[Measurement]) -> dict[str, tuple[str, str, str]]:
    """The chain's is always the first."""
    methods = dict.fromkeys(["oskt", *(m.method for m in measurements if m.method != "teacher")])
    return {method: _STYLES[index % len(_STYLES)] for index, method in enumerate(methods)}


def _figure(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.8 + 3.6 * panels, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without changing pyplot's state
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, list(np.atleast_1d(figure.subplots(1, panels, sharey=True)))


def _draw_teacher(axes: Axes, measurements: Sequence[Measurement]) -> None:
    found = (m.row.map_after for m in measurements if m.method == "teacher")
    values = [100 * value for value in found if value is not None]
    if values:
        axes.axhline(float(np.mean(values)), color=BLACK, linewidth=1, linestyle="--", zorder=0, label="teacher")


def _finish(figure: Figure, axes: Sequence[Axes], path: str | Path) -> None:
    for panel in axes:
        panel.grid(axis="y", linewidth=0.4, alpha=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=0)
    axes[0].set_ylabel("mAP (%)")
    entries: dict[str, Artist] = {}
    for panel in axes:
        entries |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(list(entries.values()), list(entries), loc="outside right center", frameon=False, fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
