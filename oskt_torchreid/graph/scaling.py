"""Where positive factors on a network's features can be folded: which rows are multiplied, which columns divided.

A factor per channel passes unchanged through everything that is positively homogeneous channel by channel: ReLU,
pooling, sums, concatenation, movement. So the rows of the layers that produce the feature can be multiplied by it, and
the columns of everything else that consumes the output of those layers divided. The rest of the network stays the same
bit for bit.

Whether an activation carries the factor is one unknown per activation, and one per tensor's rows or columns; operators
relate them. Example: in `relu(norm(conv(x)) + skip)` with the sum as feature, sum, `norm`'s rows and `skip` carry
the factor, `conv`'s rows do not, and a classifier on the feature has its columns divided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import GraphError
from .building import graph_channels
from .calls import Call
from .channel_graph import ChannelGraph
from .keeping import Keeping
from .relations import Relations, Unknown
from .shadows import compact
from .tracer import Tracer, run


@dataclass(frozen=True, eq=False)
class FeaturePath:
    """The feature of a network, and how factors on it are folded into the network's tensors.

    Attributes:
        channels: channel per position of the feature, shape `[length]`; -1 for a constant, and for what a part gives
            that is kept whole.
        rows: tensors whose positions along their `row` axis are multiplied.
        columns: matrices whose columns (rows of a depthwise convolution, which has none) are divided.
        statistics: batch norms whose input carries the factors: `running_mean` and `running_var` follow.
        obstacle: why the factors cannot be folded; empty where they can.
    """

    channels: np.ndarray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    statistics: tuple[str, ...]
    obstacle: str = ""


def feature_path(model: nn.Module, graph: ChannelGraph) -> FeaturePath:
    """Traces a network once in training and once in evaluation.

    Args:
        model: not changed; may live on the meta device.
        graph: its channel graph.

    Raises:
        GraphError: what evaluation returns is not made of channels of the graph.
    """
    relations = Relations()
    for head in graph.heads:
        relations.unscaled(("rows", head), f"the outputs of '{head}' are results")
    run(model, graph.input_size, ScaleTracer(model, relations, "training", graph.keep))
    tracer = ScaleTracer(model, relations, "evaluation", graph.keep)
    run(model, graph.input_size, tracer, training=False)
    features = [relations.find(tracer.unknown(result)) for result in tracer.results if tracer.carries(result)]
    channels = _channels_of(tracer, graph)
    scaled, obstacle = relations.solve(set(features))
    if len(features) > 1 or len(tracer.results) > 1:
        obstacle = "the network returns several features"
    chosen = {kind: _members(relations, scaled, kind) for kind in ("rows", "columns", "statistics")}
    return FeaturePath(channels, obstacle=obstacle, **({} if obstacle else chosen) or dict.fromkeys(chosen, ()))


@dataclass(frozen=True)
class ScalePath:
    """Tensors that one factor per channel can be folded into, so that the network computes the same.

    Attributes:
        rows: tensors whose positions along their `row` axis are multiplied.
        columns: matrices whose columns (rows of a depthwise convolution, which has none) are divided.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]


def scale_paths(model: nn.Module, graph: ChannelGraph) -> list[ScalePath]:
    """Every place inside of a network in evaluation where factors per channel can be folded in.

    Results carry no factors, so the network computes the same whatever they are. Places where only running statistics
    would remove them again are left out: a norm makes nothing of the scale of its input.

    Args:
        model: not changed.
        graph: its channel graph.
    """
    relations = Relations()
    tracer = ScaleTracer(model, relations, "evaluation", graph.keep)
    run(model, graph.input_size, tracer, training=False)
    for result in tracer.results:
        if torch.is_tensor(result) and tracer.carries(result):
            relations.unscaled(tracer.unknown(result), "it is a result")
    for head in graph.heads:
        relations.unscaled(("rows", head), f"the outputs of '{head}' are results")
    found = {}
    for key in [key for key in relations.known if key[0] == "rows"]:
        scaled, obstacle = relations.solve({key})
        if not obstacle and not _members(relations, scaled, "statistics"):
            path = ScalePath(_members(relations, scaled, "rows"), _members(relations, scaled, "columns"))
            found[path] = path.rows and path.columns
    return [path for path, useful in found.items() if useful]


