"""Clusters of channels (paper: chain initialisation): which teacher channels share one chain row.

Each group's channels are clustered once, jointly over every layer that produces the group: the flattened rows of those
layers are concatenated, `[N, columns_1 + columns_2 + ...]`, and Ward's agglomerative method cuts them into `K`
clusters. Every convolution group of a grouped convolution is a separate channel group; so is every head of an
attention, whose rows are the concatenated rows of its queries, keys and values.

Balanced clustering makes all clusters of a group equally large, wherever a layer norm or group norm reads the group.
These norms count merged channels once, so that a student is exact only if every slot stands for equally many channels:
with balanced clusters, at every width that divides `N` and is a multiple of `K`. Other groups gain nothing from it, and
keep Ward's clusters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from torch import Tensor

from ..errors import ChainError, ConfigError
from ..graph import ChannelGraph, ChannelGroup, Tie
from .contributions import Contributions
from .narrowing import rows_first
from .nesting import Tree, check_finite, flat_tree, ward_tree

logger = logging.getLogger(__name__)

CLUSTERINGS = ("ward", "balanced")
Clustering = Callable[[Tensor, int], np.ndarray]
"""Maps rows `[N, columns]` and a number of clusters to labels `[N]`, in any numbering."""
_ROUNDS = 20  # of balancing; it usually converges in a few


def cluster_teacher(
    graph: ChannelGraph,
    state: Mapping[str, Tensor],
    widths: Mapping[str, int],
    normalize_rows: bool = False,
    clustering: str | Clustering = "ward",
) -> dict[str, np.ndarray]:
    """Clusters every group of a teacher.

    Args:
        graph: the teacher's channel graph.
        state: the teacher's state dict; not changed.
        widths: number of clusters `K` per group name.
        normalize_rows: scale each layer's rows to unit length first (the paper's choice for ViTs).
        clustering: `ward`; `balanced` for equally large clusters under norms over channels; or a function of rows
            and a number of clusters.

    Returns:
        `teacher_to_chain` per group name, shape `[N]`: clusters are numbered by their first channel.

    Raises:
        ConfigError: an unknown clustering.
        ChainError: weights that are not finite, or labels of a function that are not of so many clusters.
    """
    if not callable(clustering) and clustering not in CLUSTERINGS:
        raise ConfigError(f"clustering is '{clustering}'; allowed: {', '.join(CLUSTERINGS)}")
    producers = _producers(graph)
    balanced = _under_norms(graph) if clustering == "balanced" else frozenset()
    labels_of = clustering if callable(clustering) else ward_labels
    result = {}
    for index, group in enumerate(graph.groups):
        width = widths[group.name]
        if width in (1, group.size):
            result[group.name] = np.arange(group.size) % width
        else:
            rows = group_rows(graph, group, producers[index], state, normalize_rows)
            labels = _numbered_by_first_row(_checked(labels_of(rows, width), group, width))
            result[group.name] = balanced_labels(rows, labels) if index in balanced else labels
    return result


def cluster_trees(
    graph: ChannelGraph,
    state: Mapping[str, Tensor],
    normalize_rows: bool = False,
    contributions: Mapping[str, Contributions] | None = None,
) -> tuple[dict[str, Tree], dict[str, np.ndarray]]:
    """Ward's hierarchy of every group of a teacher: `cluster_teacher` is its cut at one width, see `nesting.py`.

    Args:
        graph: the teacher's channel graph.
        state: the teacher's state dict; not changed.
        normalize_rows: give each layer's rows unit length first.
        contributions: per group name, what channels are clustered by instead of their rows.

    Returns:
        The hierarchies by group name; and, with contributions, the importance of each channel, `[N]`.

    Raises:
        ChainError: weights that are not finite.
    """
    producers = _producers(graph)
    trees, importance = {}, {}
    for index, group in enumerate(graph.groups):
        given = (contributions or {}).get(group.name)
        if given is None:
            rows = group_rows(graph, group, producers[index], state, normalize_rows)
            given = Contributions(rows, rows.new_ones(group.size))
        trees[group.name] = flat_tree(group.size) if group.fixed else ward_tree(*given)
        importance[group.name] = given.importance.float().numpy()
    return trees, importance if contributions else {}


def _checked(labels: Any, group: ChannelGroup, width: int) -> np.ndarray:
    """Labels of any clustering function as an array; raises `ChainError` unless they are of `width` clusters."""
    found = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    whole = found.shape == (group.size,) and np.issubdtype(found.dtype, np.integer)
    if not whole or len(np.unique(found)) != width:
        got = f"{len(np.unique(found))} clusters" if whole else f"{found.dtype} of shape {found.shape}"
        raise ChainError(
            f"the clustering function gave {got} for group '{group.name}'; it must give a whole number for each of "
            f"{group.size} rows, {width} different ones"
        )
    return found


def _under_norms(graph: ChannelGraph) -> frozenset[int]:
    """Indices of the groups that a norm over channels reads."""
    return frozenset(int(i) for norm in graph.norms for i in np.unique(graph.group_of_channel[norm.channels]))


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
    """Rows of a group's channels over all its producers, concatenated, `[N, columns]` in float64."""
    parts = []
    for tie in ties:
        flat = tie.channels.reshape(-1)
        positions = np.flatnonzero(np.isin(flat, group.channels))
        positions = positions[np.argsort(flat[positions], kind="stable")]  # channel by channel, occurrences in order
        tensor = state[tie.tensor].detach()
        tensor = rows_first(tensor, tie) if tie.tensor in graph.matrices else tensor.movedim(tie.dimension, 0)
        rows = tensor.reshape(tensor.shape[0], -1)[torch.from_numpy(positions).to(tensor.device)].double().cpu()
        rows = torch.nn.functional.normalize(rows, dim=1) if normalize_rows else rows
        parts.append(rows.reshape(group.size, -1))
    return torch.cat(parts, dim=1)


