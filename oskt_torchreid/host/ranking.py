"""CMC and average precision: what torchreid's evaluation computes and does not return, and both as plain functions."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import ConfigError, DataError
from .compat import torchreid

MAX_RANK = 50  # length of torchreid's CMC curve
REPORTED_RANKS = (1, 5, 10, 20)


@contextlib.contextmanager
def recorded_ranking() -> Iterator[list[tuple[np.ndarray, float]]]:
    """Inside the block, keeps the (CMC curve, mAP) of every evaluation, of which torchreid returns rank-1 and mAP.

    Yields:
        List that grows by one entry per evaluated target, in order.
    """
    rankings: list[tuple[np.ndarray, float]] = []
    original = torchreid.metrics.evaluate_rank

    def recording(distmat: Any, q_pids: Any, g_pids: Any, q_camids: Any, g_camids: Any, **kwargs: Any) -> Any:
        _check_gallery(q_pids, g_pids, q_camids, g_camids)
        rankings.append(original(distmat, q_pids, g_pids, q_camids, g_camids, **kwargs))
        return rankings[-1]

    torchreid.metrics.evaluate_rank = recording
    try:
        yield rankings
    finally:
        torchreid.metrics.evaluate_rank = original


def _check_gallery(q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray) -> None:
    """Raises DataError where torchreid's CMC curves would have different lengths, which NumPy cannot stack."""
    same_view = Counter(zip(g_pids.tolist(), g_camids.tolist(), strict=True))
    views = set(zip(q_pids.tolist(), q_camids.tolist(), strict=True))
    left = [len(g_pids) - same_view[view] for view in views]
    lengths = {min(count, MAX_RANK) for count in left}
    if len(lengths) > 1 or min(lengths) < REPORTED_RANKS[-1]:
        raise DataError(
            f"a query has {min(left)} gallery images left of {len(g_pids)} once those of its own identity and camera "
            f"are ignored; torchreid's evaluation needs {MAX_RANK}: add gallery images"
        )


# ---- functions of plain arrays ---------------------------------------------------------------------------------------

INTERPOLATED, TRAPEZOID = "interpolated", "trapezoid"
_PAIRS_AT_ONCE = 1 << 20  # of a distance matrix, which bounds the memory of its sorted copies


class Ranking(NamedTuple):
    """A CMC curve, ``cmc[k]`` the share of queries with a match among the first ``k + 1``, and the mean AP."""

    cmc: np.ndarray
    mean_ap: float