def _members(relations: Relations, scaled: set[Unknown], kind: str) -> tuple[str, ...]:
    """Names of the tensors that carry the factor in one role."""
    named = [key for key in relations.known if key[0] == kind and relations.find(key) in scaled]
    return tuple(sorted(tensor for key in named for tensor in relations.tensors.get(key, (key[1],))))


def _channels_of(tracer: Tracer, graph: ChannelGraph) -> np.ndarray:
    """Channel per position of the first result, found through the axes that both traces have tied; -1 for none."""
    result = tracer.results[0]
    shadow = tracer.shadow(result)
    if result.dim() != 2 or (shadow is None and tracer.giver(result) is None):
        raise GraphError("in evaluation the network returns no feature [batch, length] that is made of channels")
    if shadow is None:
        return np.full(result.shape[1], -1)
    return graph_channels(tracer, graph)[compact(shadow)[0].expand(shadow.shape[1]).numpy()]


class ScaleTracer(Tracer):
    """A tracer that also notes how each operator passes a factor on.

    Args:
        model: the network that will run.
        relations: collects what is found; shared by several runs, which have the same tensors but different
            activations.
        run_name: distinguishes this run's activations from another's.
        keep: names of the modules that stay whole.
    """

    def __init__(self, model: nn.Module, relations: Relations, run_name: str, keep: tuple[str, ...] = ()) -> None:
        super().__init__(model, Keeping(keep))
        self._relations = relations
        self._run_name = run_name

    def unknown(self, tensor: Tensor) -> Unknown:
        """The unknown of an activation, or of a bare parameter's entries."""
        name = self.name_of(tensor)
        return ("rows", name) if name else ("activation", self._run_name, str(id(tensor)))

    def carries(self, tensor: object) -> bool:
        """Whether a tensor carries channels: an activation, or a bare parameter that was combined with one."""
        return id(tensor) in self._shadows or (torch.is_tensor(tensor) and self.name_of(tensor) in self.elementwise)

    def _follow(self, call: Call) -> bool:
        before = [tensor for tensor in call.tensors if self.carries(tensor)]
        if super()._follow(call):
            self._relate(call)
            return True
        for tensor in before:
            self.stop(tensor, call)
        return False

    def _relate(self, call: Call) -> None:
        operator = call.operator.removesuffix("_")
        if operator in _LENGTHS and not self.training and not self.carries(call.output):
            return  # a feature is divided by its own length, scaled or not
        if operator.endswith("_as") and not self.carries(call.args[0]):
            return  # only the shape is taken from a tensor that carries channels
        tracked = [tensor for tensor in call.tensors if self.carries(tensor)]
        passes = any(map(self.carries, call.outputs))
        if tracked:  # an operator that gives none of them mixes channels, or takes their sum
            (_SCALE_RULES.get(operator, _stop) if passes else _stop)(self, call, tracked)
        elif passes:  # channels begin here: rows of a layer that reads the image
            rule = _SCALE_RULES.get(operator, _stop)
            (rule if rule is _layer else _stop)(self, call, tracked)

    def stop(self, tensor: Tensor, call: Call) -> None:
        """This operator does not pass factors on, so that a tensor carries none."""
        place = f"'{call.operator.removesuffix('_')}' in module '{self.module}'"
        self._relations.unscaled(self.unknown(tensor), f"{place} does not commute with positive factors per channel")


_LENGTHS = ("linalg_vector_norm", "norm")
ScaleRule = Callable[[ScaleTracer, Call, list[Tensor]], None]
"""Relates the factor of an operator's inputs, of which the last argument lists those with channels, to its outputs'."""


def _stop(tracer: ScaleTracer, call: Call, tracked: list[Tensor]) -> None:
    for tensor in (*tracked, *call.outputs):
        tracer.stop(tensor, call)


def _keep(tracer: ScaleTracer, call: Call, tracked: list[Tensor]) -> None:
    """Homogeneous in all inputs with channels together: movement, pooling, ReLU, sums of activations."""
    tracer._relations.equal(*map(tracer.unknown, (*tracked, *call.outputs)))


def _keep_if(condition: Callable[[ScaleTracer, Call], bool]) -> ScaleRule:
    return lambda tracer, call, tracked: (_keep if condition(tracer, call) else _stop)(tracer, call, tracked)


