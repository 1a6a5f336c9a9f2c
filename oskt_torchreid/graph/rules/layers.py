"""Rules of layers: convolutions, linear layers, and norms that keep statistics by channel."""

from __future__ import annotations

from torch import Tensor

from ..calls import Call, Rule, register_families
from ..recording import Recording
from ..shadows import compact, spread
from ..sizes import note_length, note_repeated
from .whole import keep_whole


def convolution(recording: Recording, call: Call) -> None:
    """Rows are fresh channels, columns are the input's; per block where grouped; depthwise issues no new channels.

    A depthwise layer may make several rows of each channel: they are merged as it is, all or none.
    """
    image, weight, bias, groups = (call.arguments[name] for name in ("input", "weight", "bias", "groups"))
    inputs, axis = recording.shadow(image), image.dim() - weight.dim() + 1
    if inputs is not None and _reads_positions(inputs, axis):
        _mix_positions(recording, call, inputs, axis, moving=weight[0, 0].numel() > 1)
        return
    columns = recording.columns_of(image, axis)
    if columns is not None and groups == len(columns) and _same_for_all(recording, weight):
        note_length(recording, columns[None])
        note_repeated(recording, weight, 0, columns)
        recording.mark(call.output, spread(columns, call.output, axis))
        return
    if columns is not None and groups == len(columns) and (groups > 1 or weight.shape[0] == 1):
        rows = columns.repeat_interleave(weight.shape[0] // groups)
        recording.tie(weight, 0, "row", rows)
        recording.copied += [columns] if len(rows) > len(columns) else []
    else:
        rows = recording.rows(weight, groups)
        _consume(recording, weight, columns, groups)
    _finish_layer(recording, call, bias, rows, axis=1)


def transposed_convolution(recording: Recording, call: Call) -> None:
    """As `convolution`, but the weight is `[columns, rows per block, ...]`: its blocks lie along the columns."""
    image, weight, bias, groups = (call.arguments[name] for name in ("input", "weight", "bias", "groups"))
    columns = recording.columns_of(image, image.dim() - weight.dim() + 1)
    if columns is not None and groups == len(columns) and weight.shape[1] == 1:
        recording.tie(weight, 0, "row", columns)
        rows = columns
    else:
        rows = recording.rows(weight, groups, axis=1)
        _consume(recording, weight, columns, groups, axis=0)
    _finish_layer(recording, call, bias, rows, axis=1)


def linear(recording: Recording, call: Call) -> None:
    """Rows are fresh channels, columns are the channels of the input's last axis."""
    inputs, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    shadow = recording.shadow(inputs)
    if shadow is not None and _reads_positions(shadow, inputs.dim() - 1):
        _mix_positions(recording, call, shadow, inputs.dim() - 1, moving=False)
        return
    rows = recording.rows(weight)
    _consume(recording, weight, recording.columns_of(inputs, inputs.dim() - 1), 1)
    _finish_layer(recording, call, bias, rows, axis=-1)


def linear_in_place(recording: Recording, call: Call, inputs: Tensor, weight: Tensor, axis: int) -> None:
    """A product with a matrix that is a parameter, `[columns, rows]` at the right, `[rows, columns]` at the left.

    Args:
        recording: of the network.
        call: of the product.
        inputs: the other side.
        weight: the parameter.
        axis: of the inputs, that is summed over: -1 where the parameter is at the right, else -2.
    """
    for tensor in call.tensors:
        recording.note_read(tensor)
    shadow = recording.shadow(inputs)
    if shadow is not None and _reads_positions(shadow, inputs.dim() + axis):
        _mix_positions(recording, call, shadow, inputs.dim() + axis, moving=False)
        return
    recording.matrices.add(recording.name_of(weight) or "")
    of_rows = 1 if axis == -1 else 0
    rows = recording.rows(weight, axis=of_rows)
    _consume(recording, weight, recording.columns_of(inputs, inputs.dim() + axis), 1, 1 - of_rows)
    recording.mark(call.output, spread(rows, call.output, call.output.dim() + axis))


def _reads_positions(shadow: Tensor, axis: int) -> bool:
    """Whether channels lie along other axes than the one that a layer reads."""
    small = compact(shadow)
    return small.numel() > 1 and small.shape[axis] == 1


def _mix_positions(recording: Recording, call: Call, shadow: Tensor, axis: int, moving: bool) -> None:
    """A layer that reads positions as its columns: channels pass, unless its kernel moves along them."""
    tensors = [call.arguments.get(name) for name in ("input", "weight", "bias", "self", "mat2", "other")]
    recording.untied.update(recording.name_of(tensor) or "" for tensor in tensors if tensor is not None)
    passed = compact(shadow).narrow(axis, 0, 1)
    fits = all(size in (1, other) for size, other in zip(passed.shape, call.output.shape, strict=True))
    if moving or not fits:
        keep_whole(recording, call, [shadow], "read like positions")
    else:
        recording.mark(call.output, passed.expand(call.output.shape))


def _same_for_all(recording: Recording, weight: Tensor) -> bool:
    """Whether a depthwise kernel is a constant, and the same for every channel: a blur."""
    constant = recording.name_of(weight) is None and recording.known_shadow(weight) is None
    return constant and weight.shape[1] == 1 and bool((weight == weight[:1]).all())


def _consume(recording: Recording, weight: Tensor, columns: Tensor | None, blocks: int, axis: int = 1) -> None:
    if columns is None:
        recording.image_inputs.add(recording.name_of(weight) or "")
    else:
        recording.tie(weight, axis, "column", columns, blocks)


def _finish_layer(recording: Recording, call: Call, bias: Tensor | None, rows: Tensor, axis: int) -> None:
    weight, shadow = call.arguments["weight"], recording.known_shadow(bias)
    if shadow is not None and recording.name_of(bias) is None:
        recording.unite(shadow, rows)
        recording.stand_for(shadow, rows)
    elif bias is not None:
        recording.tie(bias, 0, "row", rows)
    recording.matrices.add(recording.name_of(weight) or "")
    recording.mark(call.output, spread(rows, call.output, axis))
    recording.record_layer(weight, rows, call.output)


def channel_norm(recording: Recording, call: Call) -> None:
    """Batch and instance norm: every vector of the module lies along the channels of axis 1."""
    shadow = recording.shadow(call.arguments["input"])
    if shadow is None:
        norm_of_image(recording, call)
        return
    channels = recording.axis_channels(shadow, 1)
    for vector in map(call.arguments.get, ("weight", "bias", "running_mean", "running_var")):
        if vector is not None:
            recording.tie(vector, 0, "row", channels)
    recording.mark(call.outputs[0], shadow)


def norm_of_image(recording: Recording, call: Call) -> None:
    """A norm of the image itself: its vectors lie along no channels, and keep their shape."""
    part = recording.giver(call.arguments["input"])
    if part is None:
        recording.untied.update(recording.name_of(tensor) or "" for tensor in call.tensors)
    else:
        recording.keep_whole(part, call.tensors)


_FAMILIES: dict[Rule, str] = {
    convolution: "conv2d conv1d",
    transposed_convolution: "conv_transpose2d conv_transpose1d",
    linear: "linear",
    channel_norm: "batch_norm instance_norm",
}
register_families(_FAMILIES)
