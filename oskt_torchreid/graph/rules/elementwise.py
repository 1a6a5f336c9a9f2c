"""What each operator does to channels, by families of operators; see ``calls.py`` for how another one is added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import GraphError
from ..calls import Call, Rule, register_families
from ..shadows import compact, spread

if TYPE_CHECKING:
    from ..tracing import Tracer


# ---- layers ----------------------------------------------------------------------------------------------------------


def convolution(tracer: Tracer, call: Call) -> None:
    """Rows are fresh channels, columns are the input's; per block where grouped; depthwise issues no new channels."""
    image, weight, bias, groups = (call.arguments[name] for name in ("input", "weight", "bias", "groups"))
    inputs = tracer.shadow(image)
    columns = None if inputs is None else tracer.axis_channels(inputs, image.dim() - weight.dim() + 1)
    tracer.matrices.add(tracer.name_of(weight) or "")
    if columns is not None and groups == weight.shape[0] == len(columns):
        tracer.tie(weight, 0, "row", columns)
        rows = columns
    else:
        rows = tracer.rows(weight, groups)
        _consume(tracer, call, columns, groups)
    _finish_layer(tracer, call, bias, rows, axis=1)


def transposed_convolution(tracer: Tracer, call: Call) -> None:
    """As ``convolution``, but the weight is ``[columns, rows per block, ...]``: its blocks lie along the columns."""
    image, weight, bias, groups = (call.arguments[name] for name in ("input", "weight", "bias", "groups"))
    inputs = tracer.shadow(image)
    columns = None if inputs is None else tracer.axis_channels(inputs, image.dim() - weight.dim() + 1)
    tracer.matrices.add(tracer.name_of(weight) or "")
    if columns is not None and groups == len(columns) and weight.shape[1] == 1:
        tracer.tie(weight, 0, "row", columns)
        rows = columns
    else:
        rows = tracer.rows(weight, groups, axis=1)
        _consume(tracer, call, columns, groups, axis=0)
    _finish_layer(tracer, call, bias, rows, axis=1)


def linear(tracer: Tracer, call: Call) -> None:
    """Rows are fresh channels, columns are the channels of the input's last axis."""
    inputs, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    shadow = tracer.shadow(inputs)
    tracer.matrices.add(tracer.name_of(weight) or "")
    rows = tracer.rows(weight)
    _consume(tracer, call, None if shadow is None else tracer.axis_channels(shadow, inputs.dim() - 1), 1)
    _finish_layer(tracer, call, bias, rows, axis=-1)


def _consume(tracer: Tracer, call: Call, columns: Tensor | None, blocks: int, axis: int = 1) -> None:
    weight = call.arguments["weight"]
    if columns is not None:
        tracer.tie(weight, axis, "column", columns, blocks)
        return
    if (writer := tracer.adrift(call.arguments["input"])) is not None:
        raise GraphError(
            f"module '{writer}' copies channels into a part of another tensor, which cannot be followed, and "
            f"'{tracer.module}' takes them as its input; write it with torch.cat or torch.stack"
        )
    tracer.image_inputs.add(tracer.name_of(weight) or "")


def _finish_layer(tracer: Tracer, call: Call, bias: Tensor | None, rows: Tensor, axis: int) -> None:
    if bias is not None:
        tracer.tie(bias, 0, "row", rows)
    tracer.mark(call.output, spread(rows, call.output, axis))


def channel_norm(tracer: Tracer, call: Call) -> None:
    """Batch and instance norm: every vector of the module lies along the channels of axis 1."""
    shadow = tracer.shadow(call.arguments["input"])
    if shadow is None:
        norm_of_image(tracer, call)
        return
    channels = tracer.axis_channels(shadow, 1)
    for vector in map(call.arguments.get, ("weight", "bias", "running_mean", "running_var")):
        if vector is not None:
            tracer.tie(vector, 0, "row", channels)
    tracer.mark(call.outputs[0], shadow)


def norm_of_image(tracer: Tracer, call: Call) -> None:
    """A norm of the image itself: its vectors lie along no channels, and keep their shape."""
    if tracer.adrift(call.arguments["input"]) is None:
        tracer.touched.difference_update(tracer.name_of(tensor) or "" for tensor in call.tensors)


# ---- elementwise and spatial -----------------------------------------------------------------------------------------


def keep(tracer: Tracer, call: Call) -> None:
    """Every output element has the channel of its input element: activations, dropout, copies."""
    shadow = tracer.shadow(call.args[0])
    tracer.mark(call.outputs[0], shadow)


def scaled_keep(tracer: Tracer, call: Call) -> None:
    """PReLU: as ``keep``, and its slopes, where there are several, lie along the channels of axis 1."""
    shadow, slopes = tracer.shadow(call.args[0]), call.args[1]
    if shadow is not None and slopes.numel() > 1:
        tracer.tie(slopes, 0, "row", tracer.axis_channels(shadow, 1))
    tracer.mark(call.output, shadow)


