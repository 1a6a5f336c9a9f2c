"""The identity property, tried: where rows are equal inside every cluster, a student computes what its teacher does.

A channel graph says which channels of a network can be merged. Whether the network's code agrees is tried on a copy of
random weights whose rows are equal inside random clusters. Students of as many channels as clusters, of full width and
between are made as those of a chain are, and must give the copy's outputs, in training and in evaluation. Code that
counts channels, keeps their number, or keeps the original's tensors does not, and is named.

Meanwhile dropout drops nothing, and numbers that are drawn are constants (`graph/randomness.py`). Norms over channels
are exact for slots of equally many channels, so that is what is tried there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import GraphError
from ..graph import Axis, ChannelGraph, adapt_code, rebuild
from ..graph.guarded_run import RunError, SharedMemoryError, guarded_run, memory_of
from ..graph.keeping import is_inside, what_to_keep
from ..graph.locating import Located, Places, lifted, locate
from ..graph.randomness import own_random_state
from ..graph.structure import structure_of
from ..graph.surgery.shell import student_shapes
from ..graph.tracing import twin_of
from .equal_rows import even_members, random_clusters, trial_widths, with_equal_rows
from .layout import Layout
from .narrowing import Narrowing, average_rows, rows_first

TOLERANCE = 1e-4
"""Largest difference of two outputs, as a share of their standard deviation."""
_ATTEMPTS = ((torch.float32, 2), (torch.float64, 2), (torch.float32, 8))
"""Types of numbers, and how many images: norms of two nearly equal numbers make much of single precision's rounding."""
_LEAST_SPREAD = 1e-3  # of the largest entry, where all are nearly the same
_PROVED: set[Hashable] = set()


@dataclass(frozen=True)
class Proof:
    """What was tried, and how exact it is.

    Attributes:
        differences: largest difference of an output from the teacher's, as a share of the outputs' standard deviation,
            by width (`narrowest`, `between`, `full`) and mode (`training`, `evaluation`).
        parameters: of the network tried at each width.
    """

    differences: dict[tuple[str, str], float]
    parameters: dict[str, int]

    def __str__(self) -> str:
        sizes = ", ".join(f"{count:,}" for count in self.parameters.values())
        return (
            f"students of {sizes} parameters compute what their teacher does, in training and in evaluation; largest "
            f"difference {max(self.differences.values()):.1g} of the outputs' standard deviation"
        )


def prove_once(model: nn.Module, graph: ChannelGraph) -> None:
    """`prove_graph`, unless this process has proved a network of the same code and shapes.

    A network without values, on the meta device, cannot run, and is not proved.
    """
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        return
    key = structure_of(model), graph.input_size, graph.keep
    if key not in _PROVED:
        prove_graph(model, graph)
        _PROVED.add(key)


def prove_graph(model: nn.Module, graph: ChannelGraph) -> Proof:
    """Proves that students of a network compute what it does where rows are equal, on copies of random weights.

    Args:
        model: not changed, nor what is drawn next at random.
        graph: its channel graph.

    Raises:
        GraphError: students differ, fail, or use their teacher's memory; the message names the first such module.
    """
    reason = ""
    with own_random_state(model):
        places = locate(twin_of(model), graph)
        for dtype, images in _ATTEMPTS:
            try:
                return _Trial(model, graph, places, dtype, images).proof()
            except _DifferenceError as error:
                reason = str(error)
            except RunError:  # code that is written for one type of numbers
                continue
            if dtype == torch.float64:
                break
        raise GraphError(reason)


class _DifferenceError(GraphError):
    """Outputs that differ."""


