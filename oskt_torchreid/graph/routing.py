"""Code of a network that moves channels by numbers of its own, made to follow a student's widths."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import WidthError
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
