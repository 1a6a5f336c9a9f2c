"""One target's evaluation: the numbers and the report of torchreid's, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..batches import batches_of, check_items
from .compat import logger, torchreid
from .distributed import is_rank_zero
from .ranked_lists import RankedLists, ranked_lists
from .ranking import (
    INTERPOLATED,
    REPORTED_RANKS,
    Labels,
    QueryPart,
    Ranking,
    distance_matrix,
    distance_parts,
    rank_parts,
)
from .reranking import Reranking

RERANKED = "reranked_"  # before the names of numbers from re-ranked distances


class Extractor(Protocol):
    """The part of an engine that an evaluation needs."""

    device: torch.device
    datamanager: Any

    def parse_data_for_eval(self, data: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Images, identities and cameras of a batch."""

    def extract_features(self, input: Tensor) -> Tensor:
        """Features `[batch, channels]` of images."""


class Rankings(NamedTuple):
    """The ranking of one target by feature distances, by re-ranked ones if requested, and some lists to look at."""

    plain: Ranking
    reranked: Ranking | None = None
    lists: RankedLists | None = None

    def numbers(self, ranks: Sequence[int] = REPORTED_RANKS) -> dict[str, float]:
        """`mAP`, `mINP`, `rank1` and further ranks as fractions, and the same with the prefix `reranked_`.

        CUHK03's classic protocol has no `mINP`.
        """
        found = {}
        for prefix, ranking in (("", self.plain), (RERANKED, self.reranked)):
            if ranking is not None:
                found[f"{prefix}mAP"] = float(ranking.mean_ap)
                if not np.isnan(ranking.mean_inp):
                    found[f"{prefix}mINP"] = float(ranking.mean_inp)
                found |= {f"{prefix}rank{place}": ranking.at(place) for place in sorted({1, *ranks})}
        return found


@torch.no_grad()
def evaluate_target(
    engine: Extractor,
    dataset_name: str,
    query_loader: Iterable[Any],
    gallery_loader: Iterable[Any],
    dist_metric: str = "euclidean",
    normalize_feature: bool = False,
    visrank: bool = False,
    visrank_topk: int = 10,
    save_dir: str = "",
    use_metric_cuhk03: bool = False,
    ranks: Sequence[int] = REPORTED_RANKS,
    rerank: bool = False,
) -> Rankings:
    """CMC and mean AP of one target; arguments, numbers and report are those of torchreid's engine.

    The whole distance matrix is held only for pictures of rankings (`visrank`) and for CUHK03's classic protocol.
    Galleries may be short, even if different queries have different numbers of entries left.

    Args:
        engine: extracts features; its data manager knows the pictures.
        dataset_name: of the target.
        query_loader: batches of queries.
        gallery_loader: batches of the gallery.
        dist_metric: `euclidean` or `cosine`.
        normalize_feature: features of unit length.
        visrank: write pictures of the first places, of the re-ranked ones if there are any.
        visrank_topk: how many places.
        save_dir: folder of the pictures.
        use_metric_cuhk03: CUHK03's classic protocol.
        ranks: places of the CMC curve to report.
        rerank: k-reciprocal re-ranking as well.

    Returns:
        The plain ranking, the re-ranked one if requested, and the first places of some queries.
    """
    queries, gallery, labels = target_features(engine, query_loader, gallery_loader)
    if normalize_feature:
        queries, gallery = functional.normalize(queries), functional.normalize(gallery)
    whole = visrank or use_metric_cuhk03
    distances = distance_matrix(queries, gallery, dist_metric) if whole else None
    parts = distance_parts(queries, gallery, dist_metric, engine.device) if distances is None else _parts_of(distances)
    plain = _ranked(parts, distances, labels, use_metric_cuhk03)
    logger.info("%s: %s", dataset_name, _in_words(plain, ranks))
    reranked = None
    if rerank:
        chosen = Reranking(queries, gallery, dist_metric, device=engine.device)
        distances = chosen.matrix() if whole else None
        parts = chosen.parts() if distances is None else _parts_of(distances)
        reranked = _ranked(parts, distances, labels, use_metric_cuhk03)
        logger.info("%s, re-ranked: %s", dataset_name, _in_words(reranked, ranks))
    if visrank and distances is not None and is_rank_zero():
        _visualize(engine, dataset_name, distances, save_dir, visrank_topk)
    return Rankings(plain, reranked, ranked_lists(queries, gallery, labels, dist_metric))


@torch.no_grad()
def target_features(
    engine: Extractor, query_loader: Iterable[Any], gallery_loader: Iterable[Any]
) -> tuple[Tensor, Tensor, Labels]:
    """Features `[images, channels]` of a target's queries and gallery, on the CPU, and their labels."""
    queries, q_pids, q_camids = _features(engine, query_loader)
    gallery, g_pids, g_camids = _features(engine, gallery_loader)
    return queries, gallery, (q_pids, g_pids, q_camids, g_camids)


def _parts_of(distances: np.ndarray) -> Iterable[QueryPart]:
    """A whole distance matrix in the form of its parts."""
    return [(slice(0, len(distances)), torch.from_numpy(distances))]


def _ranked(parts: Iterable[QueryPart], distances: np.ndarray | None, labels: Labels, cuhk03: bool) -> Ranking:
    """The ranking of distances that come in parts; CUHK03's classic protocol takes all of them at once."""
    if cuhk03:
        np.random.seed(0)  # it repeatedly draws one picture of each identity; the engine restores the random state
        return Ranking(*torchreid.metrics.evaluate_rank(distances, *labels, use_metric_cuhk03=True))
    shape = (len(labels[0]), len(labels[1]))
    return rank_parts(parts, shape, labels, (INTERPOLATED,))[INTERPOLATED]


def _features(engine: Extractor, loader: Iterable[Any]) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Features `[images, channels]` on the CPU, identities and cameras."""
    features, pids, camids = [], [], []
    for batch in batches_of(loader):
        check_items(batch)
        images, own_pids, own_camids = engine.parse_data_for_eval(batch)
        features.append(engine.extract_features(images).float().cpu())
        pids += own_pids.tolist()
        camids += own_camids.tolist()
    return torch.cat(features), np.asarray(pids), np.asarray(camids)


def _in_words(ranking: Ranking, ranks: Sequence[int]) -> str:
    penalty = {} if np.isnan(ranking.mean_inp) else {"mINP": ranking.mean_inp}
    numbers = {"mAP": ranking.mean_ap, **penalty, **{f"rank-{place}": ranking.at(place) for place in ranks}}
    return ", ".join(f"{name}: {100 * value:.1f}%" for name, value in numbers.items())


def _visualize(engine: Extractor, dataset_name: str, distmat: np.ndarray, save_dir: str, topk: int) -> None:
    manager = engine.datamanager
    torchreid.utils.visualize_ranked_results(
        distmat,
        manager.fetch_test_loaders(dataset_name),
        manager.data_type,
        width=manager.width,
        height=manager.height,
        save_dir=str(Path(save_dir) / f"visrank_{dataset_name}"),
        topk=topk,
    )
