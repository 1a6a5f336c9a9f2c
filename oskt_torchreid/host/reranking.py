"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) in bounded memory; torchreid's numbers.

torchreid holds several square matrices of all queries and gallery entries at a time. Here only their non-zero entries
are kept: the neighbours of each image, and the weights of its k-reciprocal ones. Distances are computed a few rows at a
time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..errors import ConfigError
from .compat import torchreid
from .ranking import QueryPart, rows_at_once

K1, K2, WEIGHT = 20, 6, 0.3


class Reranking:
    """Re-ranked distances of queries to a gallery.

    Args:
        queries: features `[queries, channels]`.
        gallery: features `[gallery, channels]`.
        metric: `euclidean` or `cosine`, as in `ranking.rank_features`.
        k1: number of neighbours searched for reciprocal ones.
        k2: number of neighbours that an image's weights are averaged over.
        weight: of the original distance; the rest is the weight of the Jaccard distance.
        device: where distances are computed.

    Raises:
        ConfigError: neighbours below 1, or a weight outside of [0, 1].
    """

    def __init__(
        self,
        queries: Tensor,
        gallery: Tensor,
        metric: str = "euclidean",
        k1: int = K1,
        k2: int = K2,
        weight: float = WEIGHT,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(k1, k2) < 1 or not 0 <= weight <= 1:
            raise ConfigError(f"re-ranking has k1={k1}, k2={k2}, weight={weight}; allowed: from 1, from 1, 0 to 1")
        self.num_queries, self.metric, self.weight = len(queries), metric, weight
        self._features = torch.cat([queries, gallery]).to(device)
        neighbours = self._neighbours(max(k1 + 1, k2))
        self._weights = self._reciprocal_weights(neighbours, k1)
        if k2 != 1:
            averaged = _chosen(neighbours[:, :k2]).multiply(1 / min(k2, len(self._features)))
            self._weights = (averaged.tocsr() @ self._weights).astype(np.float32)
        self._by_column = self._weights.tocsc()

    def parts(self) -> Iterator[QueryPart]:
        """Re-ranked distances `[queries, gallery]` of a few queries at a time."""
        for part, rows in self._rows(self.num_queries):
            jaccard = np.stack([self._jaccard(query) for query in range(part.start, part.start + len(rows))])
            mixed = jaccard * (1 - self.weight) + rows * self.weight
            yield part, torch.from_numpy(mixed[:, self.num_queries :].astype(np.float32))

    def matrix(self) -> np.ndarray:
        """All of them at once, `[queries, gallery]`."""
        return np.concatenate([part.numpy() for _, part in self.parts()])

    def _rows(self, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Squared distances of the first images to all, as shares of the largest one of each image."""
        step = rows_at_once(len(self._features))
        for start in range(0, stop, step):
            part = slice(start, min(start + step, stop))
            rows = torchreid.metrics.compute_distance_matrix(self._features[part], self._features, self.metric) ** 2
            yield part, (rows / rows.amax(dim=1, keepdim=True)).cpu().numpy()

    def _neighbours(self, count: int) -> np.ndarray:
        """The nearest images of each, itself among them, nearest first: `[images, count]`."""
        count = min(count, len(self._features))
        found = []
        for _, rows in self._rows(len(self._features)):
            nearest = np.argpartition(rows, count - 1, axis=1)[:, :count]
            order = np.argsort(np.take_along_axis(rows, nearest, 1), axis=1, kind="stable")
            found.append(np.take_along_axis(nearest, order, 1))
        return np.concatenate(found)

    def _reciprocal_weights(self, neighbours: np.ndarray, k1: int) -> sparse.csr_matrix:
        """Weights of each image's k-reciprocal neighbours, which add up to 1.

        Two images are reciprocal if each is among the other's nearest. A neighbour adds its own (half as many) if more
        than two thirds of these are the image's too.
        """
        reciprocal = _reciprocal(neighbours[:, : k1 + 1])
        halved = _reciprocal(neighbours[:, : int(np.around(k1 / 2)) + 1])
        shared = (reciprocal @ halved.T).multiply(reciprocal).tocsr()
        enough = shared.copy()
        sizes = np.asarray(halved.sum(axis=1), np.float64).ravel()
        enough.data = (shared.data > 2 / 3 * sizes[shared.indices]).astype(np.float32)
        expanded = (reciprocal + enough @ halved).tocsr()
        expanded.eliminate_zeros()
        expanded.sort_indices()
        for part, rows in self._rows(len(self._features)):
            own = slice(expanded.indptr[part.start], expanded.indptr[part.stop])
            lengths = np.diff(expanded.indptr[part.start : part.stop + 1])
            image = np.repeat(np.arange(len(rows)), lengths)
            closeness = np.exp(-rows[image, expanded.indices[own]])
            expanded.data[own] = closeness / np.bincount(image, closeness, minlength=len(rows))[image]
        return expanded

    def _jaccard(self, query: int) -> np.ndarray:
        """Jaccard distance of one image's weights to those of all: `1 - overlap / (2 - overlap)`."""
        own = slice(self._weights.indptr[query], self._weights.indptr[query + 1])
        columns, weights = self._weights.indices[own], self._weights.data[own]
        starts, stops = self._by_column.indptr[columns], self._by_column.indptr[columns + 1]
        lengths = stops - starts
        place = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        common = np.minimum(np.repeat(weights, lengths), self._by_column.data[place])
        overlap = np.bincount(self._by_column.indices[place], common, minlength=len(self._features))
        return 1 - overlap / (2 - overlap)


def _chosen(columns: np.ndarray) -> sparse.csr_matrix:
    """A matrix of ones at some columns of each row, `[images, images]`."""
    count, width = columns.shape
    pointers = np.arange(count + 1) * width
    return sparse.csr_matrix((np.ones(columns.size, np.float32), columns.reshape(-1), pointers), shape=(count, count))


def _reciprocal(neighbours: np.ndarray) -> sparse.csr_matrix:
    """Ones where two images are among each other's neighbours."""
    chosen = _chosen(neighbours)
    return chosen.multiply(chosen.T).tocsr()
