"""The S-student: the student of the chain's width, whose weights are a function of chain and teacher.

It never exists as free weights. Its rows are the chain's, its columns are summed, its norm parameters and biases are
averaged from the *current* teacher's, and gradient flows back into all of them. Tensors that may not be narrowed are
shared with the teacher. Its batch statistics and its classifier are its own. Run on narrow tensors, it costs little
more than its share of the FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import ChainError, ConfigError, TrainingError, expect
from ..graph.plans import Width
from ..graph.surgery.rebuild import code_buffers
from ..networks import unwrapped
from . import network
from .chain import WeightChain
from .levels import Level, empty_shell, level_plans
from .losses import RowPair, refining_loss
from .narrowing import Narrowing, rows_first

Criterion = Callable[[Any], Tensor]
"""A task's loss, a scalar, of what a network returns in training."""

Distillation = Callable[[Any, Any], Tensor]
"""A scalar loss of two outputs: of the network that is learnt from, and of the one that learns."""


class SStudent(nn.Module):
    """A narrow shell, called with weights derived from chain and teacher.

    Attributes:
        rows: the chain's rows as parameters, by tensor name with `/` for `.`.
        own_vectors: vectors that the S-student does not share (those of its classifier; see `vector_copies`). They have
            the teacher's length; in a nested chain, the chain's.
        shell: a network of the chain's width that holds the S-student's buffers; its weights are given at every call.

    Args:
        chain: copied from.
        vector_copies: norm parameters and biases are the S-student's own, and the refining loss pulls them and the
            teacher's together (the paper's choice for ViTs).
    """

    def __init__(self, chain: WeightChain, vector_copies: bool = False) -> None:
        super().__init__()
        self._chain = chain
        self._layout = chain.layout
        shared = _fixed_tensors(chain)
        rows = {name: rows for name, rows in chain.cluster_rows.items() if name not in shared}
        self.rows = nn.ParameterDict({_key(name): nn.Parameter(tensor.clone()) for name, tensor in rows.items()})
        graph, self._parameter_names = chain.graph, [name for name, _ in chain.model.named_parameters()]
        self._matrices = [name for name in self._parameter_names if name in graph.matrices]
        others = [name for name in self._parameter_names if name not in graph.matrices]
        self._vector_names = [name for name in others if name in graph.row_ties]
        self.narrowing = Narrowing(graph, self._layout, self._layout, chain.attention)
        head = tuple(f"{name}." for name in getattr(chain.model, "head_modules", ()))
        self._head_matrices = {name for name in chain.rows if name in chain.graph.heads or name.startswith(head)}
        learned = [name for name in chain.vectors if name in self._parameter_names]
        vectors = [
            name
            for name in learned
            if name.startswith(head) or name in chain.own or (vector_copies and name not in shared)
        ]
        self._copied_vectors = [name for name in vectors if not name.startswith(head)]
        own = {name: chain.vectors[name] for name in vectors}
        if chain.trees:
            own = {name: chain.own[name] if name in chain.own else self.narrowing.averages(own)[name] for name in own}
        self.own_vectors = nn.ParameterDict({_key(name): nn.Parameter(tensor.clone()) for name, tensor in own.items()})
        for name in vectors:
            self.own_vectors[_key(name)].requires_grad_(chain.model.get_parameter(name).requires_grad)
        merged = self.narrowing(chain.cluster_rows, chain.vectors) | chain.statistics | chain.fixed
        self.shell = empty_shell(chain, self._layout, merged)
        self._code_buffers = code_buffers(chain.graph)
        self._register_indices(chain)

    def _register_indices(self, chain: WeightChain) -> None:
        """How the teacher's rows are paired with chain rows, per refined tensor; as buffers they follow the device.

        That is the chain row of each of the teacher's rows; or, where clusters have leaders, the leader of each.
        """
        self._index_names: dict[str, str] = {}
        refined = [name for name in sorted(chain.rows) if name not in self._head_matrices and _key(name) in self.rows]
        for number, name in enumerate([*refined, *self._copied_vectors]):
            axis = self._layout.axis(chain.graph.row_ties[name])
            index = axis.leaders if chain.importance else axis.teacher_to_student
            if name in self._copied_vectors and not chain.trees:
                index = torch.arange(len(chain.vectors[name]))
            self._index_names[name] = f"index_{number}"
            self.register_buffer(self._index_names[name], index, persistent=False)

    def weights(self, teacher: nn.Module) -> dict[str, Tensor]:
        """The S-student's parameters by name, differentiable in the chain's rows and the teacher's vectors."""
        teachers = dict(teacher.named_parameters())
        rows = {name: self.rows[_key(name)] for name in self._matrices if _key(name) in self.rows}
        return self._shared(teachers) | self.narrowing(self._whole_rows(teachers) | rows, *self._vectors(teachers))

    def nested_weights(self, teacher: nn.Module, narrowing: Narrowing) -> dict[str, Tensor]:
        """Parameters of a student of another width of a nested chain, see `Level`.

        Args:
            teacher: as it is now.
            narrowing: from the teacher to that student.
        """
        teachers = dict(teacher.named_parameters())
        vectors = {name: teachers[name] for name in self._vector_names}
        return self._shared(teachers) | narrowing.between(self._whole_rows(teachers), vectors, self.own())

    def own(self) -> dict[str, Tensor]:
        """What the S-student has of its own, by tensor name."""
        return {_name(key): tensor for part in (self.rows, self.own_vectors) for key, tensor in part.items()}

    def _whole_rows(self, teachers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's rows of every matrix."""
        return {name: rows_first(teachers[name], self._chain.graph.row_ties[name]) for name in self._matrices}

    def _vectors(self, teachers: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every learned vector: those of the teacher's length, and in a nested chain those of the chain's."""
        own = {name: self.own_vectors[_key(name)] for name in self._vector_names if _key(name) in self.own_vectors}
        if self._chain.trees:
            return {name: teachers[name] for name in self._vector_names if name not in own}, own
        return {name: own.get(name, teachers[name]) for name in self._vector_names}, {}

    def _shared(self, teachers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters without channels, which are the teacher's."""
        narrowed = {*self._matrices, *self._vector_names}
        return {name: teachers[name] for name in self._parameter_names if name not in narrowed}

    def forward(self, images: Tensor, teacher: nn.Module) -> Any:
        """Output of the narrow network, in the form of the teacher's own."""
        return functional_call(self.shell, self.weights(teacher), (images,))

    def row_pairs(self, teacher: nn.Module) -> Iterator[RowPair]:
        """Teacher's weight, chain rows and their index, of refined matrices (not classifiers) and copied vectors."""
        teachers, own, chain = dict(teacher.named_parameters()), self.own(), self._chain
        for name, index_name in self._index_names.items():
            tie, index = chain.graph.row_ties[name], getattr(self, index_name)
            whole: Tensor = teachers[name]
            mine = own[name]
            if name in self._matrices:
                whole = rows_first(whole, tie)
            elif chain.trees:
                whole, mine = whole.movedim(tie.dimension, 0), mine.movedim(tie.dimension, 0)
            if chain.importance:
                yield whole.index_select(0, index), mine, torch.arange(len(mine), device=mine.device)
            else:
                yield whole, mine, index

    @staticmethod
    def layer_of(name: str) -> str:
        """The child of the network that a parameter of the S-student belongs to.

        Args:
            name: among its own parameters, such as `rows.classifier/weight`.
        """
        return _name(name.partition(".")[2]).partition(".")[0]

    def open_layers(self, names: Sequence[str]) -> None:
        """Trains the rows, vectors and statistics of the named layers only.

        Args:
            names: of children of the network.
        """
        for parameters in (self.rows, self.own_vectors):
            for key, parameter in parameters.items():
                parameter.requires_grad_(_name(key).partition(".")[0] in names)
        for name, child in self.shell.named_children():
            child.train(name in names)

    def clusters(self) -> dict[str, Tensor]:
        """The chain row of every teacher channel `[channels]` per group."""
        return {name: torch.from_numpy(labels).clone() for name, labels in self._chain.teacher_to_chain.items()}

    def to_chain(self, teacher: nn.Module) -> WeightChain:
        """The chain as refined so far, in copies: its rows, the S-student's statistics, the teacher's state."""
        state, shell, own = network.state_of(teacher), self.shell.state_dict(), self.own()
        chain = self._chain
        statistics = {name: shell[name] for name in chain.vectors if name in shell and name not in self._code_buffers}
        vectors = {name: state[name] for name in chain.vectors}
        rows = {name: rows_first(state[name], chain.graph.row_ties[name]) for name in chain.rows}
        fixed = {name: state[name] for name in chain.fixed}
        if chain.trees:
            return chain.with_tensors(rows, vectors, statistics, rows | own, fixed)  # what is shared is the teacher's
        rows |= {name: own[name] for name in rows if name in own}
        vectors |= {name: own[name] for name in vectors if name in own}
        return chain.with_tensors(rows, vectors, statistics, fixed=fixed)


class RefinementLosses(NamedTuple):
    """The terms of a batch, scalars: losses of the teacher and of the narrow students, and `L_refine` between them."""

    teacher: Tensor
    sstudent: Tensor
    refine: Tensor

    def total(self, lambda_weight: float = 1.0, sstudent_weight: float = 1.0) -> Tensor:
        """`L = L_task(teacher) + sstudent_weight * L_task(S-student) + lambda * L_refine`."""
        return self.teacher + sstudent_weight * self.sstudent + lambda_weight * self.refine


class Refinement(nn.Module):
    """Teacher and S-student as one module that any loop can train (paper: chain refinement).

    In training `forward` returns `(teacher's output, S-student's output)`; in evaluation the teacher's feature. A
    step of any loop is::

        loss = refinement.losses(images, lambda outputs: criterion(outputs, labels)).total()
        optimizer.zero_grad(), loss.backward(), optimizer.step()

    and `Refinement.to_chain` gives the chain so far.

    Args:
        teacher: trained in place.
        chain: made from it; copied.
        vector_copies: norm parameters and biases are the S-student's own, see `SStudent`.
        within: weight of what makes the rows of a cluster alike, see `losses.row_distance`; 1 is the paper's.
        levels: further widths of a nested chain whose students can be trained as well, or how many, evenly spaced; see
            `active`.

    Attributes:
        active: the levels, by their place, whose outputs `forward` adds in training.

    Raises:
        ChainError: the chain was made of another network, or levels of a chain that is not nested.
        WidthError: a level outside of the chain's widths.
    """

    def __init__(
        self,
        teacher: nn.Module,
        chain: WeightChain,
        vector_copies: bool = False,
        within: float = 1.0,
        levels: int | Sequence[Width] = (),
    ) -> None:
        super().__init__()
        teacher = unwrapped(teacher)
        expect(nn.Module, teacher, "teacher", "give the network that the chain was made of", ChainError)
        expect(WeightChain, chain, "chain", "make one: WeightChain.from_teacher(teacher, width)", ChainError)
        chain.check_teacher(teacher)
        expect(
            (Integral, list, tuple), levels, "levels", "give a list of widths, such as [0.75], or how many", ChainError
        )
        if not within >= 0:
            raise ConfigError(f"within is {within}; the weight of a part of the refining loss is at least 0")
        if levels and not chain.trees:
            raise ChainError("levels are students of a nested chain; give WeightChain.from_teacher nested=True")
        plans = level_plans(chain, levels)
        self.teacher = teacher
        self.sstudent = SStudent(chain, vector_copies)
        self.within = within
        self.levels = nn.ModuleList(Level(chain, plan) for plan in plans)
        self.active: tuple[int, ...] = ()

    @property
    def loss(self) -> str:
        """The loss that the teacher was built for."""
        return getattr(self.teacher, "loss", "softmax")

    def forward(self, images: Tensor) -> Any:
        """Maps images `[batch, 3, height, width]`."""
        if not self.training:
            return self.teacher(images)
        outputs = [self.teacher(images), self.sstudent(images, self.teacher)]
        for number in self.active:
            weights_of = partial(self.sstudent.nested_weights, self.teacher)
            outputs.append(self.levels[number](images, weights_of))
        return tuple(outputs)

    def losses(
        self,
        images: Tensor,
        criterion: Criterion,
        sstudent_criterion: Criterion | Sequence[Criterion] | None = None,
        distil: Distillation | None = None,
        targets: Any = None,
    ) -> RefinementLosses:
        """The terms of a batch, differentiable; the module has to be in training mode.

        Args:
            images: `[batch, 3, height, width]`.
            criterion: the task's loss, a scalar, of what the network returns in training.
            sstudent_criterion: the same for the narrow students, if their loss is different; or one for each of them,
                the S-student and the active levels, if theirs differ too (features have other lengths).
            distil: a loss of each narrow student's output against the teacher's, added to its own.
            targets: output of another network, such as a copy of the teacher as it was first, from which all learn
                by `distil`, the teacher too, instead of from the teacher.

        Raises:
            TrainingError: in evaluation mode, in which no student runs, or a criterion without a scalar.
        """
        if not self.training:
            raise TrainingError("losses of a refinement need training mode, in which students run; call train()")
        return self.losses_of(self(images), criterion, sstudent_criterion, distil, targets)

    def losses_of(
        self,
        outputs: Sequence[Any],
        criterion: Criterion,
        sstudent_criterion: Criterion | Sequence[Criterion] | None = None,
        distil: Distillation | None = None,
        targets: Any = None,
    ) -> RefinementLosses:
        """`losses` of the outputs of `forward`, in any form that the criteria take."""
        of_teacher, *of_students = outputs
        teacher = _scalar(criterion(of_teacher))
        narrow_criteria = criterion if sstudent_criterion is None else sstudent_criterion
        if not isinstance(narrow_criteria, Sequence):
            narrow_criteria = [narrow_criteria] * len(of_students)
        if len(narrow_criteria) != len(of_students):
            raise TrainingError(f"{len(narrow_criteria)} criteria are given for {len(of_students)} narrow students")
        narrow = [_scalar(each(output)) for each, output in zip(narrow_criteria, of_students, strict=True)]
        if distil is not None:
            target = of_teacher if targets is None else targets
            narrow += [_scalar(distil(target, output)) for output in of_students]
            teacher = teacher if targets is None else teacher + _scalar(distil(targets, of_teacher))
        refine = refining_loss(self.sstudent.row_pairs(self.teacher), self.within)
        return RefinementLosses(teacher, torch.stack(narrow).sum(), refine)

    def to_chain(self) -> WeightChain:
        """The refined chain (copies)."""
        return self.sstudent.to_chain(self.teacher)


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() > 0:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:100]
        raise TrainingError(f"a criterion gave {got}; it must give a scalar tensor, such as the mean over the batch")
    return loss


def _fixed_tensors(chain: WeightChain) -> set[str]:
    """Tensors whose rows may not be narrowed and are not results: nothing in them is merged, so they are shared."""
    graph = chain.graph
    fixed = np.array([bool(group.fixed) for group in graph.groups])
    results = {graph.row_ties[name].axis for name in graph.heads}
    rows = [tie for tie in graph.row_ties.values() if tie.axis not in results]
    return {tie.tensor for tie in rows if fixed[graph.group_of_channel[tie.channels]].all()}


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