def spatial(tracer: Tracer, call: Call) -> None:
    """Pooling, resizing, padding: channels (the third axis from the end) stay, height and width change."""
    shadow, output = tracer.shadow(call.args[0]), call.outputs[0]
    if shadow is None:
        return
    axis = shadow.dim() - 3
    if output.dim() != shadow.dim() or output.shape[axis] != shadow.shape[axis]:
        raise GraphError(f"operator '{call.operator}' in module '{tracer.module}' changes the number of channels")
    tracer.mark(output, spread(tracer.axis_channels(shadow, axis), output, axis))


def meet(tracer: Tracer, call: Call) -> None:
    """Sums, differences, maxima: the channels that meet become one."""
    _meet(tracer, call, may_gate=False)


def multiply(tracer: Tracer, call: Call) -> None:
    """Products and quotients: as sums, unless one side is a gate (fewer channels, each shared by several)."""
    _meet(tracer, call, may_gate=True)


def _meet(tracer: Tracer, call: Call, may_gate: bool) -> None:
    left, right = call.args[0], call.args[1]
    sides = [tracer.shadow(side) for side in (left, right)]
    if sides[0] is None or sides[1] is None:
        _meet_constant(tracer, call, sides)
        return
    a, b = torch.broadcast_tensors(*(compact(side) for side in sides))
    bare = any(tracer.name_of(side) is not None for side in (left, right))
    if may_gate and not bare and (count := [torch.unique(side).numel() for side in (a, b)])[0] != count[1]:
        gate, fine = (a, b) if count[0] < count[1] else (b, a)
        tracer.gates.append((gate.reshape(-1).numpy(), fine.reshape(-1).numpy()))
        tracer.fix(gate, "gates several channels each")
        tracer.mark(call.output, fine.expand(call.output.shape))
        return
    tracer.unite(a, b)
    tracer.mark(call.output, a.expand(call.output.shape))


def _meet_constant(tracer: Tracer, call: Call, sides: list[Tensor | None]) -> None:
    shadow, constant = (sides[0], call.args[1]) if sides[1] is None else (sides[1], call.args[0])
    if shadow is None:
        return
    if torch.is_tensor(constant):
        pattern = compact(shadow)
        shape = torch.broadcast_shapes(pattern.shape, constant.shape)
        along = [(1,) * (len(shape) - t.dim()) + tuple(t.shape) for t in (pattern, constant)]
        if any(size > 1 and other > 1 for size, other in zip(*along, strict=True)):
            tracer.fix(shadow, f"meets a constant that differs by channel in '{tracer.module}'")
    tracer.mark(call.outputs[0], shadow.expand(call.outputs[0].shape))


def reduce(tracer: Tracer, call: Call) -> None:
    """Means and sums over positions keep channels. Over channels they would count merged ones once.

    That can be made good where a module does nothing else with its input: the input is weighted in a student. What
    comes out has no channels.
    """
    tensor = call.args[0]
    shadow, output = tracer.shadow(tensor), call.outputs[0]
    if shadow is None:
        return
    axes = call.arguments.get("dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(tensor.dim()))
    axes = sorted(axis % tensor.dim() for axis in axes)
    if any(compact(shadow).shape[axis] > 1 for axis in axes):
        if call.operator not in ("mean", "sum") or not tracer.frames.record_reduction(call.operator, tensor):
            raise unweighted(call.operator, tracer.module)
        tracer.mark(output, None)
        return
    for axis in reversed(axes):
        shadow = shadow.narrow(axis, 0, 1)
    tracer.mark(output, shadow.reshape(output.shape))


def unweighted(operator: str, module: str) -> GraphError:
    """The error of a reduction over channels that cannot be weighted."""
    return GraphError(
        f"operator '{operator}' in module '{module}' reduces over channels: merged channels would count once instead "
        "of as often as they were merged. A mean or sum is weighted where it is the one use that a module makes of its "
        "input; put it into such a module"
    )


def along(tracer: Tracer, call: Call) -> None:
    """Softmax and the like: fine along positions, not along channels."""
    shadow = tracer.shadow(call.args[0])
    if shadow is not None and compact(shadow).shape[call.arguments["dim"]] > 1:
        raise GraphError(
            f"operator '{call.operator}' in module '{tracer.module}' normalises over channels: merged channels would "
            "count once instead of as often as they were merged"
        )
    tracer.mark(call.output, shadow)


_FAMILIES: dict[Rule, str] = {
    convolution: "conv2d conv1d",
    transposed_convolution: "conv_transpose2d conv_transpose1d",
    linear: "linear",
    channel_norm: "batch_norm instance_norm",
    keep: "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus "
    "clamp clamp_min clamp_max exp log sqrt rsqrt abs neg square pow reciprocal dropout feature_dropout alpha_dropout "
    "clone contiguous detach alias lift_fresh to _to_copy type_as",
    scaled_keep: "prelu",
    spatial: "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_bilinear2d upsample_nearest2d "
    "upsample_bicubic2d pad constant_pad_nd reflection_pad2d replication_pad2d",
    meet: "add sub maximum minimum",
    multiply: "mul div",
    reduce: "mean sum amax amin linalg_vector_norm norm var std",
    along: "softmax log_softmax",
}
register_families(_FAMILIES)
