"""The content of the authors' files, under this package's names, and its conversion to a weight chain.

Both families of files come down to the same three things: a trained teacher, a cluster for every channel, and a row for
every cluster. `resnet_format.py` and `vit_format.py` know where these are in the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..chain.chain import WeightChain
from ..chain.layout import AxisMap
from ..chain.narrowing import average_rows
from ..chain.network import trace
from ..chain.sstudent import Refinement
from ..errors import ZooError
from ..graph import ChannelGraph


@dataclass(frozen=True, eq=False)
class RowLabels:
    """Clusters of one matrix's rows.

    Attributes:
        key: key of the labels in the labels' file, for messages.
        clusters: cluster of each teacher row, `[N]`. Rows that belong to one channel (its query, key and value) have
            the same cluster.
        rows: row of the file's chain that stands for each teacher row, `[N]`; without queries, keys and values the
            same as `clusters`.
    """

    key: str
    clusters: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class OfficialContent:
    """An official folder, checked, under this package's names.

    Attributes:
        teacher: the network with the teacher's weights.
        input_size: `(channels, height, width)` to trace it with.
        labels: per tensor name of a matrix whose rows are clustered.
        rows: chain rows per tensor name, `[K, columns, ...]`, in the file's order; for a matrix without labels (the
            S-student's classifier) in the teacher's.
        vectors: full-length vectors `[N]` of the chain that are not the teacher's.
        statistics: the S-student's running statistics, of full length `[N]`.
        sstudent_vectors: full-length vectors that the S-student has and students do not take.
        attention: how the authors' students have their queries and keys, see `chain/narrowing.py`.
    """

    teacher: nn.Module
    input_size: tuple[int, int, int]
    labels: dict[str, RowLabels]
    rows: dict[str, Tensor]
    vectors: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    sstudent_vectors: dict[str, Tensor] = field(default_factory=dict)
    attention: str = "folded"

    def to_chain(self) -> WeightChain:
        """The weight chain that the files hold.

        Raises:
            ZooError: labels that disagree about a channel.
            ChainError: values that are not finite.
        """
        graph = trace(self.teacher, self.input_size)
        clusters = {tensor: labels.clusters for tensor, labels in self.labels.items()}
        keys = {tensor: labels.key for tensor, labels in self.labels.items()}
        teacher_to_chain = channel_labels(graph, clusters, keys)
        chain = WeightChain.from_labels(self.teacher, graph, teacher_to_chain, self.attention, vectors_over="slots")
        rows = dict(chain.rows)
        for name, given in self.rows.items():
            axis = chain.layout.axis(graph.row_ties[name])
            rows[name] = reordered(given, self.labels[name].rows, axis) if name in self.labels else given
        statistics = {
            name: average_rows(full, chain.layout.axis(graph.row_ties[name])) for name, full in self.statistics.items()
        }
        return chain.with_tensors(rows, {**chain.vectors, **self.vectors}, statistics)

    def to_refinement(self) -> Refinement:
        """Teacher and S-student as the authors' program saved them, for further refinement; errors of `to_chain`."""
        both = Refinement(self.teacher, self.to_chain(), vector_copies=bool(self.sstudent_vectors))
        with torch.no_grad():
            for name, vector in self.sstudent_vectors.items():
                both.sstudent.own_vectors[name.replace(".", "/")].copy_(vector)
        return both


def channel_labels(
    graph: ChannelGraph, clusters: Mapping[str, np.ndarray], keys: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Cluster of each channel per group, from clusters of the rows of tensors.

    Args:
        graph: the teacher's channel graph.
        clusters: per tensor name, cluster of each of its rows `[N]`; several tensors may have the same channels.
        keys: where each tensor's labels come from, for messages.

    Returns:
        Per group name `0..K-1`; heads, which share one count through the file, each begin at 0 again, and groups
        without labels stay whole. Example: two heads of two channels with labels `[1, 0, 2, 3]` become
        `[1, 0]` and `[0, 1]`.

    Raises:
        ZooError: two tensors with different clusters for one channel.
    """
    label = np.full(graph.num_channels, -1)
    source: dict[int, str] = {}
    for tensor, rows in clusters.items():
        channels = graph.row_ties[tensor].channels.reshape(-1)
        differs = (label[channels] >= 0) & (label[channels] != rows)
        if differs.any():
            place = int(differs.argmax())
            raise ZooError(
                f"'{keys[tensor]}' and '{source[channels[place]]}' label the same channels, but channel {place} is in "
                f"cluster {rows[place]} of one and {label[channels[place]]} of the other; they must be equal"
            )
        label[channels] = rows
        source.update(dict.fromkeys(channels.tolist(), keys[tensor]))
    result = {}
    for group in graph.groups:
        own = label[group.channels]
        result[group.name] = own - own.min() if own.min() >= 0 else np.arange(group.size)
    return result


def reordered(given: Tensor, rows: np.ndarray, axis: AxisMap) -> Tensor:
    """Chain rows in this package's order.

    Args:
        given: `[K, ...]` in the file's order.
        rows: row of `given` that stands for each teacher row, `[N]`.
        axis: the chain's map of the same rows.

    Returns:
        `[K, ...]`. Example: teacher rows that take the rows `[1, 1, 0, 1]` of a file and sit at `[0, 0, 1, 0]`
        in a chain: its row 0 is the file's row 1 and the other way round.
    """
    index = torch.empty(axis.blocks * axis.length, dtype=torch.int64)
    index[axis.teacher_to_student] = torch.from_numpy(rows)
    return given.index_select(0, index)


def widened(narrow: Tensor, clusters: np.ndarray) -> Tensor:
    """A vector of the chain's width as one of full length, equal inside each cluster: averaged, it is itself again."""
    return narrow[torch.from_numpy(clusters)]


def spread_columns(narrow: Tensor, clusters: np.ndarray) -> Tensor:
    """Columns of the chain's width as columns of full length, shared out evenly: summed, they are themselves again.

    Args:
        narrow: `[rows, K]`.
        clusters: cluster of each column, `[N]`.

    Returns:
        `[rows, N]`. Example: the columns `(6, 5)` with clusters `[0, 1, 0, 0]` become `(2, 5, 2, 2)`.
    """
    sizes = torch.from_numpy(np.bincount(clusters)[clusters])
    return narrow[:, torch.from_numpy(clusters)] / sizes
