"""The S-student: the student of the chain's width, whose weights are a function of chain and teacher.

It never exists as free weights. Its rows are the chain's, its columns are summed, its norm parameters and biases are
averaged from the *current* teacher's, and gradient flows back into all of them. Its batch statistics and its head are
its own. Run on narrow tensors, it costs little more than its share of the FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..graph import adapt_code, rebuild
from ..graph.routing import code_buffers
from . import network
from .algebra import average_rows, rows_first, sum_columns
from .chain import WeightChain
from .losses import RowPair


class SStudent(nn.Module):
    """A narrow shell, called with weights derived from chain and teacher.

    Attributes:
        rows: the chain's rows as parameters, by tensor name with ``/`` for ``.``.
        own_vectors: full-length vectors that the S-student has for itself (those of its head).
        shell: a network of the chain's width that holds the S-student's buffers; its weights are given at every call.
    """

    def __init__(self, chain: WeightChain) -> None:
        super().__init__()
        self._chain = chain
        self._layout = chain.layout
        self.rows = nn.ParameterDict({_key(name): nn.Parameter(rows.clone()) for name, rows in chain.rows.items()})
        self._parameter_names = [name for name, _ in chain.model.named_parameters()]
        head = tuple(f"{name}." for name in getattr(chain.model, "head_modules", ()))
        self._head_matrices = {name for name in chain.rows if name in chain.graph.heads or name.startswith(head)}
        vectors = [name for name in chain.vectors if name in self._parameter_names and name.startswith(head)]
        self.own_vectors = nn.ParameterDict({_key(name): nn.Parameter(chain.vectors[name].clone()) for name in vectors})
        for name in vectors:
            self.own_vectors[_key(name)].requires_grad_(chain.model.get_parameter(name).requires_grad)
        self.shell = self._make_shell(chain)
        self._code_buffers = code_buffers(chain.graph)
        self._register_indices(chain)

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
            if name not in self._head_matrices:
                axis = self._layout.axis(chain.graph.row_tie(name))
                self._index_names[name] = f"teacher_to_chain_{number}"
                self.register_buffer(self._index_names[name], axis.teacher_to_student, persistent=False)

    def weights(self, teacher: nn.Module) -> dict[str, Tensor]:
        """The S-student's parameters by name, differentiable in the chain's rows and the teacher's vectors."""
        graph = self._chain.graph
        teachers = dict(teacher.named_parameters())
        weights = {}
        for name in self._parameter_names:
            key = _key(name)
            if key in self.rows:
                weights[name] = self._matrix(name, self.rows[key])
            elif graph.row_tie(name) is not None:
                vector = self.own_vectors[key] if key in self.own_vectors else teachers[name]
                weights[name] = average_rows(vector, *self._axis(self._chain, name))
            else:
                weights[name] = teachers[name]
        return weights

    def forward(self, images: Tensor, teacher: nn.Module) -> Any:
        """Output of the narrow network, in the form of the teacher's own."""
        return functional_call(self.shell, self.weights(teacher), (images,))

    def row_pairs(self, teacher: nn.Module) -> Iterator[RowPair]:
        """Teacher's weight, chain rows and their index, for every matrix that is refined: all but the head's."""
        teachers = dict(teacher.named_parameters())
        for name, index in self._index_names.items():
            rows = rows_first(teachers[name], self._chain.graph.row_tie(name))
            yield rows, self.rows[_key(name)], getattr(self, index)

    def to_chain(self, teacher: nn.Module) -> WeightChain:
        """The chain as refined so far: its rows, the teacher's current vectors, the S-student's statistics (copies)."""
        state, own = network.state_of(teacher), self.shell.state_dict()
        vectors = {}
        for name in self._chain.vectors:
            vectors[name] = self.own_vectors[_key(name)] if _key(name) in self.own_vectors else state[name]
        statistics = {name: own[name] for name in vectors if name in own and name not in self._code_buffers}
        rows = {name: self.rows[_key(name)] for name in self._chain.rows}
        return self._chain.with_tensors(rows, vectors, statistics)


class Refinement(nn.Module):
    """Teacher and S-student side by side, as one module that is trained.

    In training ``forward`` gives ``(teacher's output, S-student's output)``; in evaluation the teacher's feature.

    Raises:
        ChainError: the chain was made of another network.
    """

    def __init__(self, teacher: nn.Module, chain: WeightChain) -> None:
        super().__init__()
        chain.check_teacher(teacher)
        self.teacher = teacher
        self.sstudent = SStudent(chain)

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


def _key(name: str) -> str:
    return name.replace(".", "/")
