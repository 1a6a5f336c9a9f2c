"""Rules of what is computed along an axis: means, sums, maxima, lengths, softmax. Over positions, channels stay."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..calls import Call, Rule, register_families
from ..recording import Recording
from ..shadows import compact
from ..sizes import blocks_of
from .elementwise import meet
from .whole import keep_whole, stay_whole


def reduce(recording: Recording, call: Call) -> None:
    """Means, sums, maxima over positions keep channels, and so does one over parts: their channels become the same.

    A maximum over channels is that of merged ones. A sum or mean would count them once. This can be compensated if a
    module does nothing else with its input: a student weights the input. Any other mean, and a variance, is right where
    all slots stand for equally many channels. The result has no channels.
    """
    tensor = call.args[0]
    shadow, output = recording.shadow(tensor), call.outputs[0]
    if shadow is None:
        for result in call.outputs:
            recording.mark(result, None)
        return
    axes = _axes(call, tensor)
    varying = [axis for axis, size in enumerate(compact(shadow).shape) if size > 1]
    if varying and varying[-1] in axes:
        _reduce_channels(recording, call, shadow)
        return
    recording.mark(output, _at_first(recording, shadow, axes).reshape(output.shape))


def _axes(call: Call, tensor: Tensor) -> list[int]:
    axes = call.arguments.get("dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(tensor.dim()))
    return sorted(axis % tensor.dim() for axis in axes)


def _at_first(recording: Recording, shadow: Tensor, axes: list[int]) -> Tensor:
    """A shadow at the first place of some axes, along which its channels become the same."""
    for axis in axes:
        if compact(shadow).shape[axis] > 1:
            recording.unite(shadow, shadow.narrow(axis, 0, 1))
        shadow = shadow.narrow(axis, 0, 1)
    return shadow


def _reduce_channels(recording: Recording, call: Call, shadow: Tensor) -> None:
    tensor, operator = call.args[0], call.operator
    weighted = operator in ("mean", "sum") and recording.record_reduction(operator, tensor)
    spread_out = operator == "mean" or (operator in ("var", "std", "var_mean", "std_mean") and not _correction(call))
    if operator in _OF_ONE or weighted:
        for output in call.outputs:
            recording.mark(output, None)
    elif spread_out:
        blocks = blocks_of(shadow)
        recording.record_norm(blocks.reshape(-1), len(blocks))
        for output in call.outputs:
            recording.mark(output, None)
    else:
        keep_whole(recording, call, [shadow], "summed over")


_OF_ONE = ("amax", "amin", "max", "min")


def _correction(call: Call) -> float:
    """What is taken off the number of values that a variance is divided by; the result depends on it if not 0."""
    arguments = call.arguments
    correction = arguments.get("correction", 1 if arguments.get("unbiased", True) else 0)
    return 1.0 if correction is None else float(correction)


def extreme(recording: Recording, call: Call) -> None:
    """The larger or smaller of two tensors, or the largest of one, with its position if it is along one axis."""
    if len(call.args) > 1 and torch.is_tensor(call.args[1]):
        meet(recording, call)
        return
    for output in call.outputs[1:]:
        recording.mark(output, None)
    reduce(recording, call)


def length(recording: Recording, call: Call) -> None:
    """A norm of a vector: as `reduce`; one over channels needs all of them, for merged ones would count once.

    There are two exceptions. If evaluation alone takes it, as in a feature that is divided by its length, students'
    channels may be merged: such a feature has fewer dimensions, and another length. And rows of queries and keys are
    multiplied so that their products are right, which makes their lengths right as well.
    """
    shadow, axes = recording.shadow(call.args[0]), _axes(call, call.args[0])
    if shadow is None or all(compact(shadow).shape[axis] == 1 for axis in axes):
        reduce(recording, call)
        return
    if recording.training:
        recording.measured.append((torch.unique(compact(shadow)).numpy(), recording.module))
    else:
        values = math.prod(shadow.shape[axis] for axis in axes)
        recording.lengths.append((torch.unique(compact(shadow)).numpy(), values))
    recording.mark(call.output, None)


def along(recording: Recording, call: Call) -> None:
    """Softmax and the like: along positions, or along parts, whose channels become the same; or channels stay whole."""
    shadow = recording.shadow(call.args[0])
    if shadow is not None:
        varying = [axis for axis, size in enumerate(compact(shadow).shape) if size > 1]
        axis = call.arguments["dim"] % shadow.dim()
        if varying and axis == varying[-1]:
            stay_whole(recording, call, [shadow], "normalised over")
        elif axis in varying:
            shadow = _at_first(recording, shadow, [axis]).expand(shadow.shape)
    recording.mark(call.output, shadow)


def scan(recording: Recording, call: Call) -> None:
    """Cumulative sums: along positions."""
    shadow = recording.shadow(call.args[0])
    if shadow is not None and compact(shadow).shape[call.arguments["dim"]] > 1:
        keep_whole(recording, call, [shadow], "summed over")
    else:
        recording.mark(call.output, shadow)


_FAMILIES: dict[Rule, str] = {
    extreme: "max min",
    scan: "cumsum",
    reduce: "mean sum amax amin var std var_mean std_mean",
    length: "linalg_vector_norm norm",
    along: "softmax log_softmax",
}
register_families(_FAMILIES)
