"""Draws the pictures of docs/method.md, with numbers that the package computes.

python docs/figures.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from oskt_torchreid.chain.clustering import ward_labels  # noqa: E402
from oskt_torchreid.chain.layout import fade_of_width, slots_of_groups, slots_of_trees  # noqa: E402
from oskt_torchreid.chain.nesting import ward_tree  # noqa: E402
from oskt_torchreid.files import atomic  # noqa: E402
from oskt_torchreid.report.plots import BLUE, GREY, ORANGE  # noqa: E402

ROWS, COLUMNS = np.array([0.0, 2.0, 10.0, 14.0]), np.array([1.0, 2.0, 3.0, 4.0])
NARROW = np.array([1.0, 13.0])
"""The page's example: a layer's rows, the columns of the layer behind, and a refined S-student's rows."""
CLUSTER_COLORS = (BLUE, ORANGE)


@dataclass(frozen=True)
class Layers:
    """One group of `N` channels at one width `m`, between a layer with one input and one with one output.

    Attributes:
        rows: of the slots, shape `[m]`.
        columns: of the layer behind, shape `[m]`.
        cluster: whose row each slot has, shape `[m]`.
        channel_to_slot: slot that stands for each of the teacher's channels, shape `[N]`.
    """

    rows: np.ndarray
    columns: np.ndarray
    cluster: np.ndarray
    channel_to_slot: np.ndarray


def _means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels, values) / np.bincount(labels)


def student(width: int) -> Layers:
    """A student of the paper's chain of two clusters."""
    labels = ward_labels(torch.from_numpy(ROWS)[:, None], 2)
    (slots,) = slots_of_groups([labels], [width])
    rows = _means(ROWS, labels)[slots.slot_to_cluster]
    return Layers(rows, np.bincount(slots.teacher_to_slot, COLUMNS), slots.slot_to_cluster, slots.teacher_to_slot)


def nested_student(width: int) -> Layers:
    """A student of the nested chain whose S-student has the rows `NARROW`."""
    points = torch.from_numpy(ROWS)[:, None]
    labels = ward_labels(points, 2)
    (slots,) = slots_of_trees([ward_tree(points)], [labels], [width])
    moved = (NARROW - _means(ROWS, labels))[slots.slot_to_cluster]
    rows = _means(ROWS, slots.teacher_to_slot) + fade_of_width(2, width, 4) * moved
    return Layers(rows, np.bincount(slots.teacher_to_slot, COLUMNS), slots.slot_to_cluster, slots.teacher_to_slot)


def _members(layers: Layers, slot: int) -> str:
    return ", ".join(str(channel) for channel in np.flatnonzero(layers.channel_to_slot == slot))


def _box(axes: Axes, corner: tuple[float, float], size: tuple[float, float], color: str, text: str) -> None:
    axes.add_patch(Rectangle(corner, *size, facecolor=color, edgecolor="white", linewidth=1.5, alpha=0.85))
    centre = (corner[0] + size[0] / 2, corner[1] + size[1] / 2)
    axes.text(*centre, text, ha="center", va="center", color="white", fontweight="bold", fontsize=11)


def _panel(axes: Axes, left: float, layers: Layers, title: str, names: Sequence[str]) -> np.ndarray:
    """Rows one below another, and below them the columns side by side; returns the rows' heights."""
    count = len(layers.rows)
    heights = 4.1 - np.linspace(0, 2.7, count)
    axes.text(left + 1.2, 5.3, title, ha="center", fontsize=11, fontweight="bold")
    for place in range(count):
        color = CLUSTER_COLORS[layers.cluster[place]]
        _box(axes, (left, heights[place]), (2.4, 0.6), color, f"{layers.rows[place]:g}")
        axes.text(left - 0.12, heights[place] + 0.3, names[place], ha="right", va="center", fontsize=8, color=GREY)
        start = left + 1.2 + (place - count / 2) * 0.62
        _box(axes, (start, -0.9), (0.58, 1.3), color, f"{layers.columns[place]:g}")
    return heights + 0.3


