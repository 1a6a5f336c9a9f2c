"""Rules of the operators that keep elements where they are: elementwise ones, pooling, sums, reductions."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import GraphError
from ..calls import Call, Rule, register_families
from ..recording import Recording
from ..shadows import compact, spread
from ..sizes import blocks_of, note_parts
from .whole import keep_whole


def keep(recording: Recording, call: Call) -> None:
    """Every output element has the channel of its input element: activations, dropout, copies."""
    shadow = recording.shadow(call.args[0])
    recording.mark(call.outputs[0], shadow)


def forget(recording: Recording, call: Call) -> None:
    """New tensors of a given shape, such as a mask for each image: constants, which carry no channels."""
    recording.mark(call.output, None)


def scaled_keep(recording: Recording, call: Call) -> None:
    """PReLU: as `keep`; its slopes, if there are several, lie along the channels of axis 1."""
    shadow, slopes = recording.shadow(call.args[0]), call.args[1]
    if shadow is not None and slopes.numel() > 1:
        recording.tie(slopes, 0, "row", recording.axis_channels(shadow, 1))
    recording.mark(call.output, shadow)


def spatial(recording: Recording, call: Call) -> None:
    """Pooling, resizing, padding: channels (the third axis from the end) stay, height and width change."""
    _places(recording, call, -3)


def sequence(recording: Recording, call: Call) -> None:
    """As `spatial`, with channels along the last axis but one."""
    _places(recording, call, -2)


def _places(recording: Recording, call: Call, axis: int) -> None:
    shadow = recording.shadow(call.args[0])
    if shadow is None:
        return
    axis = shadow.dim() + axis
    for output in call.outputs:
        if output.dim() != shadow.dim() or output.shape[axis] != shadow.shape[axis]:
            raise GraphError(
                f"operator '{call.operator}' in module '{recording.module}' changes the number of channels"
            )
    if any(size > 1 for size in compact(shadow).shape[axis + 1 :]):
        keep_whole(recording, call, [shadow], "pooled like positions")
        return
    recording.mark(call.outputs[0], spread(recording.axis_channels(shadow, axis), call.outputs[0], axis))


def padding(recording: Recording, call: Call) -> None:
    """Padding of positions; what is padded to channels is a constant, and keeps its width, as they do."""
    shadow, output = recording.shadow(call.args[0]), call.output
    if shadow is None:
        return
    small = compact(shadow)
    padded = [axis for axis, size in enumerate(small.shape) if size > 1 and output.shape[axis] != shadow.shape[axis]]
    if padded:
        keep_whole(recording, call, [shadow], "padded by channels")
    else:
        recording.mark(output, small.expand(output.shape))


def meet(recording: Recording, call: Call) -> None:
    """Sums, differences, maxima: channels at the same position become one."""
    _meet(recording, call, (call.args[0], call.args[1]), may_gate=False)


def multiply(recording: Recording, call: Call) -> None:
    """Products and quotients: as sums, unless one side is a gate (fewer channels, each shared by several)."""
    _meet(recording, call, (call.args[0], call.args[1]), may_gate=True)


def meet_all(recording: Recording, call: Call) -> None:
    """Up to three tensors, such as a choice by a condition, a sum with a product, or limits: as `meet`."""
    sides = [(side, recording.shadow(side)) for side in call.tensors]
    shadows = [shadow for _, shadow in sides if shadow is not None]
    for shadow in shadows[1:]:
        recording.unite(shadows[0], shadow)
    most = max(shadows, key=lambda shadow: compact(shadow).numel())
    for constant in (side for side, shadow in sides if shadow is None):
        _lie_beside(recording, most, constant)
    recording.mark(call.output, compact(most).expand(call.output.shape))


def _meet(recording: Recording, call: Call, sides: tuple[object, object], may_gate: bool) -> None:
    first, second = sides
    left, right = recording.shadow(first), recording.shadow(second)
    if left is None or right is None:
        _meet_constant(recording, call, *((right, first) if left is None else (left, second)))
        return
    bare = any(recording.name_of(side) is not None for side in (first, second) if torch.is_tensor(side))
    combine(recording, call, left, right, may_gate and not bare)
    for ids, other in ((left, right), (right, left)):
        if recording.is_bare(ids) and not recording.is_bare(other):
            recording.stand_for(ids, other)


def combine(recording: Recording, call: Call, left: Tensor | None, right: Tensor | None, may_gate: bool = True) -> None:
    """Marks an output with what two inputs have at the same positions, which becomes one, or the finer one of a gate.

    Args:
        recording: of the network.
        call: of the operator.
        left: a shadow; `None` for a constant.
        right: the same of the other input.
        may_gate: whether the side of fewer channels may be a gate of the other.
    """
    sides = [compact(shadow) for shadow in (left, right) if shadow is not None]
    if len(sides) < 2:
        recording.mark(call.output, sides[0].expand(call.output.shape) if sides else None)
        return
    a, b = torch.broadcast_tensors(*sides)
    count = [torch.unique(side).numel() for side in (a, b)]
    gate, fine = (a, b) if count[0] < count[1] else (b, a)
    if may_gate and count[0] != count[1] and _is_shared(recording, gate, fine):
        recording.fix(gate, "gates several channels each")
        recording.gates.append((gate.reshape(-1).numpy(), fine.reshape(-1).numpy()))
        recording.mark(call.output, fine.expand(call.output.shape))
        return
    recording.unite(a, b)
    recording.mark(call.output, (b if recording.is_bare(a) else a).expand(call.output.shape))


def _is_shared(recording: Recording, gate: Tensor, fine: Tensor) -> bool:
    """Whether neighbours along the axis of the finer channels have one gate.

    Channels that a depthwise layer has copied (`0 1 2 0 1 2`, `0 0 1 1`) are no gates of what they are multiplied with.
    """
    if recording.copied and bool(torch.isin(gate, torch.cat(recording.copied)).all()):
        return False
    axis = max(axis for axis, size in enumerate(fine.shape) if bool((fine != fine.narrow(axis, 0, 1)).any()))
    neighbours = gate.narrow(axis, 1, gate.shape[axis] - 1) == gate.narrow(axis, 0, gate.shape[axis] - 1)
    return bool(neighbours.any())


def _meet_constant(recording: Recording, call: Call, shadow: Tensor | None, constant: object) -> None:
    """A parameter that meets no channels is a constant itself, such as a bias of the products of an attention."""
    if shadow is None:
        return
    axes = _shared_axes(shadow, constant) if torch.is_tensor(constant) else []
    if axes and recording.is_bare(shadow):
        recording.mark(call.outputs[0], None)
        return
    if torch.is_tensor(constant):
        _lie_beside(recording, shadow, constant)
    recording.mark(call.outputs[0], compact(shadow).expand(call.outputs[0].shape))


def _lie_beside(recording: Recording, shadow: Tensor, constant: Tensor) -> None:
    """Channels that meet numbers which differ by channel stay; if these differ by part alone, parts are kept apart."""
    axes = _shared_axes(shadow, constant)
    if axes and axes[-1] == _last_axis(shadow):
        why = f"meets a constant that differs by channel in '{recording.module}'"
        recording.fix(shadow, recording.reason_beside(constant, why))
    elif axes:
        note_parts(recording, blocks_of(shadow))  # such as heads: channels of two are not merged


def _shared_axes(shadow: Tensor, constant: Tensor) -> list[int]:
    """Axes of a shadow, counted from the end (`-1` is the last), along which it and a constant vary."""
    small, other = compact(shadow).shape, compact(constant).shape
    return [axis for axis in range(-min(len(small), len(other)), 0) if small[axis] > 1 and other[axis] > 1]


def _last_axis(shadow: Tensor) -> int:
    """The last axis along which a shadow varies, counted from the end."""
    small = compact(shadow).shape
    return max((axis for axis in range(-len(small), 0) if small[axis] > 1), default=-1)


_FAMILIES: dict[Rule, str] = {
    keep: "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus "
    "exp log sqrt rsqrt abs neg square reciprocal dropout feature_dropout alpha_dropout "
    "clone contiguous detach alias lift_fresh to _to_copy type_as zeros_like ones_like full_like empty_like rand_like "
    "randn_like bernoulli uniform normal fill zero rrelu logical_not isnan erf sin cos floor round sign nan_to_num "
    "hardshrink softshrink log1p expm1 log2 logit",
    forget: "new_empty new_zeros new_ones new_full",
    scaled_keep: "prelu",
    spatial: "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_bilinear2d upsample_nearest2d "
    "upsample_bicubic2d reflection_pad2d replication_pad2d",
    sequence: "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d reflection_pad1d replication_pad1d "
    "upsample_linear1d upsample_nearest1d",
    padding: "pad constant_pad_nd",
    meet: "add sub rsub maximum minimum fmax fmin pow fmod remainder atan2 hypot logaddexp copysign masked_fill gt ge "
    "lt le eq ne logical_and logical_or",
    meet_all: "where addcmul addcdiv lerp clamp clamp_min clamp_max",
    multiply: "mul div",
}
register_families(_FAMILIES)