def _keeps_channels(tracer: ScaleTracer, call: Call) -> bool:
    return tracer.carries(call.outputs[0])


def _adds_activations(tracer: ScaleTracer, call: Call) -> bool:
    return all(map(tracer.carries, call.args[:2]))


def _clamps_at_zero(_: ScaleTracer, call: Call) -> bool:
    bounds = [call.arguments.get(name) for name in ("min", "max")]
    return all(bound is None or bound == 0 for bound in bounds)


def _pads_zeros(_: ScaleTracer, call: Call) -> bool:
    return not call.arguments.get("value")


def _multiply(tracer: ScaleTracer, call: Call, tracked: list[Tensor]) -> None:
    result, sides = tracer.unknown(call.outputs[0]), [tracer.unknown(tensor) for tensor in tracked]
    if len(sides) == 1 and torch.is_tensor(call.args[0]) and tracked[0] is call.args[0]:
        tracer._relations.equal(result, *sides)  # by a number, or by a tensor that all channels share
    elif len(sides) == 2 and call.operator.startswith("mul"):
        place = f"both sides of a product in module '{tracer.module}' would carry the factor"
        left, right = sides
        tracer._relations.product(result, left, right, place)
    elif call.operator.startswith("mul"):
        tracer._relations.equal(result, *sides)
    else:
        tracer.stop(tracked[-1], call)
        tracer._relations.equal(result, sides[0])


def _layer(tracer: ScaleTracer, call: Call, tracked: list[Tensor]) -> None:
    """Convolution and linear layer: rows give the output its factor, columns remove the input's.

    One over positions, or of a constant kernel, passes factors on if it adds nothing.
    """
    image, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    if tracer.name_of(weight) is None or tracer.name_of(weight) in tracer.untied:
        (_keep if bias is None else _stop)(tracer, call, tracked)
        return
    rows = _rows(tracer, weight, bias)
    tracer._relations.equal(rows, tracer.unknown(call.output))
    if tracer.carries(image):
        tracer._relations.equal(("columns", tracer.name_of(weight) or ""), tracer.unknown(image))


def _norm(tracer: ScaleTracer, call: Call, tracked: list[Tensor]) -> None:
    """Weight and bias give the result its factor; only running statistics can remove the input's."""
    image, result = call.arguments["input"], call.outputs[0]
    weight, bias = call.arguments["weight"], call.arguments["bias"]
    if weight is None:
        tracer.stop(result, call)
    else:
        tracer._relations.equal(_rows(tracer, weight, bias), tracer.unknown(result))
    mean, training = call.arguments.get("running_mean"), call.arguments.get("training", True)
    if mean is None or training:
        tracer.stop(image, call)
    else:
        owner = (tracer.name_of(mean) or "").rpartition(".")[0]
        tracer._relations.equal(("statistics", owner), tracer.unknown(image))


def _rows(tracer: ScaleTracer, weight: Tensor, bias: Tensor | None) -> Unknown:
    names = tuple(tracer.name_of(tensor) or "" for tensor in (weight, bias) if tensor is not None)
    tracer._relations.tensors[("rows", names[0])] = names
    return ("rows", names[0])


_SCALE_RULES: dict[str, ScaleRule] = {}
for _rule, _operators in {
    _layer: "conv2d conv1d linear",
    _norm: "batch_norm instance_norm layer_norm native_layer_norm group_norm native_group_norm",
    _keep: "relu leaky_relu dropout feature_dropout clone contiguous detach alias lift_fresh to _to_copy type_as abs "
    "neg max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_bilinear2d upsample_nearest2d "
    "upsample_bicubic2d reflection_pad2d replication_pad2d view _unsafe_view reshape flatten unflatten view_as "
    "reshape_as permute transpose t movedim swapaxes expand expand_as squeeze unsqueeze slice select split "
    "split_with_sizes chunk unbind narrow index_select repeat flip roll cat concat concatenate stack",
    _keep_if(_keeps_channels): "mean sum amax amin linalg_vector_norm norm",
    _keep_if(_adds_activations): "add sub maximum minimum",
    _keep_if(_clamps_at_zero): "clamp clamp_min clamp_max",
    _keep_if(_pads_zeros): "pad constant_pad_nd",
    _multiply: "mul div",
}.items():
    _SCALE_RULES.update(dict.fromkeys(_operators.split(), _rule))
