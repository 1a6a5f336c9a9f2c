"""Where the channels of a network's outputs are, so that outputs of different widths can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..networks import watched
from .building import graph_channels
from .channel_graph import ChannelGraph
from .keeping import Keeping
from .shadows import compact
from .tracer import Tracer, nested_tensors, run


class Located(NamedTuple):
    """Tensors that a call of a module returned.

    Attributes:
        module: its name; empty for the network itself.
        channels: per tensor, the channel of each element, -1 for none, in the tensor's shape with every axis along
            which it does not vary cut to length 1; `None` for a tensor without channels.
    """

    module: str
    channels: tuple[np.ndarray | None, ...]


class Places(NamedTuple):
    """The calls of a network's modules, in the order in which they return; the network's own is the last.

    Attributes:
        training: in training mode.
        evaluation: in evaluation mode.
        normalised: the channels that evaluation divides by their length.
    """

    training: list[Located]
    evaluation: list[Located]
    normalised: np.ndarray


def locate(model: nn.Module, graph: ChannelGraph) -> Places:
    """Traces a network in both modes, and notes where every module's outputs have their channels.

    Args:
        model: not changed.
        graph: its channel graph.
    """
    tracer = Tracer(model, Keeping(graph.keep))
    found: list[list[tuple[str, list[Tensor | None]]]] = []
    for training in (True, False):
        returned: list[tuple[str, list[Tensor | None]]] = []
        with watched(model.named_modules(), leave=_noting(tracer, returned)):
            run(model, graph.input_size, tracer, training=training)
        found.append(returned)
    channels = graph_channels(tracer, graph)

    def located(name: str, shadows: list[Tensor | None]) -> Located:
        return Located(name, tuple(None if s is None else channels[compact(s).numpy()] for s in shadows))

    normalised = np.unique(np.concatenate([np.empty(0, int), *(channels[ids] for ids, _ in tracer.lengths)]))
    passes = [[located(*call) for call in calls] for calls in found]
    return Places(passes[0], passes[1], normalised[normalised >= 0])


def _noting(tracer: Tracer, returned: list) -> Callable[..., None]:
    def leave(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        returned.append((name, [tracer.shadow(tensor) for tensor in nested_tensors(output)]))

    return leave


def lifted(tensor: Tensor, channels: np.ndarray, position_of: Callable[[np.ndarray], Tensor]) -> Tensor | None:
    """A student's tensor as the teacher would have it: every channel has its slot's values.

    Args:
        tensor: of the student.
        channels: see `Located`; of the teacher's.
        position_of: for the channels along an axis, `[length]`, -1 for a constant: the student's position of each.

    Returns:
        The tensor in the teacher's shape; `None` where that cannot be told.

    Example: channels `0 1 2` of which 0 and 2 share the first of a student's two slots: `[[5, 7]]` becomes
    `[[5, 7, 5]]`.
    """
    if tensor.dim() != channels.ndim:
        return None
    varying = [axis for axis, size in enumerate(channels.shape) if size > 1]
    if not varying:
        return tensor
    axis = varying[-1]
    if len(varying) == 1:
        positions = position_of(channels.reshape(-1)).to(tensor.device)
        return tensor.index_select(axis, positions) if positions.max() < tensor.shape[axis] else None
    first = varying[0]
    if channels.shape[first] != tensor.shape[first]:
        return None
    parts = [
        lifted(tensor.narrow(first, place, 1), channels.take([place], first), position_of)
        for place in range(tensor.shape[first])
    ]
    known = [part for part in parts if part is not None]
    return torch.cat(known, first) if len(known) == len(parts) else None
