"""Heat maps of several networks side by side on the same frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..errors import ConfigError
from ..files import atomic

COLOURS = "viridis"  # even in lightness, for colour-blind readers and for printing without colour
OPACITY = 0.55
_LUMINANCE = (0.299, 0.587, 0.114)
_CELL, _GAP, _LETTER = 1.25, 0.35, 0.085  # inches: a frame's height, between groups of frames, a letter of a title
_LINE = 12  # letters of a line of a title


@dataclass(frozen=True, eq=False)
class HeatMapRow:
    """Frames of one tracklet, and each network's heat maps of them.

    Attributes:
        label: what the frames show.
        pictures: `[frames, height, width, 3]`, from 0 to 1, red first.
        maps: by network `[frames, height, width]`, from 0 to 1.
    """

    label: str
    pictures: np.ndarray
    maps: Mapping[str, np.ndarray]


def heat_map_sheet(rows: Sequence[HeatMapRow], path: str | Path, title: str = "") -> None:
    """Draws a row per tracklet; for each frame the picture, then the picture in grey under every network's map.

    Args:
        rows: of equally many frames and the same networks.
        path: PNG file, written atomically.
        title: of the picture; empty: none.

    Raises:
        ConfigError: no rows, or rows that do not belong together.
    """
    shapes = {(row.pictures.shape, tuple(row.maps)) for row in rows}
    if len(shapes) != 1:
        raise ConfigError(f"heat maps on a sheet need one shape and the same networks, got {len(shapes)} kinds")
    ((count, height, width, _), networks) = shapes.pop()
    names = ("frame", *networks)
    # The name of a network is above a frame and needs space: a line per word, if words are long.
    titles = ["\n".join(wrap(name, _LINE, break_long_words=False)) for name in names]
    cell = max(_CELL * width / height, _LETTER * max(len(line) for text in titles for line in text.split("\n")))
    size = (1.9 + count * (len(names) * cell + _GAP), 1.2 + len(rows) * _CELL * 1.06)
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, hspace=0.02, wspace=0.02)
    figure = Figure(figsize=size, dpi=150, layout=layout)
    FigureCanvasAgg(figure)  # draws without a display and without changing pyplot's state
    if title:
        figure.suptitle(title, fontsize=9, wrap=True)
    # Between two groups of frames a narrow column stays empty.
    columns = (([cell] * len(names) + [_GAP]) * count)[:-1]
    grid = figure.subplots(len(rows), len(columns), width_ratios=columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row in zip(grid, rows, strict=True):
        _fill(line, row, names)
    for place, axes in enumerate(grid[0]):
        axes.set_title((*titles, "")[place % (len(names) + 1)], fontsize=8)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), ax=grid, fraction=0.03, pad=0.01, aspect=30)
    bar.set_ticks((0, 1), labels=("least", "most"), fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _fill(line: Sequence[Axes], row: HeatMapRow, names: Sequence[str]) -> None:
    """One row: its label, then every frame without and with the maps."""
    line[0].text(-0.12, 0.5, row.label, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    for frame, picture in enumerate(row.pictures):
        for place, name in enumerate(names, frame * (len(names) + 1)):
            if name not in row.maps:
                line[place].imshow(picture)
            else:  # on grey, so that every colour is the map's
                line[place].imshow(picture @ _LUMINANCE, cmap="gray", vmin=0, vmax=1)
                line[place].imshow(row.maps[name][frame], cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY)
