"""Shadows: channel ids in an activation's shape, expanded (stride 0) along every axis that they are alike along."""

from __future__ import annotations

from torch import Tensor


def compact(shadow: Tensor) -> Tensor:
    """The same shadow with every axis along which it was expanded (stride 0) cut to length 1."""
    strides = shadow.stride()
    sizes = [min(size, 1) if stride == 0 else size for size, stride in zip(shadow.shape, strides, strict=True)]
    return shadow if sizes == list(shadow.shape) else shadow.as_strided(sizes, strides)


def settled(shadow: Tensor) -> Tensor:
    """The same shadow, expanded (stride 0) along every axis along which it does not vary."""
    small = compact(shadow)
    for axis in range(small.dim()):
        first = small.narrow(axis, 0, 1)
        if small.size(axis) > 1 and bool((small == first).all()):
            small = first
    return small.expand(shadow.shape)


def extents(shadow: Tensor) -> list[int]:
    """Lengths of the axes along which a shadow varies."""
    return [size for size in compact(shadow).shape if size > 1]


def spread(channels: Tensor, like: Tensor, axis: int) -> Tensor:
    """`channels` (`[length]`) along one axis of `like`'s shape, expanded over all others."""
    shape = [1] * like.dim()
    shape[axis] = len(channels)
    return channels.reshape(shape).expand(like.shape)
