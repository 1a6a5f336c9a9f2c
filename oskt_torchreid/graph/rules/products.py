"""Rules of products of two tensors that sum over an axis: matmul, bmm, einsum.

What is summed over decides. Positions (`softmax(q k^T) v`: tokens): the channels of either side pass. Channels of both
sides (`q k^T`): they are merged alike, and merged ones count once, which is compensated in the rows that make them, as
for fused attention. A matrix that is a parameter is a layer. All else keeps its channels.

Axes are named by letters, as in `einsum`. Example: `bhnd,bhmd->bhnm` sums over `d`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import Call, register_families
from ..recording import Recording
from ..shadows import compact
from .elementwise import combine
from .layers import linear_in_place
from .whole import keep_whole

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def multiply_channels(
    recording: Recording, left: Tensor, right: Tensor, tensors: tuple[Tensor, Tensor], scale_follows: bool
) -> Tensor:
    """Notes a product over the last axis of two shadows, whose channels become the same.

    Args:
        recording: of the network.
        left: shadow of the queries, `[..., tokens, channels]`.
        right: shadow of the keys, the same.
        tensors: queries and keys.
        scale_follows: whether the scale is the head's own.

    Returns:
        Channels of each head, `[heads, head size]`.
    """
    sides = torch.broadcast_tensors(*(_one_token(recording, side) for side in (left, right)))
    queries, keys = (side.reshape(-1, side.shape[-1]) for side in sides)
    recording.unite(queries, keys)
    recording.record_attention(queries, keys, scale_follows, tensors)
    return queries


def _one_token(recording: Recording, shadow: Tensor) -> Tensor:
    small = compact(shadow)
    small = small.expand(*small.shape[:-1], shadow.shape[-1])
    if small.shape[-2] > 1:
        recording.unite(small, small.narrow(-2, 0, 1))
    return small.narrow(-2, 0, 1)


def matmul(recording: Recording, call: Call) -> None:
    """A matrix product, in batches: over the last axis of the left and the last but one of the right."""
    left, right = call.args[:2]
    if _is_layer(recording, call, left, right):
        return
    if left.dim() < 2 or right.dim() < 2:
        keep_whole(recording, call, map(recording.shadow, (left, right)), "multiplied with a vector")
        return
    batch = _LETTERS[: call.output.dim() - 2]
    sides = [batch[len(batch) - side.dim() + 2 :] for side in (left, right)]
    _contract(recording, call, (left, right), (sides[0] + "yx", sides[1] + "xz"), batch + "yz")


def added_matmul(recording: Recording, call: Call) -> None:
    """A matrix product in batches, to which something is added that is, as a mask, the same for all channels."""
    added, left, right = call.args[:3]
    keep_whole(recording, call, [recording.shadow(added)], "added to a product")
    _contract(recording, call, (left, right), ("ayx", "axz"), "ayz")


def einsum(recording: Recording, call: Call) -> None:
    """A product of two tensors whose axes are named."""
    equation, operands = call.args[0].replace(" ", ""), call.args[1]
    given, arrow, result = equation.partition("->")
    names = given.split(",")
    if (
        arrow
        and len(operands) == len(names) == 2
        and all(len(set(name)) == len(name) for name in names)
        and ("." not in equation)
    ):
        _contract(recording, call, tuple(operands), (names[0], names[1]), result)
    else:
        keep_whole(recording, call, map(recording.shadow, operands), "combined by einsum")


def _is_layer(recording: Recording, call: Call, left: Tensor, right: Tensor) -> bool:
    """Whether one side is a matrix of the network's own, a layer without a module; follows it then."""
    for weight, inputs, axis in ((right, left, -1), (left, right, -2)):
        shadow = recording.shadow(inputs)
        given = recording.giver(inputs) is not None if shadow is None else not recording.is_bare(shadow)
        if recording.name_of(weight) and weight.dim() == 2 and given:
            linear_in_place(recording, call, inputs, weight, axis)
            return True
    return False


def _contract(
    recording: Recording, call: Call, tensors: tuple[Tensor, Tensor], names: tuple[str, str], result: str
) -> None:
    shadows = [recording.shadow(tensor) for tensor in tensors]
    varying = [_varying(shadow, axes) for shadow, axes in zip(shadows, names, strict=True)]
    summed = (set(names[0]) & set(names[1])) - set(result)
    of_channels = [summed & axes for axes in varying]
    alone = [set(result) & axes - set(other) for axes, other in zip(varying, reversed(names), strict=True)]
    lost = any(set(axes) - set(result) - summed for axes in names)
    if not any(of_channels) and not all(alone) and not lost:
        left, right = (None if s is None else _arranged(s, n, result) for s, n in zip(shadows, names, strict=True))
        combine(recording, call, left, right)
        for tensor in tensors:
            recording.note_read(tensor)
    elif of_channels[0] and of_channels[0] == of_channels[1] and len(summed) == 1 and not lost:
        order = [axis for axis in dict.fromkeys(names[0] + names[1]) if axis not in summed]
        inside = "".join(order) + "_" + "".join(summed)
        left, right = (_arranged(s, n, inside) for s, n in zip(shadows, names, strict=True) if s is not None)
        multiply_channels(recording, left, right, tensors, False)
        recording.mark(call.output, None)
    else:
        keep_whole(recording, call, shadows, "mixed by a product")


def _varying(shadow: Tensor | None, axes: str) -> set[str]:
    if shadow is None:
        return set()
    return {name for name, size in zip(axes, compact(shadow).shape, strict=True) if size > 1}


def _arranged(shadow: Tensor, axes: str, result: str) -> Tensor:
    """A compact shadow with its axes in another order; axes that it does not have are of length 1."""
    small = compact(shadow)
    kept = [axis for axis in result if axis in axes]
    gone = [axis for axis in axes if axis not in result]
    small = small.permute([axes.index(axis) for axis in (*kept, *gone)])
    small = small.reshape(*small.shape[: len(kept)], -1)[..., 0] if gone else small
    return small[tuple(slice(None) if axis in axes else None for axis in result)]


register_families({matmul: "matmul bmm", added_matmul: "baddbmm", einsum: "einsum"})
