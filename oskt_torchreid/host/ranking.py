"""CMC and average precision of distance matrices and of features, a few queries at a time.

No gallery is ordered: a match's place is the number of distances below its own, read from the sorted values of a row.
Sorting values is several times faster than ordering indices; only a row in which another entry has exactly the distance
of a match has to be ordered, in torchreid's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .compat import torchreid

MAX_RANK = 50  # length of torchreid's CMC curve
REPORTED_RANKS = (1, 5, 10, 20)
INTERPOLATED, TRAPEZOID = "interpolated", "trapezoid"
METRICS = ("euclidean", "cosine")
PAIRS_AT_ONCE = 1 << 25  # of queries and gallery, which bounds the memory of distances and their sorted copies

QueryPart = tuple[slice, Tensor]
"""A slice of queries, and their distances `[queries, gallery]`."""

Labels = tuple[Any, Any, Any, Any]
"""Identities and cameras, `(q_pids, g_pids, q_camids, g_camids)`; cameras may be `None` on both sides."""


class Ranking(NamedTuple):
    """How well queries found their matches.

    Attributes:
        cmc: the share of queries with a match among the first `k + 1`, `[places]`.
        mean_ap: mean average precision.
        mean_inp: mean inverse negative penalty (Ye et al., TPAMI 2021): a query's number of matches as a share of the
            place of its last one, so what it costs to find them all; NaN where it is not known.
    """

    cmc: np.ndarray
    mean_ap: float
    mean_inp: float = float("nan")

    def at(self, place: int) -> float:
        """Share of queries with a match among so many first places, or among all where the gallery is shorter."""
        return float(self.cmc[min(place, len(self.cmc)) - 1])


def rank_distances(
    distmat: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any = None,
    g_camids: Any = None,
    ap: str = INTERPOLATED,
    max_rank: int = MAX_RANK,
) -> Ranking:
    """CMC, mean average precision and mINP of a distance matrix, as Market-1501's protocol defines them.

    A query's gallery leaves out entries of its identity from its own camera; a query without a match among the rest is
    not counted. Equal distances keep the order that torchreid's evaluation gives them.

    Args:
        distmat: `[queries, gallery]`, an array or a tensor; a tensor is ranked on its own device.
        q_pids: identity of each query `[queries]`.
        g_pids: identity of each gallery entry `[gallery]`.
        q_camids: camera of each query; `None`, for both sides: nothing is left out.
        g_camids: camera of each gallery entry.
        ap: `interpolated`, torchreid's: the mean of the precision at every match; `trapezoid`, Market-1501's first
            script and VKD's: the mean of the precision at a match and just before it (1 before the first place).
        max_rank: longest CMC curve.

    Returns:
        `(cmc, mean_ap, mean_inp)`; the curve has `min(max_rank, gallery)` entries.

    Raises:
        ConfigError: unknown `ap`.
        DataError: empty sides, lengths that do not match, distances that are not numbers, or no query with a match.

    Example: a gallery of 4 in which the second and third place match: the precisions are 1/2 and 2/3, just before them
    0 and 1/2; the AP is 7/12 interpolated and `((1/2 + 0) + (2/3 + 1/2)) / 4 = 5/12` by trapezoids, the CMC curve
    `(0, 1, 1, 1)`, and the INP 2/3: two matches, the last in the third place.
    """
    distances = distmat.detach() if torch.is_tensor(distmat) else torch.from_numpy(np.ascontiguousarray(distmat))
    if distances.dtype in (torch.float16, torch.bfloat16):
        distances = distances.float()  # for everything below
    if distances.dim() != 2 or 0 in distances.shape:
        raise DataError(
            f"the distance matrix has shape {tuple(distances.shape)}; it must be [queries, gallery] with at least one "
            "of each"
        )
    rows = rows_at_once(distances.shape[1])
    parts = ((slice(start, start + rows), distances[start : start + rows]) for start in range(0, len(distances), rows))
    labels = (q_pids, g_pids, q_camids, g_camids)
    return rank_parts(parts, (len(distances), distances.shape[1]), labels, (ap,), max_rank)[ap]


def rank_features(
    queries: Tensor,
    gallery: Tensor,
    labels: Labels,
    metric: str = "euclidean",
    aps: Iterable[str] = (INTERPOLATED,),
    max_rank: int = MAX_RANK,
    device: torch.device | str = "cpu",
) -> dict[str, Ranking]:
    """`rank_distances` for features, without ever holding the whole distance matrix.

    Args:
        queries: features `[queries, channels]`.
        gallery: features `[gallery, channels]`.
        labels: identities and cameras as in `rank_distances`: `(q_pids, g_pids, q_camids, g_camids)`.
        metric: `euclidean` (squared) or `cosine` (1 - similarity), torchreid's.
        aps: average precisions, see `rank_distances`; each further one costs almost nothing.
        max_rank: longest CMC curve.
        device: where distances are computed and ranked.

    Returns:
        Per average precision.

    Raises:
        ConfigError: unknown average precision or metric.
        DataError: see `rank_distances`.
    """
    if 0 in (len(queries), len(gallery)):
        raise DataError(f"there are {len(queries)} queries and {len(gallery)} gallery entries; at least one of each")
    shape = (len(queries), len(gallery))
    return rank_parts(distance_parts(queries, gallery, metric, device), shape, labels, aps, max_rank)


def distance_parts(
    queries: Tensor, gallery: Tensor, metric: str = "euclidean", device: torch.device | str = "cpu"
) -> Iterator[QueryPart]:
    """torchreid's distances of a few queries at a time, on `device`; arguments of `rank_features`.

    Raises:
        ConfigError: unknown metric.
    """
    if metric not in METRICS:
        raise ConfigError(f"distance is '{metric}'; allowed: {', '.join(METRICS)}")
    gallery, rows = gallery.to(device), rows_at_once(len(gallery))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        yield part, torchreid.metrics.compute_distance_matrix(queries[part].to(device), gallery, metric)


def distance_matrix(queries: Tensor, gallery: Tensor, metric: str = "cosine") -> np.ndarray:
    """All of torchreid's distances at once, `[queries, gallery]`; arguments of `rank_features`."""
    return torchreid.metrics.compute_distance_matrix(queries, gallery, metric).numpy()


