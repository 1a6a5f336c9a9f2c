"""The picture of a run of VKD with controls: mAP of every network in every protocol, as bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import atomic
from .plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Style, short_name

_COLORS = (GREY, GREEN, ORANGE, BLUE, PURPLE, SKY, VERMILION, BLACK)
_ROOM = 0.8  # of the distance between protocols, for the bars of one


@dataclass(frozen=True)
class Bar:
    """One number.

    Attributes:
        mean: height, in %.
        deviation: standard deviation over seeds, in points; 0: of one seed, without an error bar.
        note: written into it, upright.
    """

    mean: float
    deviation: float = 0.0
    note: str = ""


def protocol_bars(bars: Mapping[str, Mapping[str, Bar]], path: str | Path, title: str = "") -> None:
    """Draws a group of bars for every protocol and writes a PNG, atomically.

    Args:
        bars: by network, then by protocol; every network has the same protocols, at least one.
        path: PNG file to write.
        title: title of the picture; empty: none.
    """
    protocols = list(next(iter(bars.values())))
    figure = Figure(figsize=(2.4 + 0.5 * len(bars) * len(protocols), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = _ROOM / len(bars)
    for place, (network, of_network) in enumerate(bars.items()):
        centers = [group + (place + 0.5) * width - _ROOM / 2 for group in range(len(protocols))]
        drawn = [of_network[name] for name in protocols]
        errors = [bar.deviation for bar in drawn]
        style: Style = {"color": _COLORS[place % len(_COLORS)], "label": short_name(network)}
        axes.bar(centers, [bar.mean for bar in drawn], 0.92 * width, yerr=errors if any(errors) else None, **style)
        for center, bar in zip(centers, drawn, strict=True):
            _write(axes, f"{bar.mean:.1f}", (center, bar.mean + bar.deviation), fontsize=7)
            _write(axes, bar.note, (center, 0), fontsize=8, rotation=90, color="white")
    axes.set_xticks(range(len(protocols)), protocols)
    axes.set_ylabel("mAP (%)")
    axes.set_ylim(0, min(110, 1.18 * max(bar.mean + bar.deviation for each in bars.values() for bar in each.values())))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=min(len(bars), 3))
    if title:
        axes.set_title(title, fontsize=10)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _write(axes: Axes, text: str, place: tuple[float, float], **style: Any) -> None:
    """Writes a little above a point."""
    axes.annotate(text, place, xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", **style)
