"""Nested chains: students of every width are cuts of one tree, so that wide ones keep what narrow ones merge.

The paper's chain has one row per cluster, and a student's slots of a cluster share it: whatever told them apart is
gone. A nested chain has the S-student's rows `C` *and* the teacher's `W`, and a slot `v` of cluster `a` has the row

    R_v = Wm_v + f (C_a - Wm_a),        f = (N - m) / (N - K)

with `Wm` the mean of the teacher's rows over a slot or a cluster (or the row of its leader, see `contributions.py`),
and `f` the fade of the group's width `m`: at the chain's width `K` that is `C_a`, at the teacher's `N` the teacher's
row, whatever the two are, and where the rows of a cluster are equal to `C_a` it is `C_a` at every width, as in the
paper. Vectors that the S-student has of its own are treated alike.

Slots are the cuts of Ward's tree. Example, rows 0, 1, 10, 14 of 4 channels: Ward merges 0 with 1, then 2 with 3, then
both. In the leaf order `0 1 2 3`, channel 0 begins the first slot, channel 2 a second one in students of more than one
channel, channel 3 a third one above two, channel 1 a fourth one above three: `rank = (0, 3, 1, 2)`. Cut at width 3 the
slots are `(0, 1), (2), (3)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.hierarchy import cophenet, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from ..errors import ChainError
from ..graph import ChannelGraph


class Tree(NamedTuple):
    """A hierarchy of one group's channels, by the cuts that it has.

    Attributes:
        order: channels in an order in which every cluster of the hierarchy stands together, shape `[N]`.
        rank: of each place in that order: the channel there begins a slot in students of more than so many channels,
            shape `[N]`; the first is 0, and together they are `0..N-1`.
    """

    order: np.ndarray
    rank: np.ndarray

    @property
    def is_sound(self) -> bool:
        """Whether both are orders of all channels, and the first place begins a slot at every width."""
        places = np.arange(len(self.order))
        both = (np.array_equal(np.sort(part), places) for part in self)
        return all(both) and len(places) > 0 and self.rank[0] == 0


def check_nesting(
    graph: ChannelGraph,
    teacher_to_chain: Mapping[str, np.ndarray],
    trees: Mapping[str, Tree],
    importance: Mapping[str, np.ndarray],
) -> None:
    """Raises `ChainError` unless a chain's hierarchies and the importance of its channels fit its clusters.

    Without hierarchies, as in the paper's chain, there is no importance either.
    """
    if not isinstance(trees, Mapping) or not isinstance(importance, Mapping):
        raise ChainError("hierarchies and importance are mappings by the name of a group")
    for name, labels in teacher_to_chain.items() if trees else ():
        tree = trees.get(name)
        if not isinstance(tree, Tree) or not tree.is_sound or len(tree.order) != len(labels):
            raise ChainError(f"group '{name}' of {len(labels)} channels has no hierarchy of them")
        if not np.array_equal(cut_trees([tree], [int(labels.max()) + 1])[0], labels):
            raise ChainError(f"the clusters of group '{name}' are no cut of its hierarchy")
    if importance and not trees:
        raise ChainError("only the slots of a nested chain have leaders; give hierarchies, or no importance")
    for name, size in graph.sizes.items() if importance else ():
        found = np.asarray(importance.get(name, ()))
        if found.shape != (size,) or found.dtype.kind != "f" or not np.isfinite(found).all():
            raise ChainError(f"group '{name}' of {size} channels has no finite importance of each of them")


def flat_tree(size: int) -> Tree:
    """The tree of a group that is never narrowed: its channels, one after the other."""
    return Tree(np.arange(size), np.arange(size))


def tree_over(labels: np.ndarray) -> Tree:
    """A tree of which given clusters, numbered by their first channel, are a cut; below it channels part in order.

    Example: `labels = (0, 1, 0, 0)` give the order `0 2 3 1` and the ranks `0 2 3 1`.
    """
    order = np.argsort(labels, kind="stable")
    begins = np.r_[True, np.diff(labels[order]) != 0]
    rank = np.empty(len(labels), np.int64)
    rank[begins], rank[~begins] = np.arange(begins.sum()), np.arange(begins.sum(), len(labels))
    return Tree(order, rank)


def ward_tree(rows: Tensor, mass: Tensor | None = None) -> Tree:
    """Ward's hierarchy of rows; its cuts are those of `clustering.ward_labels`.

    Args:
        rows: `[N, columns]`, float64, finite.
        mass: of each row, `[N]`, above 0; `None`: all have the same.

    Raises:
        ChainError: a row that is not finite.
    """
    check_finite(rows)
    if len(rows) == 1:
        return flat_tree(1)
    distances = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0).numpy()
    if mass is None or bool((mass == mass[0]).all()):
        merges = linkage(squareform(distances, checks=False), method="ward")
    else:
        squares = distances**2
        if not np.isfinite(squares).all():
            raise ChainError("distances of contributions are infinite; give images as the network is trained with")
        merges = weighted_ward(squares, mass.numpy())
    order = leaves_list(merges)
    merges[:, 2] = np.arange(1, len(rows))  # which merge, instead of how high
    joined_by = squareform(cophenet(merges))[order[:-1], order[1:]]
    return Tree(order.astype(np.int64), np.r_[0, len(rows) - joined_by].astype(np.int64))


def weighted_ward(squares: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Ward's merges of points with masses: each step makes `sum m |x - mean|^2` within clusters grow least.

    Merging clusters of the masses `m` and `n` costs `m n / (m + n)` times the squared distance of their means. Nearest
    neighbours are followed until two are each other's; what is merged then does not depend on what else will be.

    Args:
        squares: squared distances of points, `[N, N]`.
        mass: of each, `[N]`, above 0.

    Returns:
        `[N - 1, 4]` in the form of `scipy.cluster.hierarchy.linkage`: two clusters, what the merge costs, and members.

    Example: points 0, 1 and 3 with the masses 9, 9 and 1: 1 and 3 cost `9 / 10 * 4`, less than 0 and 1, `81 / 18`.
    """
    count, mass = len(mass), mass.astype(np.float64)
    squares = np.minimum(squares, squares.T)  # rounding; two points are then each other's nearest, or neither
    costs = squares * (mass[:, None] * mass / (mass[:, None] + mass))
    np.fill_diagonal(costs, np.inf)
    path: list[int] = []
    merges: list[tuple[int, int, float]] = []
    open_ = np.ones(count, bool)
    while len(merges) < count - 1:
        path = path or [int(open_.argmax())]
        last = path[-1]
        near = int(costs[last].argmin())
        if len(path) > 1 and costs[last, path[-2]] <= costs[last, near]:
            near = path[-2]
        else:
            path.append(near)
            continue
        del path[-2:]
        cost = costs[last, near]
        merges.append((last, near, cost))
        both = mass[last] + mass[near]
        own, other = (mass + mass[last]) * costs[last], (mass + mass[near]) * costs[near]
        costs[near] = costs[:, near] = np.where(open_, (own + other - mass * cost) / (mass + both), np.inf)
        costs[last] = costs[:, last] = costs[near, near] = np.inf
        mass[near], open_[last] = both, False
    return _numbered_merges(merges, count)