def rows_at_once(gallery: int) -> int:
    """Number of queries whose distances to a gallery of this size are in memory at a time."""
    return max(1, PAIRS_AT_ONCE // gallery)


# ---- places ----------------------------------------------------------------------------------------------------------


def rank_parts(
    parts: Iterable[QueryPart],
    shape: tuple[int, int],
    labels: Labels,
    aps: Iterable[str],
    max_rank: int = MAX_RANK,
) -> dict[str, Ranking]:
    """CMC and mean AP of distances that come in parts.

    Args:
        parts: in any order, every query once.
        shape: `(queries, gallery)`.
        labels: see `rank_features`.
        aps: see `rank_features`.
        max_rank: longest CMC curve.
    """
    aps = tuple(aps)
    for ap in aps:
        if ap not in (INTERPOLATED, TRAPEZOID):
            raise ConfigError(f"average precision is '{ap}'; allowed: {INTERPOLATED}, {TRAPEZOID}")
    gallery = _checked_gallery(shape, labels)
    found = [_places_of(distances, gallery, part) for part, distances in parts]
    query, place = (np.concatenate(lists) for lists in zip(*found, strict=True))
    if not len(query):
        raise DataError(
            f"none of {shape[0]} queries has a match among {shape[1]} gallery entries that are not of its own camera; "
            "check the labels, or leave the cameras out where there are none"
        )
    length = min(max_rank, shape[1])
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    curve = np.bincount(place[starts] - 1, minlength=length).cumsum()[:length] / len(starts)
    counts = np.diff(starts, append=len(place))
    mean_inp = float((counts / place[starts + counts - 1]).mean())
    return {ap: Ranking(curve, _mean_ap(place, starts, ap), mean_inp) for ap in aps}


def _mean_ap(place: np.ndarray, starts: np.ndarray, ap: str) -> float:
    """Mean over queries of the mean precision at their matches.

    Args:
        place: of every match, from 1, in increasing order within a query.
        starts: where each query's matches begin.
        ap: which precision.
    """
    counts = np.diff(starts, append=len(place))
    hits = np.arange(len(place)) - np.repeat(starts, counts) + 1
    precision = hits / place
    if ap == TRAPEZOID:
        before = np.where(place == 1, 1.0, (hits - 1) / np.maximum(place - 1, 1))
        precision = (precision + before) / 2
    return float((np.add.reduceat(precision, starts) / counts).mean())


class _Gallery:
    """Labels of both sides, and the gallery ordered by identity, so that matches are contiguous.

    Attributes:
        q_pids: of each query.
        camids: of queries and gallery; `None` if cameras leave nothing out.
        by_pid: gallery entries in the order of their identities.
    """

    def __init__(self, q_pids: np.ndarray, g_pids: np.ndarray, camids: tuple[np.ndarray, np.ndarray] | None) -> None:
        self.q_pids, self.camids = q_pids, camids
        self.by_pid = np.argsort(g_pids, kind="stable")
        self._sorted_pids = g_pids[self.by_pid]

    def matches(self, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every pair of a query of a part and a gallery entry of its identity.

        Returns:
            `(query, entry, counts)`: query within the part, gallery entry, and whether the pair is a match; one of
            the same camera is left out.
        """
        pids = self.q_pids[part]
        first, last = (np.searchsorted(self._sorted_pids, pids, side) for side in ("left", "right"))
        query = np.repeat(np.arange(len(pids)), last - first)
        offset = np.arange(len(query)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        entry = self.by_pid[first[query] + offset]
        if self.camids is None:
            return query, entry, np.ones(len(query), bool)
        q_camids, g_camids = self.camids
        return query, entry, q_camids[part][query] != g_camids[entry]


def _checked_gallery(shape: tuple[int, int], labels: Labels) -> _Gallery:
    q_pids, g_pids, q_camids, g_camids = labels
    if (q_camids is None) != (g_camids is None):
        raise DataError("cameras are given of one side only; give those of queries and gallery, or of neither")
    pids = _checked_labels(shape, "pids", q_pids, g_pids)
    camids = None if q_camids is None else _checked_labels(shape, "camids", q_camids, g_camids)
    return _Gallery(*pids, camids)


def _checked_labels(shape: tuple[int, int], kind: str, queries: Any, gallery: Any) -> tuple[np.ndarray, np.ndarray]:
    sides = np.asarray(queries), np.asarray(gallery)
    for side, labels, count in zip("qg", sides, shape, strict=True):
        if labels.shape != (count,):
            raise DataError(
                f"{side}_{kind} has shape {labels.shape}, and the distance matrix is of {shape[0]} queries and "
                f"{shape[1]} gallery entries; there must be one label for each"
            )
    return sides


def _places_of(distances: Tensor, gallery: _Gallery, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Query and place of every match of a part, in the order of queries and places.

    A match's place is 1 more than the number of distances below its own, without those that are left out.
    """
    ordered = _sorted_rows(distances)
    if torch.isnan(ordered[:, -1]).any():
        count = int(torch.isnan(distances).sum())
        raise DataError(f"{count} of {distances.numel()} distances are not numbers")
    query, entry, counts = gallery.matches(part)
    index = [torch.from_numpy(array).to(distances.device) for array in (query, entry)]
    below, upto = _counted(ordered, index[0], distances[index[0], index[1]])
    tied = np.zeros(len(distances), bool)
    tied[query[upto - below > 1]] = True
    for row in np.flatnonzero(tied):
        own = query == row
        below[own] = np.argsort(np.argsort(distances[row].cpu().numpy()))[entry[own]]
    order = np.lexsort((below, query))
    query, below, counts = query[order], below[order], counts[order]
    left_out = np.cumsum(~counts)
    starts = np.searchsorted(query, query)
    before = left_out - left_out[starts] + ~counts[starts]  # within the query
    return query[counts] + part.start, (below + 1 - before)[counts]


def _sorted_rows(distances: Tensor) -> Tensor:
    """Rows in increasing order, NaN at the end. On the CPU NumPy sorts faster than torch."""
    if distances.device.type == "cpu":
        return torch.from_numpy(np.sort(distances.detach().numpy(), axis=1))
    return distances.sort(dim=1).values


def _counted(ordered: Tensor, query: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How many entries of a query's row are below a value, and how many are not above it."""
    counts = torch.bincount(query, minlength=len(ordered))
    column = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    wanted = ordered.new_zeros(len(ordered), max(1, int(counts.max())))
    wanted[query, column] = values
    sides = (torch.searchsorted(ordered, wanted, right=right)[query, column] for right in (False, True))
    below, upto = (side.cpu().numpy() for side in sides)
    return below, upto
