"""Results of analyses of a run of VKD, as tables and pictures: curves against frames, and the probe of cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from tabulate import tabulate

from ..errors import ConfigError
from ..files import atomic
from ..vkd.analysis import TIME, VIEWS, Curve
from ..vkd.camera_probe import CameraProbe
from .plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, Style

_COLOURS = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"))
_BARS = ((BLUE, "white"), (ORANGE, "black"), (GREEN, "white"))  # of each kind, and of the number in it
_DASHES = {"": "-", VIEWS: "-", TIME: "--"}

Curves = Mapping[str, Mapping[str, Curve]]
"""By network and kind of set (one of the strategies of views, or empty where there is one kind only)."""

Probes = Mapping[str, Mapping[str, CameraProbe]]
"""By network and what was embedded (tracklets, images)."""


def curve_table(curves: Curves) -> str:
    """Markdown: mAP in %, a row per curve and a column per number of frames."""
    rows: list[tuple[str, ...]] = []
    counts: tuple[int, ...] = ()
    for network, kinds in curves.items():
        for kind, curve in kinds.items():
            counts = tuple(curve)
            rows.append((_label(network, kind), *(f"{100 * value:.1f}" for value in curve.values())))
    headers = ("mAP in %", *(f"{count} frame{'s' * (count > 1)}" for count in counts))
    return _table(rows, headers)


def curve_plot(curves: Curves, path: str | Path, frames_of: str, title: str = "") -> None:
    """Draws numbers of frames (log axis) against mAP in %: a colour per network, a line per kind of set.

    Args:
        curves: of at most five networks.
        path: PNG file, written atomically.
        frames_of: label of the horizontal axis.
        title: of the picture; empty: none.

    Raises:
        ConfigError: no curve, or of too many networks.
    """
    if not 1 <= len(curves) <= len(_COLOURS):
        raise ConfigError(f"there are curves of {len(curves)} networks; allowed: 1 to {len(_COLOURS)}")
    figure, axes = _figure((6.4, 4.0), title)
    for (network, kinds), (color, marker) in zip(curves.items(), _COLOURS, strict=False):
        for kind, curve in kinds.items():
            style: Style = {"color": color, "marker": marker, "linestyle": _DASHES[kind], "markersize": 6}
            hollow: Style = {"markerfacecolor": "white"} if _DASHES[kind] != "-" else {}
            values = [100 * value for value in curve.values()]
            axes.plot(list(curve), values, label=_label(network, kind), **style, **hollow)
    counts = sorted({count for kinds in curves.values() for curve in kinds.values() for count in curve})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(frames_of)
    axes.set_ylabel("mAP (%)")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    _save(figure, path)


def probe_table(probes: Probes) -> str:
    """Markdown: how many of the held-out cameras are read off, in %, with the deviation over folds, and chance."""
    kinds = list(next(iter(probes.values())))
    rows = []
    for network, found in probes.items():
        cells = (f"{100 * probe.accuracy:.1f} ± {100 * probe.deviation:.1f}" for probe in found.values())
        rows.append((network, *cells))
    last = next(iter(probes.values()))
    for name in ("majority", "uniform"):
        rows.append((f"chance: {name}", *(f"{100 * getattr(last[kind], name):.1f}" for kind in kinds)))
    headers = ("camera read off, in %", *(f"from {kind}" for kind in kinds))
    return _table(rows, headers)


def probe_plot(probes: Probes, path: str | Path, title: str = "") -> None:
    """Draws the probe's accuracy in % as bars, a group per network, with both chance levels as lines.

    Args:
        probes: of one or more networks.
        path: PNG file, written atomically.
        title: of the picture; empty: none.
    """
    figure, axes = _figure((6.4, 3.6), title)
    networks = list(probes)
    kinds = list(probes[networks[0]])
    width = 0.8 / len(kinds)
    for place, (kind, (color, ink)) in enumerate(zip(kinds, _BARS, strict=False)):
        found = [probes[network][kind] for network in networks]
        spots = [index + (place - (len(kinds) - 1) / 2) * width for index in range(len(networks))]
        heights, errors = ([100 * getattr(probe, name) for probe in found] for name in ("accuracy", "deviation"))
        axes.bar(spots, heights, width * 0.95, yerr=errors, capsize=3, color=color, label=kind)
        for spot, height in zip(spots, heights, strict=True):
            axes.text(spot, 2, f"{height:.0f}", ha="center", fontsize=9, color=ink, fontweight="bold")
    chance = probes[networks[0]][kinds[0]]
    alike = abs(chance.majority - chance.uniform) < 0.005  # one line would hide the other
    for name, line in (("majority and uniform", "--"),) if alike else (("majority", "--"), ("uniform", ":")):
        value = 100 * getattr(chance, name.partition(" ")[0])
        axes.axhline(value, color=BLACK, linestyle=line, label=f"chance: {name}")
    axes.set_xticks(range(len(networks)), networks)
    axes.set_xlabel("network")
    axes.set_ylabel("cameras read off (%)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, 100)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    _save(figure, path)


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)


def _label(network: str, kind: str) -> str:
    shown = {"": network, VIEWS: f"{network}, views", TIME: f"{network}, time"}
    return shown[kind]


def _figure(size: tuple[float, float], title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without changing pyplot's state
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=11)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
