"""Code of a network that moves or counts channels by numbers of its own, made to follow a student's widths.

Three things are adapted: integer attributes that say where channels part (``SplitPoint``), modules whose own code does
nothing but move channels between the modules that it calls (``Route``), and modules that reduce their input over its
channels (``Reduction``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import GraphError, WidthError
from ..channel_graph import ChannelGraph
from ..modules import Reduction, Route, SplitPoint
from .rebuild import rebuild

WEIGHT = "channel_weight"


class Routed(nn.Module):
    """Moves channels by index buffers. Stands in for a module, with its children, tensors and attributes.

    Source 0 is the input, source ``i`` the output of call ``i - 1``. Each call, and at last the output, reads some
    sources, joined along the channels, in the order of an index buffer (``None``: as they are)::

        calls, reads = ("branch",), ((0,), (0, 1))           # one call that reads the input; the output reads both
        route_0, route_1 = [2, 3], [0, 4, 1, 5]              # on 4 channels: the second half; two kinds in turn
    """

    def __init__(
        self,
        module: nn.Module,
        calls: Sequence[str],
        reads: Sequence[Sequence[int]],
        orders: Sequence[Tensor | None],
    ) -> None:
        super().__init__()
        vars(self).update(vars(module))
        self.route_calls = tuple(str(call) for call in calls)
        self.route_reads = tuple(tuple(int(source) for source in sources) for sources in reads)
        for number, order in enumerate(orders):
            self.register_buffer(f"route_{number}", order)

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``[batch, channels, ...]`` as the replaced module did."""
        sources = [images]
        for number, call in enumerate(self.route_calls):
            sources.append(self.get_submodule(call)(self._gather(sources, number)))
        return self._gather(sources, len(self.route_calls))

    def ordered(self) -> list[bool]:
        """Whether each call, and at last the output, has an index buffer."""
        return [getattr(self, f"route_{number}") is not None for number in range(len(self.route_reads))]

    def _gather(self, sources: list[Tensor], number: int) -> Tensor:
        read = [sources[source] for source in self.route_reads[number]]
        joined = torch.cat(read, 1) if len(read) > 1 else read[0]
        order = getattr(self, f"route_{number}")
        return joined if order is None else joined.index_select(1, order)


