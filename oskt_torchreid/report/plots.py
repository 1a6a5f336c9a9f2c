"""The picture of a run: size against mAP, before and after fine-tuning."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from PIL import Image

from ..errors import ConfigError
from ..files import atomic
from .results import Row
from .tables import human_count

# Okabe and Ito's palette: distinct for colour-blind readers; markers differ too, for printing without colour.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BLACK, GREY = "#000000", "#777777"
_CONTROL_STYLES = (
    (VERMILION, "X"),
    (ORANGE, "P"),
    (PURPLE, "v"),
    (SKY, "<"),
    (BLUE, "s"),
    (GREY, "D"),
    (BLACK, "^"),
)
_NAME_LENGTH = 30  # of letters; the path of a file would leave no room for the axes
_ROWS_KEY = "Rows"  # of a picture's metadata: a digest of what it shows
_TICK_ROOM = 0.14  # least distance of two ticks, as a share of the axis
_MARGIN = 1.6  # margin next to the smallest and largest network, as a factor

Style = dict[str, Any]
"""Arguments of a drawing function, by name."""


def size_vs_map(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
    """Draws parameters (log axis) against mAP in % and writes a PNG, atomically.

    Students and controls are drawn before (hollow) and after (filled) fine-tuning, the teacher as a line. A picture
    that shows these rows already is not changed: drawing takes as long as the rest of a finished run.

    Args:
        rows: results of a run.
        path: PNG file to write.
        title: title of the picture; empty: none.

    Raises:
        ConfigError: no row has an mAP.
    """
    shown = [row for row in rows if row.best_map is not None]
    if not shown:
        raise ConfigError("no result has an mAP yet; evaluate the networks before drawing them")
    digest = hashlib.sha256(repr((title, shown)).encode()).hexdigest()
    if _digest_of(Path(path)) == digest:
        return
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without changing pyplot's state
    axes = figure.add_subplot()
    _draw_teacher(axes, shown)
    _draw_students(axes, shown)
    _draw_controls(axes, shown)
    _dress(axes, shown, title)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={_ROWS_KEY: digest})


def _digest_of(path: Path) -> str | None:
    """The digest in an existing picture."""
    try:
        with Image.open(path) as picture:
            return picture.info.get(_ROWS_KEY)
    except OSError:  # missing or unreadable
        return None


def _draw_teacher(axes: Axes, rows: Iterable[Row]) -> None:
    for row in rows:
        if row.kind == "teacher" and row.best_map is not None:
            value = 100 * row.best_map
            axes.axhline(value, color=BLACK, linewidth=1, linestyle="--", zorder=1)
            axes.plot(row.params, value, "*", color=BLACK, markersize=13, label=f"teacher ({value:.1f})", zorder=4)


def _draw_students(axes: Axes, rows: Iterable[Row]) -> None:
    students = sorted((row for row in rows if row.kind == "student"), key=lambda row: row.params)
    _series(axes, students, "o", GREEN, "students")
    for row in students:
        # On a dotted line at the foot of the picture, upright: networks of nearly one size stay readable.
        axes.axvline(row.params, color=GREEN, linewidth=0.5, linestyle=":", alpha=0.6, zorder=0)
        place: Style = {"textcoords": ("offset points", "axes fraction"), "rotation": 90, "fontsize": 8, "color": GREEN}
        axes.annotate(short_name(row.name), (row.params, 0), xytext=(-3, 0.02), ha="right", va="bottom", **place)
    kept = (row for row in rows if row.kind == "s-student")
    s_students = [(row.params, 100 * row.best_map) for row in kept if row.best_map is not None]
    if s_students:
        style: Style = {"color": BLUE, "markersize": 5, "linestyle": "none", "zorder": 5}
        axes.plot(*zip(*s_students, strict=True), "D", label="S-student, refined", **style)


def _draw_controls(axes: Axes, rows: Iterable[Row]) -> None:
    """A family for every method: `slice:width=0.5` and `slice:width=0.75` are one."""
    families: dict[str, list[Row]] = {}
    for row in sorted((row for row in rows if row.kind == "control"), key=lambda row: row.params):
        families.setdefault(row.name.rpartition(":")[0] or row.name, []).append(row)
    for (name, family), (color, marker) in zip(families.items(), cycle(_CONTROL_STYLES), strict=False):
        _series(axes, family, marker, color, f"control: {short_name(name)}")


def _series(axes: Axes, rows: Sequence[Row], marker: str, color: str, label: str) -> None:
    """Draws one family: filled markers after fine-tuning, hollow ones before it."""
    style: Style = {"marker": marker, "color": color, "markersize": 8, "linewidth": 1.2, "zorder": 3}
    after = [(row.params, 100 * row.map_after) for row in rows if row.map_after is not None]
    before = [(row.params, 100 * row.map_before) for row in rows if row.map_before is not None]
    if before:
        axes.plot(*zip(*before, strict=True), linestyle=":", markerfacecolor="white", label=f"{label}, before", **style)
    if after:
        axes.plot(*zip(*after, strict=True), linestyle="-", label=f"{label}, fine-tuned", **style)


def short_name(name: str) -> str:
    """The end of a long name, which distinguishes files."""
    return name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"


def _dress(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """Axes, ticks, legend and title."""
    size_axis(axes, (row.params for row in rows))
    values = [100 * value for row in rows for value in (row.map_before, row.map_after) if value is not None]
    axes.set_ylim(min(0.0, *values), min(105.0, max(values) + 10))
    axes.set_ylabel("mAP (%)")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    if title:
        axes.set_title(title, fontsize=11)


def size_axis(
    axes: Axes,
    params: Iterable[float],
    name: str = "parameters",
    shown: Callable[[float], str] = lambda size: human_count(round(size)),
) -> None:
    """A log axis of parameters or another cost, marked at the networks' own.

    Over less than two decades such an axis has hardly a round number, so sizes say more, where their labels have room.
    """
    sizes = sorted(set(params))
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / _MARGIN, sizes[-1] * _MARGIN)
    ticks = sizes[:1]
    for size in sizes[1:]:
        if size > (sizes[-1] / sizes[0] * _MARGIN**2) ** _TICK_ROOM * ticks[-1]:
            ticks.append(size)
    axes.set_xticks(ticks, minor=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: shown(size)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{name} (log scale)")
