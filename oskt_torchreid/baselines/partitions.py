"""Clusterings to compare Ward's with: k-means, and members drawn at random. `WeightChain.from_teacher` takes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ..chain.clustering import Clustering, ward_labels
from ..chain.nesting import check_finite

ROUNDS = 20


def kmeans(seed: int) -> Clustering:
    """k-means, see `kmeans_labels`; one generator draws the starts of all channel groups, in order."""
    random = np.random.default_rng(seed)

    def labels(rows: Tensor, count: int) -> np.ndarray:
        check_finite(rows)
        return kmeans_labels(rows.numpy(), count, random)

    return labels


def random_members(seed: int) -> Clustering:
    """Clusters of Ward's sizes, their members drawn at random, see `random_labels`."""
    random = np.random.default_rng(seed)
    return lambda rows, count: random_labels(ward_labels(rows, count), random)


PARTITIONS: dict[str, Callable[[int], Clustering]] = {"kmeans": kmeans, "random": random_members}
"""Clusterings by name, each made of a seed."""


def random_labels(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Clusters as large as the given ones, with random members: only their sizes are kept.

    Args:
        labels: clusters such as Ward's, `[N]`.
        random: draws the members.

    Returns:
        Labels `[N]`. Example: `[0, 0, 0, 1]` becomes one of its four orders.
    """
    return random.permutation(labels)


def kmeans_labels(rows: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """k-means (Lloyd's rounds from k-means++ starts), with every cluster in use.

    Distances follow from the scalar products of the rows, which are computed once: `||x - mean||^2 = x.x - 2 x.mean +
    mean.mean`. A cluster that would be empty takes the row that lies farthest from its own mean.

    Args:
        rows: `[N, columns]`, finite.
        count: `K`, at most `N`.
        random: draws the starts.

    Returns:
        Labels `[N]` in `0..K-1`. Example: rows 0, 1, 10, 11 in 2 clusters become `[0, 0, 1, 1]` or the same
        partition the other way round.
    """
    products = rows @ rows.T
    square = products.diagonal()
    starts = _spread_starts(products, count, random)
    labels = (square[starts] - 2 * products[:, starts]).argmin(1)
    for _ in range(ROUNDS):
        share = (labels[:, None] == np.arange(count)) / np.maximum(np.bincount(labels, minlength=count), 1)
        to_means = products @ share
        distance = square[:, None] - 2 * to_means + (share * to_means).sum(0)
        previous, labels = labels, _all_in_use(distance.argmin(1), distance, count)
        if np.array_equal(labels, previous):
            break
    return _all_in_use(labels, distance, count)


def _spread_starts(products: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """k-means++: each next start is drawn with probability proportional to its squared distance to the nearest one."""
    square = products.diagonal()
    starts = [int(random.integers(len(products)))]
    nearest = np.full(len(products), np.inf)
    for _ in range(count - 1):
        last = starts[-1]
        nearest = np.minimum(nearest, np.maximum(square + square[last] - 2 * products[last], 0))
        nearest[starts] = 0
        total = nearest.sum()
        weights = nearest / total if total > 0 else None  # all rows are starts already, or equal to one
        starts.append(int(random.choice(len(products), p=weights)))
    return np.array(starts)


def _all_in_use(labels: np.ndarray, distance: np.ndarray, count: int) -> np.ndarray:
    """Gives every empty cluster the row that is farthest from its own mean and not the only one of its cluster."""
    labels = labels.copy()
    for empty in np.flatnonzero(np.bincount(labels, minlength=count) == 0):
        own = distance[np.arange(len(labels)), labels]
        own[np.bincount(labels, minlength=count)[labels] == 1] = -np.inf
        labels[own.argmax()] = empty
    return labels
