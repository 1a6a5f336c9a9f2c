"""A network's structure with other tensors: copied without weights, with its size attributes and its code adapted."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import GraphError, first_line
from ...registry import remembered
from ..channel_graph import ChannelGraph
from ..sizes import number_of, set_number
from .routing import (
    WEIGHT_BUFFER,
    Routed,
    input_weights,
    orders_of,
    replace,
    set_weights,
    split_length,
    weigh,
    weigh_input,
)

M = TypeVar("M", bound=nn.Module)


@remembered
def register_attribute_rule(module_type: type[M], rule: Callable[[M], None]) -> None:
    """Sets the rule that corrects a module's own size attributes after its tensors have received new shapes.

    The rule changes the module in place; it also applies to subclasses without a rule.
    """
    _ATTRIBUTE_RULES[module_type] = rule


def rebuild(model: nn.Module, tensors: Mapping[str, Tensor], training: bool | None = None) -> nn.Module:
    """A copy of `model` that holds the given tensors themselves, not copies, instead of its own.

    Args:
        model: not changed; may live on the meta device.
        tensors: new tensors by state-dict name, of any shape; those that are not named are copied from `model`.
        training: the mode of all modules of the copy; `None`: as they are.

    Returns:
        A module of the same class, its size attributes corrected; parameters stay parameters, buffers stay buffers.
    """
    state = model.state_dict(keep_vars=True)
    memo: dict[int, object] = {}
    for name, tensor in tensors.items():
        old = state[name]
        is_parameter = isinstance(old, nn.Parameter)
        memo[id(old)] = nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor
    copies = _copy_structure(model, memo)
    for module in copies:
        if training is not None:
            vars(module)["training"] = training  # ten times as fast as setting an attribute of a module
        for kind in type(module).__mro__:
            if kind in _ATTRIBUTE_RULES:
                _ATTRIBUTE_RULES[kind](module)
                break
    return copies[0]


def _copy_structure(model: nn.Module, memo: dict[int, object]) -> list[nn.Module]:
    """`copy.deepcopy(model, memo)`, several times faster: only unknown, mutable values are copied with it.

    Returns:
        Copies of all its modules, the model's own first.
    """
    modules = list(model.modules())
    copies = [type(module).__new__(type(module)) for module in modules]
    memo.update(zip(map(id, modules), copies, strict=True))
    for module, twin in zip(modules, copies, strict=True):
        attributes = twin.__dict__
        attributes.update(module.__dict__)
        for name, value in module.__dict__.items():
            if type(value) not in _IMMUTABLE:
                attributes[name] = _copied_attribute(module, name, value, memo)
        attributes.pop("_compiled_call_impl", None)  # of `module.compile()`: it calls the module that it was made of
    return copies


def _copied_attribute(module: nn.Module, name: str, value: Any, memo: dict[int, object]) -> object:
    try:
        if type(value) in (dict, OrderedDict):  # mostly an empty table of hooks
            items = [(key, _copied(item, memo)) for key, item in value.items()] if value else ()
            return type(value)(items)
        return _copied(value, memo)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise GraphError(
            f"attribute '{name}' of a {type(module).__name__} cannot be copied ({first_line(error)}), and students are "
            "copies; keep it outside of the network, or delete it"
        ) from error


_IMMUTABLE = {type(None), bool, int, float, str, type, FunctionType}


def _copied(value: Any, memo: dict[int, object]) -> object:
    kind = type(value)
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind in _IMMUTABLE or (kind is tuple and _IMMUTABLE.issuperset(map(type, value))):
        return value
    if kind is set and _IMMUTABLE.issuperset(map(type, value)):
        return set(value)
    if kind is Tensor and not value.is_leaf:  # of an earlier forward pass; torch refuses to copy it
        return memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(value, memo)


# ---- code ------------------------------------------------------------------------------------------------------------


def adapt_code(student: nn.Module, graph: ChannelGraph, members: np.ndarray) -> None:
    """Makes a student's own code follow its widths, in place: split points, routes, reductions.

    Args:
        student: a network of the teacher's structure and narrower tensors.
        graph: the teacher's channel graph.
        members: how many of the teacher's channels are merged at each channel's place, shape `[num_channels]`; 0 where
            the student has no channel and the place is dropped.

    Raises:
        WidthError: parts whose lengths one attribute cannot describe (a later part longer than the first).
    """
    if (members == 1).all():
        return
    for split in graph.splits:
        set_number(student.get_submodule(split.module), split.attribute, split_length(split, members > 0))
    like = next((p for p in student.parameters() if p.is_floating_point()), torch.empty(()))
    for route in graph.routes:
        orders = [None if order is None else order.to(like.device) for order in orders_of(route, members > 0)]
        module = Routed(student.get_submodule(route.module), route.calls, route.reads, orders)
        replace(student, route.module, module)
    for reduction in graph.reductions:
        weigh(student.get_submodule(reduction.module), input_weights(reduction, members).to(like))


def code_buffers(graph: ChannelGraph) -> set[str]:
    """Names of the buffers of numbers (not of indices) that `adapt_code` sets."""
    return {f"{reduction.module}.{WEIGHT_BUFFER}" for reduction in graph.reductions}


def describe_code(student: nn.Module, graph: ChannelGraph) -> dict:
    """How a student's code differs from its class's, in plain values for a file; indices and weights are buffers."""
    modules = dict(student.named_modules())
    return {
        "splits": [[s.module, s.attribute, number_of(modules[s.module], s.attribute)] for s in graph.splits],
        "routes": [
            [name, list(module.route_calls), [list(reads) for reads in module.route_reads], module.ordered()]
            for name, module in modules.items()
            if isinstance(module, Routed)
        ],
        "weighted": [name for name, module in modules.items() if weigh_input in module._forward_pre_hooks.values()],
    }


def restore_code(model: nn.Module, code: Mapping, shapes: Mapping[str, tuple]) -> nn.Module:
    """A copy of a network, its code adapted as `describe_code` says; index and weight buffers are filled later.

    Args:
        model: not changed; tensors of the copy are its own or empty.
        code: what `describe_code` gave.
        shapes: shape of each of the student's tensors, which gives the lengths of the buffers.

    Raises:
        GraphError: the description of another network.
    """
    student = rebuild(model, {})
    try:
        for module, attribute, length in code.get("splits", ()):
            check_split(student.get_submodule(module), attribute)
            set_number(student.get_submodule(module), attribute, int(length))
        for name, calls, reads, ordered in code.get("routes", ()):
            names = [f"{name}.route_{number}" if has_order else "" for number, has_order in enumerate(ordered)]
            orders = [torch.empty(shapes[n], dtype=torch.int64) if n else None for n in names]
            replace(student, name, Routed(student.get_submodule(name), calls, reads, orders))
        for name in code.get("weighted", ()):
            set_weights(student.get_submodule(name), torch.empty(shapes[f"{name}.{WEIGHT_BUFFER}"]))
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise GraphError(f"the description of the student's code is not one of this network: {error}") from error
    return student


def check_split(module: nn.Module, attribute: str) -> None:
    """Raises `GraphError` unless a module has such a number: a file may replace nothing else."""
    if number_of(module, attribute) is None:
        raise GraphError(f"{type(module).__name__} has no number '{attribute}' that says where channels part")


def check_code_fits(model: nn.Module, graph: ChannelGraph) -> None:
    """Raises `GraphError` unless a network has every module and number that a stored graph adapts."""
    try:
        for split in graph.splits:
            check_split(model.get_submodule(split.module), split.attribute)
        for route in graph.routes:
            for call in route.calls:
                model.get_submodule(route.module).get_submodule(call)
        weighted = [reduction.module for reduction in graph.reductions]
        for module in (*weighted, *graph.module_blocks):
            model.get_submodule(module)
    except AttributeError as error:
        raise GraphError(f"the channel graph belongs to another network: {error}") from error


# ---- attributes that repeat a shape ----------------------------------------------------------------------------------


def _convolution_attributes(module: nn.Conv1d | nn.Conv2d) -> None:
    rows, columns = module.weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels:
        module.groups = rows * module.in_channels // module.out_channels
    module.out_channels, module.in_channels = rows, columns * module.groups


def _transposed_attributes(module: nn.ConvTranspose1d | nn.ConvTranspose2d) -> None:
    columns, rows = module.weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
        module.groups = columns
    module.in_channels, module.out_channels = columns, rows * module.groups


def _linear_attributes(module: nn.Linear) -> None:
    module.out_features, module.in_features = module.weight.shape


def _norm_attributes(module: nn.modules.batchnorm._NormBase) -> None:
    vector = module.weight if module.weight is not None else module.running_mean
    if vector is not None:
        module.num_features = len(vector)


def _layer_norm_attributes(module: nn.LayerNorm | nn.RMSNorm) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _group_norm_attributes(module: nn.GroupNorm) -> None:
    if module.weight is not None:
        each_by_itself = module.num_groups == module.num_channels
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels if each_by_itself else module.num_groups


def _attention_attributes(module: nn.MultiheadAttention) -> None:
    joined = module.in_proj_weight is not None
    module.embed_dim = (module.in_proj_weight if joined else module.q_proj_weight).shape[1]
    module.head_dim = module.embed_dim // module.num_heads
    module.kdim = module.embed_dim if joined else module.k_proj_weight.shape[1]
    module.vdim = module.embed_dim if joined else module.v_proj_weight.shape[1]


def _prelu_attributes(module: nn.PReLU) -> None:
    module.num_parameters = len(module.weight)


_ATTRIBUTE_RULES: dict[type[nn.Module], Callable[[Any], None]] = {
    nn.Conv1d: _convolution_attributes,
    nn.Conv2d: _convolution_attributes,
    nn.ConvTranspose1d: _transposed_attributes,
    nn.ConvTranspose2d: _transposed_attributes,
    nn.Linear: _linear_attributes,
    nn.modules.batchnorm._BatchNorm: _norm_attributes,
    nn.modules.instancenorm._InstanceNorm: _norm_attributes,
    nn.LayerNorm: _layer_norm_attributes,
    nn.RMSNorm: _layer_norm_attributes,
    nn.GroupNorm: _group_norm_attributes,
    nn.MultiheadAttention: _attention_attributes,
    nn.PReLU: _prelu_attributes,
}
