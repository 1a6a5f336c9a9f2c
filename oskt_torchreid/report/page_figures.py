"""The drawings of a report's page: what networks cost against mAP, training over time, widths of layers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .page import Picture, address_of
from .plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Style, short_name, size_axis
from .tables import human_count

COLOURS = (GREEN, VERMILION, BLUE, ORANGE, PURPLE, SKY, BLACK)
MARKERS = {"teacher": ("*", BLACK), "student": ("o", GREEN), "s-student": ("D", BLUE), "control": ("X", VERMILION)}
SIZE = (4.8, 3.4)
"""Inches: letters can still be read where a page is as wide as a phone."""


@dataclass(frozen=True)
class Point:
    """A network: its cost, and mAP in % before and after fine-tuning, `None` where it was not measured."""

    name: str
    kind: str
    cost: float
    before: float | None
    after: float | None


def cost_picture(points: Sequence[Point], cost: str) -> Picture:
    """Cost (log axis) against mAP, hollow before fine-tuning and filled after it; students are named.

    Args:
        points: networks.
        cost: name of the axis.
    """
    with _drawn(f"{cost} against mAP", "Filled: after training or fine-tuning. Hollow: before it.") as (axes, made):
        for kind, (marker, colour) in MARKERS.items():
            own = sorted((point for point in points if point.kind == kind), key=lambda point: point.cost)
            style: Style = {
                "color": colour,
                "marker": marker,
                "linestyle": "none",
                "markersize": 11 if kind == "teacher" else 7,
            }
            before = [(point.cost, point.before) for point in own if point.before is not None]
            after = [(point.cost, point.after) for point in own if point.after is not None]
            if before:
                axes.plot(*zip(*before, strict=True), markerfacecolor="white", **style)
            if after:
                axes.plot(*zip(*after, strict=True), label=kind, **style)
            for point in own if kind == "student" else ():
                value = point.after if point.after is not None else point.before
                if value is not None:
                    place: Style = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 7}
                    axes.annotate(short_name(point.name), (point.cost, value), color=colour, **place)
        size_axis(axes, (point.cost for point in points), cost, _shown)
        axes.set_ylabel("mAP (%)")
        axes.margins(y=0.15)
        axes.legend(fontsize=8, frameon=False)
    return made[0]


def lines_picture(lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, caption: str = "") -> Picture:
    """A line for every name.

    Args:
        lines: `(x, y)` by name.
        x: what the horizontal axis is.
        y: what the vertical axis is.
        caption: how to read it.
    """
    with _drawn(f"{y} over {x}", caption) as (axes, made):
        for place, (name, line) in enumerate(lines.items()):
            style: Style = {
                "color": COLOURS[place % len(COLOURS)],
                "linestyle": ("-", "--", ":")[place // len(COLOURS) % 3],
            }
            axes.plot(*zip(*line, strict=True), label=short_name(name), linewidth=1.4, **style)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.legend(fontsize=8, frameon=False)
    return made[0]


def _shown(value: float) -> str:
    return human_count(round(value)) if value >= 1000 else f"{value:.3g}"


@contextmanager
def _drawn(text: str, caption: str) -> Iterator[tuple[Axes, list[Picture]]]:
    """Axes to draw on; afterwards the list holds the picture."""
    figure = Figure(figsize=SIZE)
    made: list[Picture] = []
    FigureCanvasAgg(figure)  # draws without a display and without changing pyplot's state
    axes = figure.add_axes((0.13, 0.15, 0.84, 0.82))  # fixed: to measure every label takes longer than to draw it
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    yield axes, made
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "oskt"}):  # so that equal drawings are equal files
        figure.savefig(content, format="svg", metadata={"Date": None})
    made.append(Picture(address_of(content.getvalue(), "image/svg+xml"), text, caption))
