"""The one map from a chain and its teacher to a narrower network (paper: weight chain expansion).

With `C` the chain's rows of a matrix, `v` a vector of the teacher, `a` the slot of each teacher channel and `b`
the chain row of each slot, a student of any width has

* the matrix `W[j, k] = sum of C[b(j), i] over a(i) = k`: rows gathered, columns summed;
* the vector `u[j] = mean of v[i] over a(i) = j`: entries averaged;

and rows of queries and keys times the factors that make attention exact. The map is differentiable in both. At the
chain's own width it is the S-student, whose `b` changes nothing; at any other an expanded student. The chain itself
is a teacher's rows, averaged: `c[j] = mean of x[i] over a(i) = j`, `a` now the cluster of each channel.

Example, 4 teacher channels in 2 slots, `a = (0, 0, 1, 1)`: a matrix over these columns whose chain rows are
`(1, 2, 3, 4)` and `(5, 6, 7, 8)` becomes `(3, 7)` and `(11, 15)`; the bias `(1, 3, 5, 7)` becomes `(2, 6)`.

*Attention.* A head's product sums over its channels. Where a slot stands for `n` equal channels, its term counts once
instead of `n` times; and a head narrowed from `d` to `m` channels scales the sum by `m ** -0.5` instead of `d ** -0.5`.
Both are corrected by multiplying the slot's rows (and biases) of queries and keys, each, by
`sqrt(n) * (m / d) ** (1/4)`. The paper folds nothing (`attention="paper"`): a narrower head uses its own size.

Example, one head of 4 channels in 2 slots of 3 and 1 members: the factors are `sqrt(3) * 0.5 ** 0.25 = 1.4565` and
`0.5 ** 0.25 = 0.8409`; `(1.4565 ** 2 * a + 0.8409 ** 2 * b) / sqrt(2) = (3 a + b) / sqrt(4)`, as in the teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph import ChannelGraph, Tie
from .layout import AxisMap, Layout, joined, spans, student_to_chain

logger = logging.getLogger(__name__)

ATTENTIONS = {
    "folded": "students are exact where their rows are equal",
    "paper": "nothing is folded into queries and keys",
}
VECTORS_OVER = {
    "clusters": "students of all widths compute what the S-student does",
    "slots": "means of fewer channels in wider students, as in the authors' code",
}
"""What students' queries and keys, and means of vectors, can be, and what each choice means."""

_ALIGNMENT = 8
"""Vectors that are slices of a longer one begin at a multiple of this many entries: GPU kernels read 16 bytes at a
time, even for 2-byte numbers, and fail on unaligned vectors."""


