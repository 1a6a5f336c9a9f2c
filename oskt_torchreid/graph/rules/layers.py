"""Rules of layers: convolutions, linear layers, and norms that keep statistics by channel."""

from __future__ import annotations

from torch import Tensor

from ..calls import Call, Rule, register_families
from ..recording import Recording, spread


def convolution(recording: Recording, call: Call) -> None:
    """Rows are fresh channels, columns are the input's; per block where grouped; depthwise issues no new channels."""
    image, weight, bias, groups = (call.arguments[name] for name in ("input", "weight", "bias", "groups"))
    columns = recording.columns_of(image, image.dim() - weight.dim() + 1)
    if columns is not None and groups == weight.shape[0] == len(columns):
        recording.tie(weight, 0, "row", columns)
        rows = columns
    else:
        rows = recording.rows(weight, groups)
        _consume(recording, call, columns, groups)
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
        _consume(recording, call, columns, groups, axis=0)
    _finish_layer(recording, call, bias, rows, axis=1)


def linear(recording: Recording, call: Call) -> None:
    """Rows are fresh channels, columns are the channels of the input's last axis."""
    inputs, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    rows = recording.rows(weight)
    _consume(recording, call, recording.columns_of(inputs, inputs.dim() - 1), 1)
    _finish_layer(recording, call, bias, rows, axis=-1)


def _consume(recording: Recording, call: Call, columns: Tensor | None, blocks: int, axis: int = 1) -> None:
    weight = call.arguments["weight"]
    if columns is None:
        recording.image_inputs.add(recording.name_of(weight) or "")
    else:
        recording.tie(weight, axis, "column", columns, blocks)


def _finish_layer(recording: Recording, call: Call, bias: Tensor | None, rows: Tensor, axis: int) -> None:
    weight = call.arguments["weight"]
    if bias is not None:
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
        recording.touched.difference_update(recording.name_of(tensor) or "" for tensor in call.tensors)
    else:
        recording.keep_whole(part, call.tensors)


_FAMILIES: dict[Rule, str] = {
    convolution: "conv2d conv1d",
    transposed_convolution: "conv_transpose2d conv_transpose1d",
    linear: "linear",
    channel_norm: "batch_norm instance_norm",
}
register_families(_FAMILIES)
