"""The picture of a fleet: mAP of queries of each network against a gallery of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import atomic
from .plots import short_name

_DARK = 0.55  # of the range of colours; numbers on darker ones are white


def fleet_maps(maps: Mapping[str, np.ndarray], names: Sequence[str], path: str | Path, title: str = "") -> None:
    """Draws a map per state of the networks, all in one scale of colours, and writes a PNG, atomically.

    Args:
        maps: by state, mAP in % of queries of each network (rows) against a gallery of each, `[networks, networks]`.
        names: of the networks.
        path: PNG file to write.
        title: title of the picture; empty: none.
    """
    size = 1.6 + 0.62 * len(names)
    figure = Figure(figsize=(size * len(maps) + 1.2, size + 1.25), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    everything = np.concatenate([values.reshape(-1) for values in maps.values()])
    low, high = float(everything.min()), float(everything.max())
    labels = [short_name(name) for name in names]
    all_axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (state, values) in zip(all_axes, maps.items(), strict=True):
        image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value < low + _DARK * (high - low) else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), labels if axes is all_axes[0] else [""] * len(names), fontsize=8)
        axes.set_title(state, fontsize=9)
        axes.set_xlabel("gallery")
    all_axes[0].set_ylabel("queries")
    figure.colorbar(image, ax=all_axes, label="mAP (%)", shrink=0.8)
    if title:
        figure.suptitle(title, fontsize=10)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
