"""The cost of ranking: on random features of the sizes of Market-1501 and MSMT17, against torchreid's evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..host.compat import torchreid
from ..host.ranking import INTERPOLATED, Labels, Ranking, distance_matrix, rank_distances, rank_features, rank_parts
from ..host.reranking import Reranking
from .benchmark import in_fresh_process, process_memory

CHANNELS = 512


@dataclass(frozen=True)
class GallerySize:
    """Numbers of a test set's queries, gallery entries, identities and cameras."""

    queries: int
    gallery: int
    identities: int
    cameras: int


MARKET1501_SIZE = GallerySize(3368, 15913, 750, 6)
MSMT17 = GallerySize(11659, 82161, 3060, 15)


@dataclass(frozen=True)
class RankCost:
    """One way of ranking.

    Attributes:
        name: of the way.
        seconds: that it took.
        extra_bytes: peak memory beyond what its input takes; 0: not measured.
        mean_ap: the result.
        rank1: share of queries whose first place is a match.
    """

    name: str
    seconds: float
    extra_bytes: int
    mean_ap: float
    rank1: float


def made_up_sides(size: GallerySize, seed: int = 0) -> tuple[Tensor, Tensor, Labels]:
    """Features and labels of a size: identities are clusters that overlap."""
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(size.identities, CHANNELS, generator=random)
    sides, pids = [], []
    for count in (size.queries, size.gallery):
        own = torch.randint(0, size.identities, (count,), generator=random)
        sides.append(centers[own] + 3 * torch.randn(count, CHANNELS, generator=random))
        pids.append(own.numpy())
    (queries, gallery), (q_pids, g_pids) = sides, pids
    q_camids, g_camids = (torch.randint(0, size.cameras, (len(own),), generator=random).numpy() for own in pids)
    return queries, gallery, (q_pids, g_pids, q_camids, g_camids)


def compare_with_torchreid(size: GallerySize = MARKET1501_SIZE) -> list[RankCost]:
    """Ranks one distance matrix by torchreid's Python evaluation, by this package's, and only orders it."""
    queries, gallery, labels = made_up_sides(size)
    distances = distance_matrix(queries, gallery, "euclidean")
    theirs = _timed("torchreid, Python", lambda: torchreid.metrics.evaluate_rank(distances, *labels, use_cython=False))
    ours = _timed("this package", lambda: rank_distances(distances, *labels))
    start = time.perf_counter()
    np.argsort(distances, axis=1)
    return [theirs, ours, RankCost("argsort alone", time.perf_counter() - start, 0, 0, 0)]


def measure_memory(size: GallerySize = MSMT17, rerank: bool = False) -> RankCost:
    """Ranks features in a separate process, and measures its peak memory.

    Args:
        size: of the sides.
        rerank: by k-reciprocal re-ranking.
    """
    return in_fresh_process(_measured, size, rerank, torch.get_num_threads())


def _measured(size: GallerySize, rerank: bool, threads: int) -> RankCost:
    torch.set_num_threads(threads)
    queries, gallery, labels = made_up_sides(size)
    before = process_memory("VmRSS")

    def plain() -> Ranking:
        return rank_features(queries, gallery, labels)[INTERPOLATED]

    def reranked() -> Ranking:
        parts, shape = Reranking(queries, gallery).parts(), (len(queries), len(gallery))
        return rank_parts(parts, shape, labels, (INTERPOLATED,))[INTERPOLATED]

    cost = _timed("features, re-ranked" if rerank else "features", reranked if rerank else plain)
    extra = max(0, process_memory("VmHWM") - before)
    return RankCost(cost.name, cost.seconds, extra, cost.mean_ap, cost.rank1)


def _timed(name: str, action: Callable[[], Sequence[Any]]) -> RankCost:
    start = time.perf_counter()
    cmc, mean_ap, *_ = action()
    return RankCost(name, time.perf_counter() - start, 0, float(mean_ap), float(cmc[0]))
