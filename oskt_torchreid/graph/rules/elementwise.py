"""Rules of the operators that keep elements where they are: elementwise ones, pooling, sums, reductions."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import GraphError
from ..calls import Call, Rule, register_families, unweighted
from ..recording import Recording, compact, spread


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
    shadow, output = recording.shadow(call.args[0]), call.outputs[0]
    if shadow is None:
        return
    axis = shadow.dim() - 3
    if output.dim() != shadow.dim() or output.shape[axis] != shadow.shape[axis]:
        raise GraphError(f"operator '{call.operator}' in module '{recording.module}' changes the number of channels")
    recording.mark(output, spread(recording.axis_channels(shadow, axis), output, axis))


def meet(recording: Recording, call: Call) -> None:
    """Sums, differences, maxima: channels at the same position become one."""
    _meet(recording, call, may_gate=False)


def multiply(recording: Recording, call: Call) -> None:
    """Products and quotients: as sums, unless one side is a gate (fewer channels, each shared by several)."""
    _meet(recording, call, may_gate=True)


def _meet(recording: Recording, call: Call, may_gate: bool) -> None:
    left, right = (recording.shadow(side) for side in call.args[:2])
    if left is None or right is None:
        _meet_constant(recording, call, left, right)
        return
    a, b = torch.broadcast_tensors(compact(left), compact(right))
    bare = any(recording.name_of(side) is not None for side in call.args[:2])
    if may_gate and not bare and (count := [torch.unique(side).numel() for side in (a, b)])[0] != count[1]:
        gate, fine = (a, b) if count[0] < count[1] else (b, a)
        recording.gates.append((gate.reshape(-1).numpy(), fine.reshape(-1).numpy()))
        recording.fix(gate, "gates several channels each")
        recording.mark(call.output, fine.expand(call.output.shape))
        return
    recording.unite(a, b)
    recording.mark(call.output, a.expand(call.output.shape))


def _meet_constant(recording: Recording, call: Call, left: Tensor | None, right: Tensor | None) -> None:
    shadow, constant = (left, call.args[1]) if right is None else (right, call.args[0])
    if shadow is None:
        return
    if torch.is_tensor(constant):
        pattern = compact(shadow)
        shapes = pattern.shape, compact(constant).shape
        along = [(1,) * (max(map(len, shapes)) - len(shape)) + tuple(shape) for shape in shapes]
        if any(size > 1 and other > 1 for size, other in zip(*along, strict=True)):
            recording.fix(shadow, f"meets a constant that differs by channel in '{recording.module}'")
    recording.mark(call.outputs[0], shadow.expand(call.outputs[0].shape))


def reduce(recording: Recording, call: Call) -> None:
    """Means and sums over positions keep channels. Over channels they would count merged ones once.

    This can be compensated if a module does nothing else with its input: a student weights the input. The result has no
    channels.
    """
    tensor = call.args[0]
    shadow, output = recording.shadow(tensor), call.outputs[0]
    if shadow is None:
        return
    axes = call.arguments.get("dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(tensor.dim()))
    axes = sorted(axis % tensor.dim() for axis in axes)
    if any(compact(shadow).shape[axis] > 1 for axis in axes):
        if call.operator not in ("mean", "sum") or not recording.record_reduction(call.operator, tensor):
            raise unweighted(call.operator, recording.module)
        recording.mark(output, None)
        return
    for axis in reversed(axes):
        shadow = shadow.narrow(axis, 0, 1)
    recording.mark(output, shadow.reshape(output.shape))


def length(recording: Recording, call: Call) -> None:
    """A norm of a vector: as `reduce`; one over channels needs all of them, for merged ones would count once.

    If evaluation alone takes it, as in a feature that is divided by its length, students' channels may be merged: such
    a feature has fewer dimensions, and another length.
    """
    shadow, axes = recording.shadow(call.args[0]), call.arguments.get("dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(call.args[0].dim()))
    if shadow is None or all(compact(shadow).shape[axis] == 1 for axis in axes):
        reduce(recording, call)
        return
    if recording.training:
        recording.fix(shadow, f"'{recording.module}' takes the length of all")
    else:
        recording.lengths.append(torch.unique(compact(shadow)).numpy())
    recording.mark(call.output, None)


def along(recording: Recording, call: Call) -> None:
    """Softmax and the like: allowed along positions, not along channels."""
    shadow = recording.shadow(call.args[0])
    if shadow is not None and compact(shadow).shape[call.arguments["dim"]] > 1:
        raise GraphError(
            f"operator '{call.operator}' in module '{recording.module}' normalises over channels: merged channels "
            "would count once instead of as often as they were merged"
        )
    recording.mark(call.output, shadow)


_FAMILIES: dict[Rule, str] = {
    keep: "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus "
    "clamp clamp_min clamp_max exp log sqrt rsqrt abs neg square pow reciprocal dropout feature_dropout alpha_dropout "
    "clone contiguous detach alias lift_fresh to _to_copy type_as zeros_like ones_like full_like empty_like rand_like "
    "randn_like bernoulli uniform normal fill zero rrelu",
    forget: "new_empty new_zeros new_ones new_full",
    scaled_keep: "prelu",
    spatial: "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_bilinear2d upsample_nearest2d "
    "upsample_bicubic2d pad constant_pad_nd reflection_pad2d replication_pad2d",
    meet: "add sub maximum minimum",
    multiply: "mul div",
    reduce: "mean sum amax amin var std",
    length: "linalg_vector_norm norm",
    along: "softmax log_softmax",
}
register_families(_FAMILIES)
