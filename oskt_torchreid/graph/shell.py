"""From a width plan to a network of the same class with new shapes.

Where a student's channels sit along an axis follows from *places*: the student's channel ``j`` of a group takes the
place of the group's ``j``-th channel, and the places of the others close up. A network's own code then moves the
student's channels exactly as it moved the teacher's. ``trial`` tests that for the networks whose code takes channels
apart or reorders them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import GraphError, WidthError
from .grouping import build_graph
from .tracing import run
from .types import ChannelGraph, Tie

AttributeRule = Callable[[nn.Module], None]
_ATTRIBUTE_RULES: dict[type[nn.Module], AttributeRule] = {}


def register_attribute_rule(module_type: type[nn.Module], rule: AttributeRule) -> None:
    """Sets the rule that corrects a module's own size attributes after its tensors have received new shapes.

    The rule changes the module in place; it also serves subclasses that have no rule of their own.
    """
    _ATTRIBUTE_RULES[module_type] = rule


def occupied(graph: ChannelGraph, widths: Mapping[str, int]) -> np.ndarray:
    """Whether a student of these widths has a channel in each channel's place, shape ``[num_channels]``.

    Example: a group of channels ``0..3`` at width 2 keeps the places ``0`` and ``1``.
    """
    width_of_group = np.array([widths[group.name] for group in graph.groups])
    return graph.rank_in_group < width_of_group[graph.group_of_channel]


def student_axis(tie: Tie, places: np.ndarray) -> np.ndarray:
    """The tie's channels (as places) in a student, shape ``[blocks, narrower length]``.

    Raises:
        WidthError: the blocks of a grouped convolution would differ in length.
    """
    kept = places[tie.channels]
    lengths = kept.sum(1)
    if (lengths != lengths[0]).any():
        raise WidthError(
            f"the convolution groups of '{tie.tensor}' would get different widths ({lengths.min()} to {lengths.max()}); "
            "give the channel groups along it equal widths"
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


def rebuild(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``model`` that holds the given tensors (no copies) in the place of its own.

    Args:
        model: left as it is; may live on the meta device.
        tensors: new tensors by state-dict name, of any shape; those that are not named are copied from ``model``.

    Returns:
        A module of the same class, its size attributes corrected; parameters stay parameters, buffers stay buffers.
    """
    state = model.state_dict(keep_vars=True)
    memo: dict[int, object] = {}
    for name, tensor in tensors.items():
        old = state[name]
        is_parameter = isinstance(old, nn.Parameter)
        memo[id(old)] = nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor
    result = copy.deepcopy(model, memo)
    for module in result.modules():
        for kind in type(module).__mro__:
            if kind in _ATTRIBUTE_RULES:
                _ATTRIBUTE_RULES[kind](module)
                break
    return result


def shell(model: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """A network of the model's class and the planned shapes, whose tied weights mean nothing yet (they are zero)."""
    graph.check_plan(widths)
    state = model.state_dict(keep_vars=True)
    shapes = student_shapes(graph, widths, {name: tuple(tensor.shape) for name, tensor in state.items()})
    zeros = {name: torch.zeros(shape, dtype=state[name].dtype, device=state[name].device) for name, shape in shapes.items()}
    return rebuild(model, zeros)


def check_movements(model: nn.Module, graph: ChannelGraph, movements: Mapping[str, str]) -> None:
    """Tests, on a trial shell with a different width ratio per group, that the network's own code moves channels right.

    Args:
        movements: where channels are taken apart or reordered, as the tracer recorded it.

    Raises:
        GraphError: says where, why, and what would be needed.
    """
    widths = _trial_plan(graph)
    try:
        narrow = shell(model, graph, widths)
        found = build_graph(narrow, run(narrow, graph.input_size), graph.input_size)
    except (GraphError, WidthError) as error:
        raise _movement_error(movements, str(error)) from error
    places = occupied(graph, widths)
    pairs = [
        np.stack([student_axis(tie, places).reshape(-1), other.channels.reshape(-1)])
        for tie in graph.ties
        for other in found.ties_of(tie.tensor)
        if (other.axis, other.role) == (tie.axis, tie.role)
    ]
    pairs = np.unique(np.concatenate(pairs, axis=1), axis=1)
    if len(pairs[0]) != len(np.unique(pairs[0])) or len(pairs[1]) != len(np.unique(pairs[1])):
        raise _movement_error(movements, "a narrower copy sends channels to other places")


def _trial_plan(graph: ChannelGraph) -> dict[str, int]:
    ratios = (0.4, 0.6, 0.5)
    stems: dict[str, int] = {}
    widths = {}
    for group in graph.groups:
        stem = group.name.partition("[")[0].partition(":")[0]
        ratio = ratios[stems.setdefault(stem, len(stems)) % len(ratios)]
        widths[group.name] = group.size if group.fixed else max(1, round(group.size * ratio))
    return widths


def _movement_error(movements: Mapping[str, str], reason: str) -> GraphError:
    places = [f"'{operator}' in '{module}'" for module, operator in movements.items()]
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return GraphError(
        f"the network's own code takes channels apart or reorders them at places that do not follow its widths "
        f"({', '.join(places[:3])}{more}): {reason}. A student of another width needs index buffers there, computed "
        "from the traced channels, which are not available for this network yet"
    )


# ---- attributes that repeat a shape ----------------------------------------------------------------------------------


def _convolution_attributes(module: nn.Module) -> None:
    rows, columns = module.weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
        module.groups = rows
    module.out_channels, module.in_channels = rows, columns * module.groups


def _linear_attributes(module: nn.Module) -> None:
    module.out_features, module.in_features = module.weight.shape


def _norm_attributes(module: nn.Module) -> None:
    vector = module.weight if module.weight is not None else module.running_mean
    if vector is not None:
        module.num_features = len(vector)


for _type in (nn.Conv1d, nn.Conv2d):
    register_attribute_rule(_type, _convolution_attributes)
register_attribute_rule(nn.Linear, _linear_attributes)
for _type in (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm):
    register_attribute_rule(_type, _norm_attributes)
register_attribute_rule(nn.PReLU, lambda module: setattr(module, "num_parameters", len(module.weight)))