class _Trial:
    """A copy of equal rows, and students of it.

    Args:
        model: not changed.
        graph: its channel graph.
        places: where its modules' outputs have their channels.
        dtype: of the numbers to compute with.
        images: how many.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, places: Places, dtype: torch.dtype, images: int) -> None:
        self._graph, self._places, self._dtype = graph, places, dtype
        even = even_members(graph, places.normalised)
        self._labels = random_clusters(graph, even, np.random.default_rng(0))
        counts = {name: int(labels.max()) + 1 for name, labels in self._labels.items()}
        self._plans = trial_widths(graph, counts, even)
        self._chain = Layout(graph, self._labels, counts)
        self._teacher = with_equal_rows(model, graph, self._chain, dtype)
        self._memory = memory_of(model)
        self._images = _pictures(images, graph.input_size).to(next(model.parameters()).device, dtype)

    def proof(self) -> Proof:
        """Tries three widths in both modes; raises `GraphError` for the first that is wrong."""
        expected = {training: self._run_teacher(training) for training in (True, False)}  # training sets statistics
        self._memory |= memory_of(self._teacher)
        differences, parameters = {}, {}
        for width, plan in self._plans.items():
            layout = Layout(self._graph, self._labels, plan)
            student = self._student(layout)
            parameters[width] = sum(parameter.numel() for parameter in student.parameters())
            for training in (False, True):
                where = width, "training" if training else "evaluation"
                differences[where] = self._tried(student, layout, training, expected[training], where)
        return Proof(differences, parameters)

    def _run_teacher(self, training: bool) -> list[Tensor]:
        try:
            return guarded_run(self._teacher, self._images, training, self._memory)
        except SharedMemoryError as error:
            raise _shared(error) from error
        except RunError as error:
            if self._dtype == torch.float64:
                raise
            mode = "training" if training else "evaluation"
            raise GraphError(
                f"the network fails on {len(self._images)} images in {mode} mode, in module '{_shown(error.module)}' "
                f"({error}); it is proved in both modes, so make its code run, or trace it with prove=False"
            ) from error

    def _student(self, layout: Layout) -> nn.Module:
        """A student made of the copy as one of a chain is."""
        graph, state = self._graph, self._teacher.state_dict()
        tied = {tie.tensor for tie in graph.ties}
        rows = {name: rows_first(state[name], graph.row_ties[name]) for name in graph.matrices}
        rows = {name: average_rows(whole, self._chain.axis(graph.row_ties[name])) for name, whole in rows.items()}
        vectors = {name: state[name] for name in tied - graph.matrices}
        means = Narrowing(graph, self._chain, self._chain, "folded").averages(vectors)
        narrowing = Narrowing(graph, self._chain, layout, "folded")
        own = {name: narrowing.gathered(name, mean) for name, mean in means.items()}
        made = narrowing(rows, {}, own) | {name: tensor for name, tensor in state.items() if name not in tied}
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in made.items()}
        student = rebuild(self._teacher, tensors)
        adapt_code(student, graph, layout.members)
        self._check_sizes(student, layout.widths)
        return student

    def _check_sizes(self, student: nn.Module, widths: Mapping[str, int]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self._teacher.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in student.state_dict().items()}
        for name, shape in student_shapes(self._graph, widths, shapes).items():
            if found[name] != shape:
                raise GraphError(f"'{name}' of a student has the shape {found[name]} instead of {shape} as planned")

    def _tried(
        self, student: nn.Module, layout: Layout, training: bool, expected: list[Tensor], where: tuple[str, str]
    ) -> float:
        """The largest difference in one mode."""
        calls = self._places.training if training else self._places.evaluation
        try:
            found = guarded_run(student, self._images, training, self._memory)
        except SharedMemoryError as error:
            raise _shared(error) from error
        except RunError as error:
            raise self._failure(error, where) from error
        difference = self._difference(expected, found, calls[-1], layout)
        if difference > TOLERANCE:
            raise self._first_difference(student, layout, training, calls, where, difference)
        return difference

    def _difference(self, expected: list[Tensor], found: list[Tensor], located: Located, layout: Layout) -> float:
        """Over the outputs of one call of a module; infinite for outputs of other shapes."""
        if not len(expected) == len(found) == len(located.channels):
            return float("inf")
        each = zip(expected, found, located.channels, strict=True)
        return max((self._apart(*tensors, layout) for tensors in each), default=0.0)

    def _apart(self, expected: Tensor, found: Tensor, channels: np.ndarray | None, layout: Layout) -> float:
        if not expected.is_floating_point():
            return 0.0
        whole = found if channels is None else lifted(found, channels, lambda row: _positions(row, layout))
        if whole is None or whole.shape != expected.shape:
            return float("inf") if whole is not None or found.shape == expected.shape else 0.0
        distances = [_distance(whole, expected)]
        if channels is not None and np.isin(channels, self._places.normalised).any():
            members = layout.members[channels[channels >= 0]].max()
            distances.append(_distance(whole / members**0.5, expected))
        return min(distances)

    # ---- what went wrong ---------------------------------------------------------------------------------------------

    def _failure(self, error: RunError, where: tuple[str, str]) -> GraphError:
        kind = type(self._teacher.get_submodule(error.module)).__name__
        return GraphError(
            f"a student of this network fails in {where[1]}, in module '{_shown(error.module)}', a {kind} ({error}): "
            f"its code keeps numbers of channels. {self._ways_out(error.module)}; or let it read them off its weights, "
            f"or set them in students with oskt_torchreid.graph.register_attribute_rule({kind}, rule)"
        )

    def _first_difference(
        self,
        student: nn.Module,
        layout: Layout,
        training: bool,
        calls: list[Located],
        where: tuple[str, str],
        difference: float,
    ) -> _DifferenceError:
        """The error that names the first module whose output differs."""
        outputs: list[tuple[str, list[Tensor]]] = []
        guarded_run(self._teacher, self._images, training, set(), lambda *call: outputs.append(_copied(*call)))
        found: list[tuple[str, list[Tensor]]] = []
        guarded_run(student, self._images, training, set(), lambda *call: found.append(_copied(*call)))
        first = ""
        for (name, expected), (other, got), located in zip(outputs, found, calls, strict=False):
            if name == other == located.module and self._difference(expected, got, located, layout) > difference / 10:
                first = name
                break
        kind = type(self._teacher.get_submodule(first)).__name__
        return _DifferenceError(
            f"a student of this network ({where[0]} width) does not compute in {where[1]} what its teacher does where "
            f"rows are equal: the first output that differs is that of module '{_shown(first)}', a {kind}, or what the "
            f"code before it makes of its input (in the end by {difference:.2g} of the outputs' deviation). Code that "
            f"counts channels, or uses their number, gives other results for merged ones. {self._ways_out(first)}; or "
            "let it keep the number as a constant"
        )

    def _ways_out(self, module: str) -> str:
        """How a module is kept whole, as a sentence; one that is kept already is at odds with what comes before it."""
        called = list(dict.fromkeys(call.module for call in self._places.evaluation))
        before = reversed(called[: called.index(module)] if module in called else [])
        others = [name for name in before if name and not module.startswith(f"{name}.")]
        free = [name for name in (module, *others) if name and not is_inside(name, self._graph.keep)]
        if not module or not free:
            return "Put this code into a module of its own; keep=[module] keeps that whole and compresses the rest"
        entries = [*self._graph.keep, *what_to_keep(self._teacher, free[0])]
        return f"keep=[{', '.join(map(repr, entries))}] keeps it whole and compresses the rest"


def _pictures(count: int, size: tuple[int, ...]) -> Tensor:
    """Images that networks tell apart: of different colours, with coarse and fine content."""
    channels, height, width = size
    coarse = torch.randn(count, channels, 4, 2)
    content = functional.interpolate(coarse, (height, width), mode="bilinear") + torch.randn(count, *size)
    return content + 2 * torch.randn(count, channels, 1, 1)


def _positions(channels: np.ndarray, layout: Layout) -> Tensor:
    """A student's position of each channel along an axis, `[length]`; constants (-1) are all in every student."""
    known = channels >= 0
    if not known.any():
        return torch.arange(len(channels))
    merged = layout.map_of(Axis(channels[known][None])).teacher_to_student.numpy()
    stays = ~known
    stays[known] = layout.members[channels[known]] > 0
    positions = np.cumsum(stays) - 1
    positions[known] = positions[known & stays][merged]
    return torch.from_numpy(positions)


def _copied(name: str, tensors: list[Tensor]) -> tuple[str, list[Tensor]]:
    return name, [tensor.clone() for tensor in tensors]


def _distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, over the standard deviation of what is expected."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (found - expected).abs())
    if not difference.any():
        return 0.0
    finite = torch.where(expected.isfinite(), expected, 0.0)
    spread = max(float(finite.std(correction=0)), _LEAST_SPREAD * float(finite.abs().max()))
    largest = float(difference.max()) / spread if spread else float("inf")
    return largest if largest == largest else float("inf")


def _shown(module: str) -> str:
    return module or "the network itself"


def _shared(error: SharedMemoryError) -> GraphError:
    return GraphError(
        f"a copy of this network uses the original's memory in module '{_shown(error.module)}' ({error}), so a student "
        "would be the teacher there: code that was made for one network alone (compiled, or a function that remembers "
        "a module) does that; give the network it was made of, or write it as a method"
    )