def rank(
    distmat: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any = None,
    g_camids: Any = None,
    ap: str = INTERPOLATED,
    max_rank: int = MAX_RANK,
) -> Ranking:
    """CMC and mean average precision of a distance matrix, as Market-1501's protocol defines them.

    A query's gallery leaves out what shows its identity in its own camera; a query without a match in what is left
    counts for nothing. Equal distances keep the order that torchreid's evaluation gives them.

    Args:
        distmat: ``[queries, gallery]``, an array or a tensor on the CPU.
        q_pids: identity of each query ``[queries]``.
        g_pids: identity of each gallery entry ``[gallery]``.
        q_camids: camera of each query; ``None``, for both sides: nothing is left out.
        g_camids: camera of each gallery entry.
        ap: ``interpolated``, torchreid's: the mean of the precision at every match; ``trapezoid``, Market-1501's first
            script and VKD's: the mean of the precision at a match and just before it (1 before the first place).
        max_rank: longest CMC curve.

    Returns:
        ``(cmc, mean_ap)``; the curve has ``min(max_rank, gallery)`` entries.

    Raises:
        ConfigError: unknown ``ap``.
        DataError: empty sides, lengths that do not belong together, distances that are not numbers, or no query with a
            match.

    Example: a gallery of 4 in which the second and third place match: the precisions are 1/2 and 2/3, just before them
    0 and 1/2; the AP is 7/12 interpolated and ``((1/2 + 0) + (2/3 + 1/2)) / 4 = 5/12`` by trapezoids, and the CMC curve
    ``(0, 1, 1, 1)``.
    """
    if ap not in (INTERPOLATED, TRAPEZOID):
        raise ConfigError(f"average precision is '{ap}'; allowed: {INTERPOLATED}, {TRAPEZOID}")
    distances = np.asarray(distmat)
    sides = _checked_sides(distances, q_pids, g_pids, q_camids, g_camids)
    rows = max(1, _PAIRS_AT_ONCE // distances.shape[1])
    parts = [
        _rank_queries(distances[start : start + rows], sides, slice(start, start + rows), ap)
        for start in range(0, len(distances), rows)
    ]
    precisions, first_places = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not len(precisions):
        raise DataError(
            f"none of {len(distances)} queries has a match among {distances.shape[1]} gallery entries that are not of "
            "its own camera; check the labels, or leave the cameras out where there are none"
        )
    length = min(max_rank, distances.shape[1])
    cmc = np.bincount(first_places, minlength=length).cumsum()[:length] / len(first_places)
    return Ranking(cmc, float(precisions.mean()))


class _Sides(NamedTuple):
    """Labels of both sides; cameras are ``None`` where they leave nothing out."""

    q_pids: np.ndarray
    g_pids: np.ndarray
    q_camids: np.ndarray | None
    g_camids: np.ndarray | None


def _checked_sides(distances: np.ndarray, q_pids: Any, g_pids: Any, q_camids: Any, g_camids: Any) -> _Sides:
    if distances.ndim != 2 or 0 in distances.shape:
        raise DataError(
            f"the distance matrix has shape {distances.shape}; it must be [queries, gallery] with at least one of each"
        )
    if np.isnan(distances).any():
        raise DataError(f"{int(np.isnan(distances).sum())} of {distances.size} distances are not numbers")
    if (q_camids is None) != (g_camids is None):
        raise DataError("cameras are given of one side only; give those of queries and gallery, or of neither")
    given = (q_pids, g_pids, q_camids, g_camids)
    sides = _Sides(*(None if labels is None else np.asarray(labels) for labels in given))
    for name, labels, count in zip(sides._fields, sides, distances.shape * 2, strict=True):
        if labels is not None and labels.shape != (count,):
            raise DataError(
                f"{name} has shape {labels.shape}, and the distance matrix is of {distances.shape[0]} queries and "
                f"{distances.shape[1]} gallery entries; there must be one label for each"
            )
    return sides


def _rank_queries(distances: np.ndarray, sides: _Sides, part: slice, ap: str) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and place of the first match of those of some queries that have one."""
    order = np.argsort(distances, axis=1)  # torchreid's own call: equal distances are ordered alike
    matches = sides.g_pids[order] == sides.q_pids[part, None]
    kept = np.ones_like(matches)
    if sides.q_camids is not None:
        kept = ~(matches & (sides.g_camids[order] == sides.q_camids[part, None]))
    matches &= kept
    found = matches.any(axis=1)
    matches, kept = matches[found], kept[found]
    hits = matches.cumsum(axis=1)
    places = kept.cumsum(axis=1)  # of the kept ones, from 1
    precision = hits / np.maximum(places, 1)
    if ap == TRAPEZOID:
        before = np.where(places == 1, 1.0, (hits - 1) / np.maximum(places - 1, 1))
        precision = (precision + before) / 2
    average = np.where(matches, precision, 0).sum(axis=1) / np.maximum(hits[:, -1], 1)
    first = np.take_along_axis(places, matches.argmax(axis=1)[:, None], axis=1)[:, 0] - 1
    return average, first


def distance_matrix(queries: Tensor, gallery: Tensor, metric: str = "cosine") -> np.ndarray:
    """torchreid's distances ``[queries, gallery]``: ``cosine`` (1 - similarity) or ``euclidean`` (squared).

    Args:
        queries: features ``[queries, channels]``.
        gallery: features ``[gallery, channels]``.
        metric: name of the distance.
    """
    return torchreid.metrics.compute_distance_matrix(queries, gallery, metric).numpy()
