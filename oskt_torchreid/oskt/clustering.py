"""Chain initialisation (paper 1.2 of the method notes: clustering): which teacher channels share one chain row.

Each group's channels are clustered once, jointly over every layer that produces the group: the flattened rows of those
layers stand side by side, ``[N, columns_1 + columns_2 + ...]``, and Ward's agglomerative method cuts them into ``K``
clusters. Where a convolution is grouped, every convolution group is a channel group of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from torch import Tensor

from ..errors import ChainError
from ..graph import ChannelGraph, ChannelGroup, Tie
from .algebra import rows_first

logger = logging.getLogger(__name__)


def cluster_teacher(
    graph: ChannelGraph, state: Mapping[str, Tensor], widths: Mapping[str, int], normalize_rows: bool = False
) -> dict[str, np.ndarray]:
    """Clusters every group of a teacher.

    Args:
        graph: the teacher's channel graph.
        state: the teacher's state dict; not changed.
        widths: number of clusters ``K`` per group name.
        normalize_rows: give each layer's rows unit length first (the paper's choice for ViTs).

    Returns:
        ``teacher_to_chain`` per group name, shape ``[N]``: clusters are numbered by their first channel.
    """
    producers = _producers(graph)
    result = {}
    for index, group in enumerate(graph.groups):
        width = widths[group.name]
        if width in (1, group.size):
            result[group.name] = np.arange(group.size) % width
        else:
            rows = group_rows(graph, group, producers[index], state, normalize_rows)
            result[group.name] = ward_labels(rows, width)
    return result


def _producers(graph: ChannelGraph) -> list[list[Tie]]:
    """The row ties of matrices that produce each group; of vectors where no matrix does."""
    matrices: list[list[Tie]] = [[] for _ in graph.groups]
    vectors: list[list[Tie]] = [[] for _ in graph.groups]
    for tie in graph.ties:
        if tie.role == "row":
            kind = matrices if tie.tensor in graph.matrices else vectors
            for index in np.unique(graph.group_of_channel[tie.channels]):
                kind[index].append(tie)
    return [of_matrices or of_vectors for of_matrices, of_vectors in zip(matrices, vectors, strict=True)]


def group_rows(
    graph: ChannelGraph, group: ChannelGroup, ties: list[Tie], state: Mapping[str, Tensor], normalize_rows: bool
) -> Tensor:
    """Rows of a group's channels over all its producers, side by side, ``[N, columns]`` in float64."""
    parts = []
    for tie in ties:
        flat = tie.channels.reshape(-1)
        positions = np.flatnonzero(np.isin(flat, group.channels))
        positions = positions[np.argsort(flat[positions], kind="stable")]  # channel by channel, occurrences in order
        tensor = state[tie.tensor].detach()
        tensor = rows_first(tensor, tie) if tie.tensor in graph.matrices else tensor.movedim(tie.axis, 0)
        rows = tensor.reshape(tensor.shape[0], -1)[torch.from_numpy(positions).to(tensor.device)].double().cpu()
        rows = rows.reshape(group.size, -1)
        parts.append(torch.nn.functional.normalize(rows, dim=1) if normalize_rows else rows)
    return torch.cat(parts, dim=1)


def ward_labels(rows: Tensor, count: int) -> np.ndarray:
    """Ward's agglomerative clustering of ``rows`` (``[N, columns]``, float64) into exactly ``count`` clusters.

    Returns:
        Labels ``[N]``; clusters are numbered by their first row, so equal partitions give equal labels.

    Raises:
        ChainError: a row that is not finite.
    """
    if not torch.isfinite(rows).all():
        raise ChainError("the teacher has weights that are NaN or infinite; a chain needs a sound teacher checkpoint")
    distances = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0).numpy()
    merges = linkage(squareform(distances, checks=False), method="ward")
    return _cut(merges[:, :2].astype(np.int64), len(rows), count)


def _cut(merges: np.ndarray, num_rows: int, count: int) -> np.ndarray:
    """Labels after the first ``num_rows - count`` merges, each of which makes node ``num_rows + i`` of two nodes."""
    done = merges[: num_rows - count]
    parents = num_rows + np.arange(len(done))
    links = coo_matrix(
        (np.ones(2 * len(done), np.int8), (done.T.reshape(-1), np.tile(parents, 2))), shape=(2 * num_rows, 2 * num_rows)
    )
    _, component = connected_components(links, directed=False)
    _, first, label = np.unique(component[:num_rows], return_index=True, return_inverse=True)
    by_first_row = np.empty(len(first), np.int64)
    by_first_row[np.argsort(first)] = np.arange(len(first))
    return by_first_row[label]