class Narrowing(nn.Module):
    """Tensors of a narrower network as a function of a chain's rows and a teacher's vectors; it has no parameters.

    Args:
        graph: the teacher's channel graph.
        chain: layout of the chain's widths.
        student: layout of the student's widths; the chain's own layout for the S-student.
        attention: `folded` or `paper`.
        nested: rows are a teacher's, one per channel, and averaged over the members of each slot, or its leader's, as
            in a nested chain: `W[j, k] = mean over a(l) = j of the sum of A[l, i] over a(i) = k`.
    """

    def __init__(
        self, graph: ChannelGraph, chain: Layout, student: Layout, attention: str, nested: bool = False
    ) -> None:
        super().__init__()
        self._graph, self._chain, self._student, self._nested = graph, chain, student, nested
        self._factor_names: dict[str, str] = {}
        for number, (name, factor) in enumerate(attention_factors(graph, student, attention).items()):
            self._factor_names[name] = f"factor_{number}"
            self.register_buffer(self._factor_names[name], factor, persistent=False)
        self._joined: dict[tuple[str, ...], tuple[AxisMap, list[int]]] = {}
        self._moves: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(
        self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Tensors of the student by name.

        Args:
            rows: `[K, columns, ...]` per matrix, rows first, the teacher's columns.
            vectors: tensors along channels, of the teacher's length.
            own: vectors that have the student's length already.

        Returns:
            As the student's network stores them; some may be views, or the rows themselves if nothing changes.
        """
        tensors = {name: self.matrix(name, chain_rows) for name, chain_rows in rows.items()}
        return self._folded(tensors | self.averages(vectors) | dict(own or {}))

    def _folded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name in self._factor_names.keys() & tensors.keys():
            tensors[name] = fold(
                tensors[name], getattr(self, self._factor_names[name]), self._graph.row_ties[name].dimension
            )
        return tensors

    def between(
        self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Tensors of a student of a nested chain, which is between S-student and teacher, by name.

        Of the teacher's rows `W` and the S-student's `C`, slot `v` of cluster `a` has `Wm_v + f (C_a - Wm_a)`: both
        parts are narrowed first, which is less to add. Vectors that the S-student has of its own are treated alike.

        Args:
            rows: the teacher's, `[N, columns, ...]` per matrix, rows first.
            vectors: the teacher's, `[N]`.
            own: what the S-student has instead of some of them, rows `[K, columns, ...]` and vectors `[K]`.
        """
        tensors = {name: self._merged(name, whole) for name, whole in rows.items()} | self.averages(vectors)
        for name, mine in own.items():
            tensors[name] = self._moved(name, tensors[name], rows[name] if name in rows else vectors[name], mine)
        tensors |= {name: rows_first(tensors[name], self._graph.row_ties[name]) for name in rows}
        return self._folded(tensors)

    def _merged(self, name: str, rows: Tensor) -> Tensor:
        """A teacher's matrix, rows first: rows averaged and columns summed over the members of each slot."""
        axis = self._axis(name)
        return self.summed(name, rows if axis.is_identity else average_rows(rows, axis))

    def _moved(self, name: str, narrow: Tensor, whole: Tensor, own: Tensor) -> Tensor:
        """What a slot has of the teacher, moved towards the S-student: `narrow + f (C_a - Wm_a)`.

        Args:
            name: of a matrix or a vector.
            narrow: the teacher's tensor, narrowed, matrices rows first.
            whole: the same at the teacher's width.
            own: the S-student's.
        """
        index, share = self._move_of(name)
        if not share.any():
            return narrow
        tie, is_matrix = self._graph.row_ties[name], name in self._graph.matrices
        dimension = 0 if is_matrix else tie.dimension
        moved = own - average_rows(whole, self._chain.axis(tie), dimension)
        moved = self.summed(name, moved) if is_matrix else moved
        share = share.to(whole).reshape(-1, *[1] * (narrow.dim() - 1 - dimension))
        return narrow + share * gather_rows(moved, index, dimension)

    def _move_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Cluster and fade `f` of each of the student's rows; found once."""
        if name not in self._moves:
            tie = self._graph.row_ties[name]
            axis = self._student.axis(tie)
            share = torch.empty(axis.blocks * axis.length, dtype=torch.float64)
            share[axis.teacher_to_student] = self._fade_of(name, tie)
            self._moves[name] = student_to_chain(axis, self._chain.axis(tie)), share
        return self._moves[name]

    def _fade_of(self, name: str, tie: Tie) -> Tensor:
        """`f` of each of the teacher's rows; rows that no width changes fade as their columns do, or the whole does."""
        own = self._student.fade[tie.channels.reshape(-1)]
        column = self._graph.column_ties.get(name)
        everywhere = np.arange(len(self._student.fade))
        for channels in (everywhere[:0] if column is None else column.channels.reshape(-1), everywhere):
            others = self._student.fade[channels]
            if not np.isnan(others).all():
                return torch.from_numpy(np.where(np.isnan(own), np.nanmean(others), own))
        return torch.ones(len(own), dtype=torch.float64)  # there is one width

    def matrix(self, name: str, rows: Tensor) -> Tensor:
        """A student's matrix: columns summed over the members of each slot, and rows gathered from the chain."""
        merged = self._merged(name, rows) if self._nested else self.gathered(name, self.summed(name, rows))
        return rows_first(merged, self._graph.row_ties[name])

    def summed(self, name: str, rows: Tensor) -> Tensor:
        """Rows of a matrix, `[any, columns, ...]`, with columns summed over the members of each slot."""
        column = self._graph.column_ties.get(name)
        axis = None if column is None else self._student.axis(column)
        return rows if axis is None or axis.is_identity else sum_columns(rows, axis)

    def gathered(self, name: str, rows: Tensor) -> Tensor:
        """Rows, or other tensors of the chain's length, for each slot; at the chain's width returned unchanged."""
        if self._student is self._chain:
            return rows
        tie = self._graph.row_ties[name]
        dimension = 0 if name in self._graph.matrices else tie.dimension
        index = student_to_chain(self._student.axis(tie), self._chain.axis(tie))
        unchanged = torch.equal(index, torch.arange(rows.shape[dimension]))
        return rows if unchanged else gather_rows(rows, index, dimension)

    def averages(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the members of each slot; the hundreds of one-dimensional vectors are computed together."""
        averaged: dict[str, Tensor] = {}
        short: dict[tuple, list[str]] = {}
        for name, vector in vectors.items():
            if vector.dim() == 1:
                short.setdefault((vector.dtype, vector.device), []).append(name)
            else:
                tie = self._graph.row_ties[name]
                averaged[name] = average_rows(vector, self._student.axis(tie), tie.dimension)
        for names in short.values():
            together, lengths = self._together(tuple(names))
            means = average_rows(torch.cat([vectors[name] for name in names]), together)
            axes = (self._axis(name) for name in names)
            parts = zip(names, axes, means.split(lengths), strict=True)
            averaged.update((name, part[: axis.blocks * axis.length]) for name, axis, part in parts)
        return averaged

    def _axis(self, name: str) -> AxisMap:
        return self._student.axis(self._graph.row_ties[name])

    def _together(self, names: tuple[str, ...]) -> tuple[AxisMap, list[int]]:
        if names not in self._joined:
            axes = [self._axis(name) for name in names]
            self._joined[names] = joined(axes, _ALIGNMENT), spans(axes, _ALIGNMENT)
        return self._joined[names]


# ---- rows, columns, vectors ------------------------------------------------------------------------------------------


def rows_first(weight: Tensor, row: Tie) -> Tensor:
    """A matrix with its rows along axis 0 and its columns along axis 1, as a chain holds it; or back, as it was stored.

    A transposed convolution stores `[columns, rows per block, ...]`, its blocks along the columns. The transposition is
    its own inverse. Example: with 2 blocks of 3 columns and 2 rows each, `[6, 2, k, k]` becomes `[4, 3, k, k]`.

    Args:
        weight: as stored, or rows first.
        row: the tie of its rows; along axis 0 there is nothing to transpose.

    Returns:
        `weight` itself, or a view of it; differentiable.
    """
    if row.dimension == 0:
        return weight
    return weight.unflatten(0, (row.blocks, -1)).transpose(1, 2).flatten(0, 1)


def sum_columns(weight: Tensor, axis: AxisMap) -> Tensor:
    """Merges columns by summing.

    Args:
        weight: `[rows, columns, ...]`; with `axis.blocks` convolution groups, consecutive rows belong to one group
            and `columns` counts within it.
        axis: from teacher columns to narrower ones.

    Returns:
        `[rows, axis.length, ...]`, differentiable with respect to `weight`.
    """
    rows, columns, *kernel = weight.shape
    blocked = weight.reshape(axis.blocks, rows // axis.blocks, columns, -1).transpose(0, 1)
    blocked = blocked.reshape(rows // axis.blocks, axis.blocks * columns, -1)
    matrix, entries = blocked.flatten(1), blocked.shape[2]  # kernels are part of the rows of a matrix, entry by entry
    place = axis.teacher_to_student.to(weight.device)[:, None] * entries + torch.arange(entries, device=weight.device)
    # One pass along rows is up to four times as fast as adding column by column.
    summed = matrix.new_zeros(len(matrix), axis.blocks * axis.length * entries)
    summed = summed.scatter_add(1, place.flatten().expand_as(matrix), matrix)
    summed = summed.reshape(rows // axis.blocks, axis.blocks, axis.length, -1).transpose(0, 1)
    return summed.reshape(rows, axis.length, *kernel)


def average_rows(tensor: Tensor, axis: AxisMap, dimension: int = 0) -> Tensor:
    """Merges rows, or the entries of a vector, by averaging over the members of each position, or taking its leader's.

    Args:
        tensor: any shape whose `dimension` has the teacher's length.
        axis: from teacher positions to narrower ones.
        dimension: the dimension that the channels lie along.

    Returns:
        The same shape, `axis.blocks * axis.length` long there, 0 where nothing is merged (`joined` leaves such gaps);
        differentiable; integers are not accepted.
    """
    moved = tensor.movedim(dimension, 0)
    total = moved.new_zeros(axis.blocks * axis.length, *moved.shape[1:])
    if axis.leading is not None:
        leading = axis.leading.nonzero().flatten()
        places = axis.teacher_to_student[leading].to(tensor.device)
        return total.index_copy(0, places, moved[leading.to(tensor.device)]).movedim(0, dimension)
    total = total.index_add(0, axis.teacher_to_student.to(tensor.device), moved)
    members = axis.members.clamp(min=1).to(tensor.device, tensor.dtype).reshape(-1, *[1] * (moved.dim() - 1))
    return (total / members).movedim(0, dimension)


def gather_rows(chain_rows: Tensor, index: Tensor, dimension: int = 0) -> Tensor:
    """A student's rows, or entries of a vector: `chain_rows[index]` along a dimension, differentiable."""
    return chain_rows.index_select(dimension, index.to(chain_rows.device))


# ---- attention -------------------------------------------------------------------------------------------------------


def check_attention(attention: str) -> str:
    """Returns the choice; raises `ConfigError` unless it is one of `ATTENTIONS`."""
    return _one_of("attention", attention, ATTENTIONS)


def check_vectors_over(choice: str) -> str:
    """Returns the choice; raises `ConfigError` unless it is one of `VECTORS_OVER`."""
    return _one_of("vectors_over", choice, VECTORS_OVER)


def _one_of(name: str, choice: str, choices: Mapping[str, str]) -> str:
    if not isinstance(choice, str) or choice not in choices:
        shown = " and ".join(f"{word} ({meaning})" for word, meaning in choices.items())
        raise ConfigError(f"{name} is {choice!r:.100}; allowed: {shown}")
    return choice


def attention_factors(graph: ChannelGraph, layout: Layout, attention: str = "folded") -> dict[str, Tensor]:
    """Factor of every row of the tensors that produce queries and keys.

    Args:
        graph: the teacher's channel graph.
        layout: slots of the student's widths.
        attention: `folded`, or `paper` for no factors.

    Returns:
        Per tensor `[student's rows]` in float64, 1 on the rows of values; tensors that do not change are left out.
    """
    factors: dict[str, Tensor] = {}
    if check_attention(attention) == "paper":
        return factors
    for module in graph.attentions:
        size = module.channels.shape[1]
        width = int((layout.members[module.channels[0]] > 0).sum())
        if width == size:
            continue
        if not module.positions:
            logger.warning(
                "the heads of '%s' are narrowed without making their products exact: something stands between the "
                "layers of queries and keys and their product",
                module.module,
            )
        of_size = (width / size) ** 0.25 if module.scale_follows else 1.0
        for name, positions in module.positions.items():
            axis = layout.axis(graph.row_ties[name])
            slots = axis.teacher_to_student[torch.from_numpy(positions).long()].unique()
            factor = factors.setdefault(name, torch.ones(axis.blocks * axis.length, dtype=torch.float64))
            factor[slots] = axis.members[slots].double().sqrt() * of_size
    return factors


def fold(tensor: Tensor, factor: Tensor, dimension: int = 0) -> Tensor:
    """Rows of a weight, or entries of a vector, along a dimension, times their factors; differentiable in `tensor`."""
    return tensor * factor.to(tensor).reshape(-1, *[1] * (tensor.dim() - 1 - dimension))
