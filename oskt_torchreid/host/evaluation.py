"""One target's evaluation: what torchreid's computes and prints, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .compat import logger, torchreid
from .ranking import INTERPOLATED, REPORTED_RANKS, Ranking, distance_matrix, distance_parts, rank_parts
from .reranking import Reranking


@torch.no_grad()
def evaluate_target(
    engine: Any,
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
) -> Ranking:
    """CMC and mean AP of one target; arguments, numbers and report are those of torchreid's engine.

    The whole distance matrix is held only for pictures of rankings (``visrank``) and for CUHK03's classic protocol.
    Galleries may be short, also where queries have different numbers of entries left.

    Args:
        engine: extracts features; its data manager knows the pictures.
        dataset_name: of the target.
        query_loader: batches of queries.
        gallery_loader: batches of the gallery.
        dist_metric: ``euclidean`` or ``cosine``.
        normalize_feature: features of unit length.
        visrank: write pictures of the first places.
        visrank_topk: how many places.
        save_dir: folder of the pictures.
        use_metric_cuhk03: CUHK03's classic protocol.
        ranks: places of the CMC curve to report.
        rerank: k-reciprocal re-ranking.
    """
    queries, q_pids, q_camids = _features(engine, query_loader)
    gallery, g_pids, g_camids = _features(engine, gallery_loader)
    if normalize_feature:
        queries, gallery = functional.normalize(queries), functional.normalize(gallery)
    labels = (q_pids, g_pids, q_camids, g_camids)
    chosen = Reranking(queries, gallery, dist_metric, device=engine.device) if rerank else None
    if visrank or use_metric_cuhk03:
        distmat = chosen.matrix() if chosen else distance_matrix(queries, gallery, dist_metric)
        parts = [(slice(0, len(queries)), torch.from_numpy(distmat))]
    else:
        parts = chosen.parts() if chosen else distance_parts(queries, gallery, dist_metric, engine.device)
    if use_metric_cuhk03:
        ranking = Ranking(*torchreid.metrics.evaluate_rank(distmat, *labels, use_metric_cuhk03=True))
    else:
        shape = (len(queries), len(gallery))
        ranking = rank_parts(parts, shape, labels, (INTERPOLATED,))[INTERPOLATED]
    logger.info("%s: mAP: %.1f%%, %s", dataset_name, 100 * ranking.mean_ap, _curve_text(ranking, ranks))
    if visrank:
        _visualize(engine, dataset_name, distmat, save_dir, visrank_topk)
    return ranking


def _features(engine: Any, loader: Iterable[Any]) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Features ``[images, channels]`` on the CPU, identities and cameras."""
    features, pids, camids = [], [], []
    for batch in loader:
        images, own_pids, own_camids = engine.parse_data_for_eval(batch)
        features.append(engine.extract_features(images).float().cpu())
        pids += own_pids.tolist()
        camids += own_camids.tolist()
    return torch.cat(features), np.asarray(pids), np.asarray(camids)


def _curve_text(ranking: Ranking, ranks: Sequence[int]) -> str:
    return ", ".join(f"rank-{place}: {100 * ranking.at(place):.1f}%" for place in ranks)


def _visualize(engine: Any, dataset_name: str, distmat: np.ndarray, save_dir: str, topk: int) -> None:
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
