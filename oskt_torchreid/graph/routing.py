"""Code of a network that moves channels by numbers of its own, made to follow a student's widths."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import GraphError, WidthError
from .rebuilding import rebuild
from .types import ChannelGraph, Reordering, SplitPoint, occupied


class ChannelOrder(nn.Module):
    """Puts channels in a given order: ``output[:, i] = input[:, order[i]]``. Stands in for a reordering module."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``[batch, channels, ...]`` to the same shape."""
        return images.index_select(1, self.order)


def adapt_code(student: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> None:
    """Makes a student's own code follow its widths, in place: split points, and modules that reorder channels.

    Raises:
        WidthError: parts whose lengths one attribute cannot describe (a later part longer than the first).
    """
    if dict(widths) == graph.sizes:
        return
    places = occupied(graph, widths)
    for split in graph.splits:
        setattr(student.get_submodule(split.module), split.attribute, _split_length(split, places))
    for reordering in graph.reorderings:
        parent, _, name = reordering.module.rpartition(".")
        setattr(student.get_submodule(parent), name, ChannelOrder(_order(reordering, places)))


def _split_length(split: SplitPoint, places: np.ndarray) -> int:
    lengths = [int(places[part].sum()) for part in split.parts]
    if any(length != lengths[0] for length in lengths[:-1]) or lengths[-1] > lengths[0]:
        raise WidthError(
            f"module '{split.module}' takes its channels apart every '{split.attribute}' channels, so parts of "
            f"{lengths} channels are impossible; give their groups equal widths"
        )
    return lengths[0]


def _order(reordering: Reordering, places: np.ndarray) -> Tensor:
    """Example: input channels 0 1 2 3, output 0 2 1 3, places 0 1 2 kept: the student's order is 0 2 1."""
    inputs, outputs = (channels[places[channels]] for channels in (reordering.inputs, reordering.outputs))
    position = np.argsort(inputs)
    return torch.from_numpy(position[np.searchsorted(inputs, outputs, sorter=position)])


def describe_code(student: nn.Module, graph: ChannelGraph) -> dict:
    """How ``adapt_code`` changed a student, in plain values for a file: split points, and reordering modules."""
    splits = [[s.module, s.attribute, getattr(student.get_submodule(s.module), s.attribute)] for s in graph.splits]
    orders = [r.module for r in graph.reorderings if isinstance(student.get_submodule(r.module), ChannelOrder)]
    return {"splits": splits, "orders": orders}


def restore_code(model: nn.Module, code: Mapping, shapes: Mapping[str, tuple]) -> nn.Module:
    """A copy of a network, its code adapted as ``describe_code`` says; orders are left to be filled.

    Args:
        model: left as it is; tensors of the copy are its own or empty.
        code: what ``describe_code`` gave.
        shapes: shape of each of the student's tensors, which gives the length of an order.

    Raises:
        GraphError: a description of another network.
    """
    student = rebuild(model, {})
    try:
        for module, attribute, length in code.get("splits", ()):
            setattr(student.get_submodule(module), attribute, int(length))
        for name in code.get("orders", ()):
            parent, _, child = name.rpartition(".")
            order = torch.empty(shapes[f"{name}.order"], dtype=torch.int64)
            setattr(student.get_submodule(parent), child, ChannelOrder(order))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GraphError(f"the description of the student's code is not one of this network: {error}") from error
    return student
