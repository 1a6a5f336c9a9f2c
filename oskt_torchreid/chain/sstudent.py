"""The S-student: the student of the chain's width, whose weights are a function of chain and teacher.

It never exists as free weights. Its rows are the chain's, its columns are summed, its norm parameters and biases are
averaged from the *current* teacher's, and gradient flows back into all of them. What may not be narrowed it shares with
the teacher. Its batch statistics and its head are its own. Run on narrow tensors, it costs little more than its share
of the FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..graph import adapt_code, rebuild
from ..graph.surgery.routing import code_buffers
from . import network
from .algebra import average_rows, rows_first, sum_columns
from .chain import WeightChain
from .folding import attention_factors, fold
from .layout import joined, spans
from .losses import RowPair

_ALIGNMENT = 8
"""Entries that vectors cut out of a longer one begin at a multiple of: GPU kernels read 16 bytes at a time, also of
numbers of 2 bytes, and fail on vectors that begin between."""


class SStudent(nn.Module):
    """A narrow shell, called with weights derived from chain and teacher.

    Attributes:
        rows: the chain's rows as parameters, by tensor name with ``/`` for ``.``.
        own_vectors: full-length vectors that the S-student has for itself (those of its head; see ``vector_copies``).
        shell: a network of the chain's width that holds the S-student's buffers; its weights are given at every call.

    Args:
        chain: copied from.
        vector_copies: norm parameters and biases are the S-student's own, of full length, and the refining loss draws
            them and the teacher's together (the paper's choice for ViTs).
    """

    def __init__(self, chain: WeightChain, vector_copies: bool = False) -> None:
        super().__init__()
        self._chain = chain
        self._layout = chain.layout
        shared = _fixed_tensors(chain)
        rows = {name: rows for name, rows in chain.rows.items() if name not in shared}
        self.rows = nn.ParameterDict({_key(name): nn.Parameter(tensor.clone()) for name, tensor in rows.items()})
        self._parameter_names = [name for name, _ in chain.model.named_parameters()]
        head = tuple(f"{name}." for name in getattr(chain.model, "head_modules", ()))
        self._head_matrices = {name for name in chain.rows if name in chain.graph.heads or name.startswith(head)}
        learned = [name for name in chain.vectors if name in self._parameter_names]
        vectors = [name for name in learned if name.startswith(head) or (vector_copies and name not in shared)]
        self._copied_vectors = [name for name in vectors if not name.startswith(head)]
        self.own_vectors = nn.ParameterDict({_key(name): nn.Parameter(chain.vectors[name].clone()) for name in vectors})
        for name in vectors:
            self.own_vectors[_key(name)].requires_grad_(chain.model.get_parameter(name).requires_grad)
        self.shell = self._make_shell(chain)
        self._code_buffers = code_buffers(chain.graph)
        self._register_indices(chain)
        self._register_factors(chain)
        self._join_vectors(chain)

    def _make_shell(self, chain: WeightChain) -> nn.Module:
        """Buffers start as the merged statistics of the chain; parameters are emptied, for they are never read."""
        tensors = {name: average_rows(t, *self._axis(chain, name)) for name, t in chain.vectors.items()}
        tensors.update({name: tensor.clone() for name, tensor in chain.statistics.items()})
        tensors.update({name: tensor.clone() for name, tensor in chain.fixed.items()})
        for name, rows in chain.rows.items():
            tensors[name] = self._matrix(name, rows)
        shell = rebuild(chain.model, tensors)
        adapt_code(shell, chain.graph, self._layout.members)
        for module in shell.modules():
            for name in [name for name, parameter in module._parameters.items() if parameter is not None]:
                del module._parameters[name]
                module.register_buffer(name, torch.empty(0), persistent=False)
        return shell

    def _matrix(self, name: str, rows: Tensor) -> Tensor:
        """A matrix of the narrow network: the columns of a chain's rows, summed."""
        graph = self._chain.graph
        column = graph.column_tie(name)
        summed = rows if column is None else sum_columns(rows, self._layout.axis(column))
        return rows_first(summed, graph.row_tie(name))

    def _axis(self, chain: WeightChain, name: str) -> tuple:
        tie = chain.graph.row_tie(name)
        return self._layout.axis(tie), tie.axis

    def _register_indices(self, chain: WeightChain) -> None:
        """Chain row of each teacher row per matrix that is refined; kept as buffers so that they follow the device."""
        self._index_names: dict[str, str] = {}
        for number, name in enumerate(sorted(chain.rows)):
            if name not in self._head_matrices and _key(name) in self.rows:
                axis = self._layout.axis(chain.graph.row_tie(name))
                self._index_names[name] = f"teacher_to_chain_{number}"
                self.register_buffer(self._index_names[name], axis.teacher_to_student, persistent=False)
        for number, name in enumerate(self._copied_vectors):
            self._index_names[name] = f"every_entry_{number}"
            self.register_buffer(self._index_names[name], torch.arange(len(chain.vectors[name])), persistent=False)

    def _register_factors(self, chain: WeightChain) -> None:
        """Factors of queries and keys, the very ones that students get."""
        self._factor_names: dict[str, str] = {}
        factors = attention_factors(chain.graph, self._layout, chain.attention)
        for number, (name, factor) in enumerate(factors.items()):
            like = chain.rows[name] if name in chain.rows else chain.vectors[name]
            self._factor_names[name] = f"factor_{number}"
            self.register_buffer(self._factor_names[name], factor.to(like), persistent=False)

    def _join_vectors(self, chain: WeightChain) -> None:
        """Names of the learned vectors, and the narrow lengths of those of one dimension, behind one another."""
        names = [name for name in self._parameter_names if _key(name) not in self.rows]
        self._vectors = [n for n in names if n not in chain.graph.matrices and chain.graph.row_tie(n) is not None]
        axes = {name: self._axis(chain, name)[0] for name in self._vectors if chain.vectors[name].dim() == 1}
        self._short = {name: axis.blocks * axis.length for name, axis in axes.items()}
        self._short_spans = spans(list(axes.values()), _ALIGNMENT)
        self._short_axis = joined(list(axes.values()), _ALIGNMENT) if axes else None

    def weights(self, teacher: nn.Module) -> dict[str, Tensor]:
        """The S-student's parameters by name, differentiable in the chain's rows and the teacher's vectors."""
        graph = self._chain.graph
        teachers = dict(teacher.named_parameters())
        weights = self._averages(teachers)
        for name in self._parameter_names:
            key = _key(name)
            if key in self.rows:
                weights[name] = self._matrix(name, self.rows[key])
            elif name in graph.matrices:
                weights[name] = self._matrix(name, rows_first(teachers[name], graph.row_tie(name)))
            elif name not in weights:
                weights[name] = teachers[name]
        for name, factor in self._factor_names.items():
            weights[name] = fold(weights[name], getattr(self, factor))
        return weights

    def _averages(self, teachers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The vectors of the narrow network; the short ones, of which there are hundreds, are averaged as one."""
        own = {name: self.own_vectors[_key(name)] for name in self._vectors if _key(name) in self.own_vectors}
        vectors = {name: own.get(name, teachers[name]) for name in self._vectors}
        averages = {}
        for name in self._vectors:
            if name not in self._short:
                averages[name] = average_rows(vectors[name], *self._axis(self._chain, name))
        if self._short:
            means = average_rows(torch.cat([vectors[name] for name in self._short]), self._short_axis)
            parts = zip(self._short.items(), means.split(self._short_spans), strict=True)
            averages.update((name, part[:length]) for (name, length), part in parts)
        return averages

    def forward(self, images: Tensor, teacher: nn.Module) -> Any:
        """Output of the narrow network, in the form of the teacher's own."""
        return functional_call(self.shell, self.weights(teacher), (images,))

    def row_pairs(self, teacher: nn.Module) -> Iterator[RowPair]:
        """Teacher's weight, chain rows and their index, for all that is refined: matrices (but the head's), copies."""
        teachers = dict(teacher.named_parameters())
        for name, index in self._index_names.items():
            if name in self._copied_vectors:
                yield teachers[name], self.own_vectors[_key(name)], getattr(self, index)
            else:
                rows = rows_first(teachers[name], self._chain.graph.row_tie(name))
                yield rows, self.rows[_key(name)], getattr(self, index)

    @staticmethod
    def layer_of(name: str) -> str:
        """The child of the network that a parameter of the S-student belongs to.

        Args:
            name: among its own parameters, such as ``rows.classifier/weight``.
        """
        return _name(name.partition(".")[2]).partition(".")[0]

    def open_layers(self, names: Sequence[str]) -> None:
        """Lets rows, vectors and statistics of some layers be trained, and no others.

        Args:
            names: of children of the network.
        """
        for parameters in (self.rows, self.own_vectors):
            for key, parameter in parameters.items():
                parameter.requires_grad_(_name(key).partition(".")[0] in names)
        for name, child in self.shell.named_children():
            child.train(name in names)

    def clusters(self) -> dict[str, Tensor]:
        """The chain row of every teacher channel ``[channels]`` per group."""
        return {name: torch.from_numpy(labels).clone() for name, labels in self._chain.teacher_to_chain.items()}

    def to_chain(self, teacher: nn.Module) -> WeightChain:
        """The chain as refined so far: its rows, the teacher's current vectors, the S-student's statistics (copies)."""
        state, own = network.state_of(teacher), self.shell.state_dict()
        vectors = {}
        for name in self._chain.vectors:
            vectors[name] = self.own_vectors[_key(name)] if _key(name) in self.own_vectors else state[name]
        statistics = {name: own[name] for name in vectors if name in own and name not in self._code_buffers}
        rows = {name: rows_first(state[name], self._chain.graph.row_tie(name)) for name in self._chain.rows}
        rows.update({name: self.rows[_key(name)] for name in rows if _key(name) in self.rows})
        return self._chain.with_tensors(rows, vectors, statistics)


class Refinement(nn.Module):
    """Teacher and S-student side by side, as one module that is trained.

    In training ``forward`` gives ``(teacher's output, S-student's output)``; in evaluation the teacher's feature.

    Raises:
        ChainError: the chain was made of another network.
    """

    def __init__(self, teacher: nn.Module, chain: WeightChain, vector_copies: bool = False) -> None:
        super().__init__()
        chain.check_teacher(teacher)
        self.teacher = teacher
        self.sstudent = SStudent(chain, vector_copies)

    @property
    def loss(self) -> str:
        """The loss that the teacher was built for."""
        return getattr(self.teacher, "loss", "softmax")

    def forward(self, images: Tensor) -> Any:
        """Maps images ``[batch, 3, height, width]``."""
        if not self.training:
            return self.teacher(images)
        return self.teacher(images), self.sstudent(images, self.teacher)

    def to_chain(self) -> WeightChain:
        """The refined chain (copies)."""
        return self.sstudent.to_chain(self.teacher)


def _fixed_tensors(chain: WeightChain) -> set[str]:
    """Tensors whose rows may not be narrowed, and are no results: nothing of theirs is merged, so they are shared."""
    graph = chain.graph
    fixed = np.array([bool(group.fixed) for group in graph.groups])
    rows = [tie for tie in graph.ties if tie.role == "row" and tie.tensor not in graph.heads]
    results = {id(tie.channels) for tie in graph.ties if tie.tensor in graph.heads and tie.role == "row"}
    rows = [tie for tie in rows if id(tie.channels) not in results]
    return {tie.tensor for tie in rows if fixed[graph.group_of_channel[tie.channels]].all()}


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