def _arrows(axes: Axes, starts: Sequence[tuple[float, float]], ends: Sequence[tuple[float, float]]) -> None:
    for start, end in zip(starts, ends, strict=True):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.9})


def draw_chain() -> Figure:
    """Teacher, chain and the student of width 3: rows are means over clusters, columns sums over slots."""
    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    axes = figure.add_subplot()
    chain, wide = student(2), student(3)
    clusters = chain.channel_to_slot
    teacher = Layers(ROWS, COLUMNS, clusters, np.arange(4))
    lefts = (1.2, 6.0, 11.0)
    channels = _panel(axes, lefts[0], teacher, "teacher", [f"channel {channel}" for channel in range(4)])
    named = [f"cluster {'ab'[place]}" for place in range(2)]
    centres = _panel(axes, lefts[1], chain, "S-student: width 2", named)
    slots = _panel(axes, lefts[2], wide, "student: width 3", [f"slot ({_members(wide, slot)})" for slot in range(3)])
    _arrows(axes, [(lefts[0] + 2.45, y) for y in channels], [(lefts[1] - 1.05, centres[c]) for c in clusters])
    _arrows(axes, [(lefts[1] + 2.45, centres[c]) for c in wide.cluster], [(lefts[2] - 1.35, y) for y in slots])
    for left in lefts:
        axes.text(left - 0.12, -0.25, "columns", ha="right", va="center", fontsize=8, color=GREY)
    axes.text((lefts[0] + lefts[1] + 2.4) / 2, 4.75, "rows: mean of a cluster", ha="center", fontsize=9)
    axes.text((lefts[1] + lefts[2] + 2.4) / 2, 4.75, "rows: of the slot's cluster", ha="center", fontsize=9)
    axes.text(
        (lefts[0] + lefts[2] + 2.4) / 2,
        -1.45,
        "columns of the layer behind: sum over a slot's members",
        ha="center",
        fontsize=9,
    )
    axes.set(xlim=(-0.3, 13.6), ylim=(-1.7, 5.7))
    axes.axis("off")
    return figure


def draw_nested() -> Figure:
    """Rows of a nested chain's students: the S-student's at width 2, the teacher's at width 4."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    made = {width: nested_student(width) for width in (2, 3, 4)}
    for narrow, wide in ((2, 3), (3, 4)):
        for channel in range(4):
            slots = [made[width].channel_to_slot[channel] for width in (narrow, wide)]
            heights = [made[width].rows[slot] for width, slot in zip((narrow, wide), slots, strict=True)]
            axes.plot((narrow, wide), heights, color=GREY, linewidth=1, zorder=1)
    for width, layers in made.items():
        for slot, row in enumerate(layers.rows):
            axes.scatter(width, row, s=150, color=CLUSTER_COLORS[layers.cluster[slot]], zorder=2)
            text = f"slot ({_members(layers, slot)})\nrow {row:g}, column {layers.columns[slot]:g}"
            last = width == 4  # no lines go on from there
            above = {"xytext": (0, 10), "ha": "center", "va": "bottom"}
            beside = {"xytext": (12, 0), "ha": "left", "va": "center"}
            axes.annotate(text, (width, row), textcoords="offset points", fontsize=9, **(beside if last else above))
    axes.set_xticks((2, 3, 4), ["2: the S-student", "3", "4: the teacher"])
    axes.set(xlim=(1.7, 4.7), ylim=(-1.5, 18), ylabel="row", xlabel="width")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Writes both pictures; the same bytes whenever the same versions draw them."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "oskt", "font.family": "sans-serif"})
    for name, draw in (("chain.svg", draw_chain), ("nested.svg", draw_nested)):
        path = HERE / "figures" / name
        path.parent.mkdir(exist_ok=True)
        with atomic(path) as temporary:
            draw().savefig(temporary, format="svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