def _numbered_merges(merges: Sequence[tuple[int, int, float]], count: int) -> np.ndarray:
    """Merges in the order of their costs; merge `i` makes cluster `count + i` of those that its two points are in."""
    cluster_of, size = np.arange(count), np.ones(2 * count - 1)
    numbered = np.empty((count - 1, 4))
    for number, (one, other, cost) in enumerate(sorted(merges, key=lambda merge: merge[2])):
        pair = sorted((cluster_of[one], cluster_of[other]))
        cluster_of[np.isin(cluster_of, pair)] = count + number
        size[count + number] = size[pair].sum()
        numbered[number] = (*pair, cost, size[count + number])
    return numbered


def cut_trees(trees: Sequence[Tree], widths: Sequence[int]) -> list[np.ndarray]:
    """Slot of every channel of each group, `[N]`; slots are numbered by their first channel.

    Args:
        trees: per group.
        widths: per group, from 1 to `N`.
    """
    sizes = np.array([len(tree.order) for tree in trees])
    offsets = np.repeat(np.cumsum(sizes) - sizes, sizes)
    begins = np.concatenate([tree.rank for tree in trees]) < np.repeat(np.asarray(widths), sizes)
    place = np.concatenate([tree.order for tree in trees]) + offsets
    slot = np.empty(len(place), np.int64)
    slot[place] = np.cumsum(begins) - 1
    first = np.full(begins.sum(), len(place))
    np.minimum.at(first, slot, np.arange(len(place)))
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))  # groups follow one another, and so do their slots
    labels = np.split(number[slot], np.cumsum(sizes)[:-1])
    return [part - part.min() for part in labels]


def check_finite(rows: Tensor) -> None:
    """Raises `ChainError` for a row that is not finite."""
    if not torch.isfinite(rows).all():
        raise ChainError("the teacher has weights that are NaN or infinite; a chain needs a sound teacher checkpoint")
