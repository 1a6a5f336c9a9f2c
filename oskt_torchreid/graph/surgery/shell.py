"""From a width plan to a network of the same class with new shapes.

A channel's *place* is its position within its group. A student's channel `j` of a group takes the place of the group's
`j`-th channel, and the remaining places are dropped; so the order of its channels along every axis is the teacher's. A
network's own code then moves the student's channels exactly as it moved the teacher's; `trial.py` tests this for
networks whose code splits or reorders channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from ..channel_graph import Axis, ChannelGraph
from ..plans import check_plan, occupied_places
from .rebuild import adapt_code, rebuild


def student_axis(axis: Axis, occupied: np.ndarray) -> np.ndarray:
    """The channels of an axis (as places) in a student of a legal plan, shape `[blocks, narrower length]`."""
    return axis.channels[occupied[axis.channels]].reshape(axis.blocks, -1)


def student_shapes(graph: ChannelGraph, widths: Mapping[str, int], shapes: Mapping[str, tuple]) -> dict[str, tuple]:
    """Shape of every tied tensor in a student of these widths, from the teacher's `shapes`."""
    occupied = occupied_places(graph, widths)
    lengths = {axis: student_axis(axis, occupied).shape[1] for axis in graph.axes}
    result: dict[str, tuple] = {}
    for tie in graph.ties:
        shape = list(result.get(tie.tensor, shapes[tie.tensor]))
        shape[tie.dimension] = tie.shaped(lengths[tie.axis])
        result[tie.tensor] = tuple(shape)
    return result


def shell(model: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """A network of the model's class and the planned shapes, whose tied weights are zero: they are filled in later."""
    check_plan(graph, widths)
    state = model.state_dict(keep_vars=True)
    shapes = student_shapes(graph, widths, {name: tuple(tensor.shape) for name, tensor in state.items()})
    narrow = rebuild(model, {name: state[name].new_zeros(shape) for name, shape in shapes.items()})
    adapt_code(narrow, graph, occupied_places(graph, widths).astype(np.int64))
    return narrow
