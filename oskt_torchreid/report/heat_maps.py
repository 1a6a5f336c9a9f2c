"""Heat maps of several networks side by side on the same frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..errors import ConfigError
from ..files import atomic

COLOURS = "cividis"  # even in lightness, and the same to colour-blind readers
OPACITY = 0.6
_CELL, _GAP = 1.25, 0.35  # inches: height of a frame, space between groups of frames


@dataclass(frozen=True, eq=False)
class HeatMapRow:
    """Frames of one tracklet, and what each network makes of them.

    Attributes:
        label: what the frames show.
        pictures: ``[frames, height, width, 3]``, from 0 to 1, red first.
        maps: by network ``[frames, height, width]``, from 0 to 1.
    """

    label: str
    pictures: np.ndarray
    maps: Mapping[str, np.ndarray]


def heat_map_sheet(rows: Sequence[HeatMapRow], path: str | Path, title: str = "") -> None:
    """Draws a row per tracklet; for each frame the picture, then the picture under every network's map.

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
    cell = _CELL * width / height
    # Names of networks stand above the frames, upright where frames are narrow: they need their own width.
    cell = max(cell, 0.085 * max(map(len, names)))
    size = (1.3 + count * (len(names) * cell + _GAP), 1.0 + len(rows) * _CELL * 1.06)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and leaves pyplot's state alone
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, hspace=0.02, wspace=0.02)
    if title:
        figure.suptitle(title, fontsize=9)
    # One narrow empty column between two groups of frames.
    ratios = ([cell] * len(names) + [_GAP]) * count
    grid = figure.subplots(len(rows), len(ratios[:-1]), width_ratios=ratios[:-1], squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (line, row) in enumerate(zip(grid, rows, strict=True)):
        for frame in range(count):
            for place, name in enumerate(names):
                axes = line[frame * (len(names) + 1) + place]
                _draw(axes, row.pictures[frame], row.maps[name][frame] if place else None)
                if number == 0:
                    axes.set_title(name, fontsize=8)
        line[0].text(-0.12, 0.5, row.label, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    colours = ScalarMappable(Normalize(0, 1), COLOURS)
    bar = figure.colorbar(colours, ax=grid, location="right", fraction=0.03, pad=0.01, ticks=(0, 1), aspect=30)
    bar.ax.set_yticklabels(("least", "most"), fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: Axes, picture: np.ndarray, heat: np.ndarray | None) -> None:
    axes.imshow(picture)
    if heat is not None:
        axes.imshow(heat, cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY)