def ward_labels(rows: Tensor, count: int) -> np.ndarray:
    """Ward's agglomerative clustering of `rows` (`[N, columns]`, float64) into exactly `count` clusters.

    Returns:
        Labels `[N]`; clusters are numbered by their first row, so equal partitions give equal labels.

    Raises:
        ChainError: a row that is not finite.
    """
    check_finite(rows)
    distances = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0).numpy()
    merges = linkage(squareform(distances, checks=False), method="ward")
    return _cut(merges[:, :2].astype(np.int64), len(rows), count)


def _cut(merges: np.ndarray, num_rows: int, count: int) -> np.ndarray:
    """Labels after the first `num_rows - count` merges; merge `i` joins two nodes into node `num_rows + i`."""
    done = merges[: num_rows - count]
    parents = num_rows + np.arange(len(done))
    links = coo_matrix(
        (np.ones(2 * len(done), np.int8), (done.T.reshape(-1), np.tile(parents, 2))), shape=(2 * num_rows, 2 * num_rows)
    )
    _, component = connected_components(links, directed=False)
    return _numbered_by_first_row(component[:num_rows])


def balanced_labels(rows: Tensor, labels: np.ndarray) -> np.ndarray:
    """Clusters of equal size near given ones: k-means with a fixed number of seats per cluster.

    Each round assigns the rows to seats so that the sum of squared distances to the clusters' means is least (the
    Hungarian method), then moves the means; neither step can raise the sum. It ends when nothing changes. If `N` is not
    a multiple of `K`, the clusters that were largest have one more member.

    Args:
        rows: `[N, columns]`, float64.
        labels: clusters to start from, `[N]`, such as Ward's.

    Returns:
        Labels `[N]`, clusters numbered by their first row. Deterministic.

    Example: rows 0, 1, 2, 9 in clusters `[0, 0, 0, 1]` become `[0, 0, 1, 1]`.
    """
    sizes = np.bincount(labels)
    base, extra = divmod(len(labels), len(sizes))
    seats = np.full(len(sizes), base)
    seats[np.argsort(-sizes, kind="stable")[:extra]] += 1
    cluster_of_seat = np.repeat(np.arange(len(sizes)), seats)
    products = (rows @ rows.T).numpy()
    for _ in range(_ROUNDS):
        _, seat = linear_sum_assignment(_distances_to_means(products, labels)[:, cluster_of_seat])
        previous, labels = labels, cluster_of_seat[seat]
        if np.array_equal(labels, previous):
            break
    return _numbered_by_first_row(labels)


def _distances_to_means(products: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared distance of each row to each cluster's mean, up to a constant per row, from the rows' scalar products."""
    share = (labels[:, None] == np.arange(labels.max() + 1)) / np.bincount(labels)
    to_means = products @ share
    return (share * to_means).sum(0) - 2 * to_means


def _numbered_by_first_row(labels: np.ndarray) -> np.ndarray:
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    by_first_row = np.empty(len(first), np.int64)
    by_first_row[np.argsort(first)] = np.arange(len(first))
    return by_first_row[label]
