"""From a width plan to a network of the same class with new shapes.

Where a student's channels sit along an axis follows from *places*: the student's channel ``j`` of a group takes the
place of the group's ``j``-th channel, and the places of the others close up. A network's own code then moves the
student's channels exactly as it moved the teacher's; ``movement.py`` tests that for the networks whose code takes
channels apart or reorders them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from ...errors import WidthError
from ..channel_graph import ChannelGraph
from ..plans import occupied
from ..types import Tie
from .rebuild import rebuild
from .routing import adapt_code


def student_axis(tie: Tie, places: np.ndarray) -> np.ndarray:
    """The tie's channels (as places) in a student, shape ``[blocks, narrower length]``.

    Raises:
        WidthError: the blocks of a grouped convolution would differ in length.
    """
    kept = places[tie.channels]
    lengths = kept.sum(1)
    if (lengths != lengths[0]).any():
        raise WidthError(
            f"the convolution groups of '{tie.tensor}' would get different widths ({lengths.min()} to {lengths.max()})"
            "; give the channel groups along it equal widths"
        )
    return tie.channels[kept].reshape(tie.blocks, -1)


def student_shapes(graph: ChannelGraph, widths: Mapping[str, int], shapes: Mapping[str, tuple]) -> dict[str, tuple]:
    """Shape of every tied tensor in a student of these widths, from the teacher's ``shapes``."""
    places = occupied(graph, widths)
    lengths = {id(tie.channels): student_axis(tie, places).shape[1] for tie in graph.ties}
    result: dict[str, tuple] = {}
    for tie in graph.ties:
        shape = list(result.get(tie.tensor, shapes[tie.tensor]))
        shape[tie.axis] = tie.shaped(lengths[id(tie.channels)])
        result[tie.tensor] = tuple(shape)
    return result


def shell(model: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """A network of the model's class and the planned shapes, whose tied weights mean nothing yet (they are zero)."""
    graph.check_plan(widths)
    state = model.state_dict(keep_vars=True)
    shapes = student_shapes(graph, widths, {name: tuple(tensor.shape) for name, tensor in state.items()})
    narrow = rebuild(model, {name: state[name].new_zeros(shape) for name, shape in shapes.items()})
    adapt_code(narrow, graph, occupied(graph, widths).astype(np.int64))
    return narrow