def weigh_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Forward pre-hook: each channel of the input times its weight, so that a plain reduction counts members."""
    (images,) = inputs
    return (images * getattr(module, WEIGHT).reshape(-1, *[1] * (images.dim() - 2)),)


def adapt_code(student: nn.Module, graph: ChannelGraph, members: np.ndarray) -> None:
    """Makes a student's own code follow its widths, in place: split points, routes, reductions.

    Args:
        student: a network of the teacher's structure and narrower tensors.
        graph: the teacher's channel graph.
        members: how many of the teacher's channels stand at each channel's place, shape ``[num_channels]``; 0 where
            the student has no channel and the axes close up.

    Raises:
        WidthError: parts whose lengths one attribute cannot describe (a later part longer than the first).
    """
    if (members == 1).all():
        return
    for split in graph.splits:
        setattr(student.get_submodule(split.module), split.attribute, _split_length(split, members > 0))
    like = next((p for p in student.parameters() if p.is_floating_point()), torch.empty(()))
    for route in graph.routes:
        orders = [None if order is None else order.to(like.device) for order in _orders(route, members > 0)]
        module = Routed(student.get_submodule(route.module), route.calls, route.reads, orders)
        _replace(student, route.module, module)
    for reduction in graph.reductions:
        _weigh(student.get_submodule(reduction.module), _weights(reduction, members).to(like))


def code_buffers(graph: ChannelGraph) -> set[str]:
    """Names of the buffers of numbers (not of indices) that ``adapt_code`` sets."""
    return {f"{reduction.module}.{WEIGHT}" for reduction in graph.reductions}


def _split_length(split: SplitPoint, places: np.ndarray) -> int:
    lengths = [int(places[part].sum()) for part in split.parts]
    if any(length != lengths[0] for length in lengths[:-1]) or lengths[-1] > lengths[0]:
        raise WidthError(
            f"module '{split.module}' takes its channels apart every '{split.attribute}' channels, so parts of "
            f"{lengths} channels are impossible; give their groups equal widths"
        )
    return lengths[0]


def _orders(route: Route, places: np.ndarray) -> list[Tensor | None]:
    """Index of each call, and of the output, among the student's channels; ``None`` where it changes nothing.

    Example: channels 0 1 2 3 are read in the order 0 2 1 3 and the places 0 1 2 are kept: the student's order is 0 2 1.
    """
    orders: list[Tensor | None] = []
    for reads, order in zip(route.reads, route.orders, strict=True):
        kept = np.concatenate([places[route.sources[source]] for source in reads])
        position = np.cumsum(kept) - 1
        narrow = position[order[kept[order]]]
        unchanged = np.array_equal(narrow, np.arange(kept.sum()))
        orders.append(None if unchanged else torch.from_numpy(narrow))
    return orders


def _replace(student: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(student.get_submodule(parent), child, module)


def _weights(reduction: Reduction, members: np.ndarray) -> Tensor:
    """Weight per channel of a student. Example: channels that stand for 2 and 1 members have a mean with 4/3, 2/3."""
    counts = members[reduction.channels]
    counts = counts[counts > 0]
    scale = len(counts) / counts.sum() if reduction.operator == "mean" else 1.0
    return torch.from_numpy(counts * scale)


def _weigh(module: nn.Module, weights: Tensor) -> None:
    """A module that has weights already (the teacher was a student) has them multiplied."""
    own = getattr(module, WEIGHT, None)
    _set_weights(module, weights if own is None else own * weights)


def _set_weights(module: nn.Module, weights: Tensor) -> None:
    module.register_buffer(WEIGHT, weights)
    if not _is_weighted(module):
        module.register_forward_pre_hook(weigh_input)


def _is_weighted(module: nn.Module) -> bool:
    return weigh_input in module._forward_pre_hooks.values()


# ---- files -----------------------------------------------------------------------------------------------------------


def describe_code(student: nn.Module, graph: ChannelGraph) -> dict:
    """How a student's code differs from its class's, in plain values for a file; indices and weights are buffers."""
    modules = dict(student.named_modules())
    return {
        "splits": [[s.module, s.attribute, getattr(modules[s.module], s.attribute)] for s in graph.splits],
        "routes": [
            [name, list(module.route_calls), [list(reads) for reads in module.route_reads], module.ordered()]
            for name, module in modules.items()
            if isinstance(module, Routed)
        ],
        "weighted": [name for name, module in modules.items() if _is_weighted(module)],
    }


def restore_code(model: nn.Module, code: Mapping, shapes: Mapping[str, tuple]) -> nn.Module:
    """A copy of a network, its code adapted as ``describe_code`` says; index and weight buffers are left to be filled.

    Args:
        model: left as it is; tensors of the copy are its own or empty.
        code: what ``describe_code`` gave.
        shapes: shape of each of the student's tensors, which gives the lengths of the buffers.

    Raises:
        GraphError: a description of another network.
    """
    student = rebuild(model, {})
    try:
        for module, attribute, length in code.get("splits", ()):
            check_split(student.get_submodule(module), attribute)
            setattr(student.get_submodule(module), attribute, int(length))
        for name, calls, reads, ordered in code.get("routes", ()):
            names = [f"{name}.route_{number}" if has_order else "" for number, has_order in enumerate(ordered)]
            orders = [torch.empty(shapes[n], dtype=torch.int64) if n else None for n in names]
            _replace(student, name, Routed(student.get_submodule(name), calls, reads, orders))
        for name in code.get("weighted", ()):
            _set_weights(student.get_submodule(name), torch.empty(shapes[f"{name}.{WEIGHT}"]))
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise GraphError(f"the description of the student's code is not one of this network: {error}") from error
    return student


def check_split(module: nn.Module, attribute: str) -> None:
    """Raises ``GraphError`` unless a module has such a number: nothing else may be replaced by what a file says."""
    if type(vars(module).get(attribute)) is not int:
        raise GraphError(f"{type(module).__name__} has no number '{attribute}' that says where channels part")


def check_code_fits(model: nn.Module, graph: ChannelGraph) -> None:
    """Raises ``GraphError`` unless a network has every module and number that a stored graph adapts."""
    try:
        for split in graph.splits:
            check_split(model.get_submodule(split.module), split.attribute)
        for route in graph.routes:
            for call in route.calls:
                model.get_submodule(route.module).get_submodule(call)
        for part in (*graph.reductions, *graph.norms, *graph.attentions):
            model.get_submodule(part.module)
    except AttributeError as error:
        raise GraphError(f"the channel graph belongs to another network: {error}") from error
