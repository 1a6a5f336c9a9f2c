"""The picture of thresholds: which share of true pairs passes where how many impostors do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import atomic
from .plots import short_name


def threshold_curves(curves: Mapping[str, np.ndarray], path: str | Path, title: str = "") -> None:
    """Draws a ROC curve per network and writes a PNG, atomically.

    Args:
        curves: by network, false and true accept rates, `[2, points]`; NaN where they are not known.
        path: PNG file to write.
        title: title of the picture; empty: none.
    """
    figure = Figure(figsize=(5.6, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (far, tar) in curves.items():
        axes.plot(far, 100 * tar, label=short_name(name), linewidth=1.5)
    axes.set_xscale("log")
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate (%)")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    if title:
        axes.set_title(title, fontsize=10)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
