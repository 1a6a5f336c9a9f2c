"""The first places of a few queries, for people to look at: the same queries for every network of a run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .ranking import Labels, distance_matrix

QUERIES, PLACES = 10, 8


class RankedLists(NamedTuple):
    """What a network found.

    Attributes:
        queries: numbers of the queries that are shown.
        places: for each the numbers of the gallery's entries nearest to it, in order, without those of its identity
            from its own camera.
    """

    queries: list[int]
    places: list[list[int]]


def ranked_lists(
    queries: Tensor,
    gallery: Tensor,
    labels: Labels,
    metric: str = "euclidean",
    count: int = QUERIES,
    most: int = PLACES,
) -> RankedLists:
    """The nearest entries of some queries, which are spread evenly over all that have a match.

    Args:
        queries: features `[queries, channels]`.
        gallery: features `[gallery, channels]`.
        labels: identities and cameras of both sides, as of `rank_features`.
        metric: `euclidean` or `cosine`.
        count: how many queries, at most.
        most: how many places, at most.
    """
    q_pids, g_pids, q_camids, g_camids = (np.asarray(each) for each in labels)
    possible = np.flatnonzero(_matches(q_pids, g_pids, q_camids, g_camids))
    if not len(possible):
        return RankedLists([], [])
    chosen = possible[np.unique(np.linspace(0, len(possible) - 1, min(count, len(possible))).astype(int))]
    distances = torch.as_tensor(distance_matrix(queries[torch.as_tensor(chosen)], gallery, metric)).clone()
    same = (q_pids[chosen, None] == g_pids) & (q_camids[chosen, None] == g_camids)
    left_out = torch.as_tensor(same)
    distances[left_out] = float("inf")
    order = distances.argsort(stable=True, dim=1)[:, :most]
    found = [[int(place) for place in row if not out[place]] for row, out in zip(order, left_out, strict=True)]
    return RankedLists([int(query) for query in chosen], found)


def _matches(q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray) -> np.ndarray:
    """How many of the gallery's entries show a query's identity by another camera, `[queries]`."""
    _, pids = np.unique(np.concatenate([q_pids, g_pids]), return_inverse=True)
    _, cameras = np.unique(np.concatenate([q_camids, g_camids]), return_inverse=True)
    both, count = pids * (cameras.max() + 1) + cameras, len(q_pids)
    of_identity = np.bincount(pids[count:], minlength=pids.max() + 1)
    of_both = np.bincount(both[count:], minlength=both.max() + 1)
    return of_identity[pids[:count]] - of_both[both[:count]]
