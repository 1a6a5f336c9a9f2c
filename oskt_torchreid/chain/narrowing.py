"""The one map from a chain and its teacher to a narrower network (paper: weight chain expansion).

With ``C`` the chain's rows of a matrix, ``v`` a vector of the teacher, ``a`` the slot of each teacher channel and ``b``
the chain row of each slot, a student of any width has

* the matrix ``W[j, k] = sum of C[b(j), i] over a(i) = k``: rows gathered, columns summed;
* the vector ``u[j] = mean of v[i] over a(i) = j``: entries averaged;

and rows of queries and keys times the factors that make attention exact (``folding.py``). The map is differentiable in
both. At the chain's own width it is the S-student, whose ``b`` changes nothing; at any other an expanded student.

Example, 4 teacher channels in 2 slots, ``a = (0, 0, 1, 1)``: a matrix over these columns whose chain rows are
``(1, 2, 3, 4)`` and ``(5, 6, 7, 8)`` becomes ``(3, 7)`` and ``(11, 15)``; the bias ``(1, 3, 5, 7)`` becomes ``(2, 6)``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..graph import ChannelGraph
from .algebra import average_rows, gather_rows, rows_first, sum_columns
from .folding import attention_factors, fold
from .layout import AxisMap, Layout, joined, spans, student_to_chain

_ALIGNMENT = 8
"""Entries that vectors cut out of a longer one begin at a multiple of: GPU kernels read 16 bytes at a time, also of
numbers of 2 bytes, and fail on vectors that begin between."""


class Narrowing(nn.Module):
    """Tensors of a narrower network as a function of a chain's rows and a teacher's vectors; it learns nothing itself.

    Args:
        graph: the teacher's channel graph.
        chain: where everything of the chain's widths sits.
        student: where everything of the student's widths sits; the chain's own layout for the S-student.
        attention: ``folded`` or ``paper``, see ``folding.py``.
    """

    def __init__(self, graph: ChannelGraph, chain: Layout, student: Layout, attention: str) -> None:
        super().__init__()
        self._graph, self._chain, self._student = graph, chain, student
        self._factor_names: dict[str, str] = {}
        for number, (name, factor) in enumerate(attention_factors(graph, student, attention).items()):
            self._factor_names[name] = f"factor_{number}"
            self.register_buffer(self._factor_names[name], factor, persistent=False)
        self._joined: dict[tuple[str, ...], tuple[AxisMap, list[int]]] = {}

    def forward(self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the student by name.

        Args:
            rows: ``[K, columns, ...]`` per matrix, rows first, the teacher's columns.
            vectors: tensors along channels, of the teacher's length.

        Returns:
            As the student's network stores them; some may be views, or the rows themselves where nothing changes.
        """
        tensors = {name: self.matrix(name, chain_rows) for name, chain_rows in rows.items()}
        tensors |= self.averages(vectors)
        for name in self._factor_names.keys() & tensors.keys():
            tensors[name] = fold(tensors[name], getattr(self, self._factor_names[name]))
        return tensors

    def matrix(self, name: str, rows: Tensor) -> Tensor:
        """A student's matrix: columns summed over the members of each slot, then rows gathered from the chain."""
        column = self._graph.column_ties.get(name)
        axis = None if column is None else self._student.axis(column)
        merged = rows if axis is None or axis.is_identity else sum_columns(rows, axis)
        return rows_first(self.gathered(name, merged), self._graph.row_ties[name])

    def gathered(self, name: str, rows: Tensor) -> Tensor:
        """Rows, or refined statistics, of the chain for each slot; at the chain's width they are what they were."""
        if self._student is self._chain:
            return rows
        row = self._graph.row_ties[name]
        index = student_to_chain(self._student.axis(row), self._chain.axis(row))
        return rows if torch.equal(index, torch.arange(len(rows))) else gather_rows(rows, index)

    def averages(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the members of each slot; those of one dimension, of which there are hundreds, as one."""
        averaged, short = {}, {}
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
