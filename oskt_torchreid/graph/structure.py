"""What two networks must have in common for a proof about one to hold for the other: code, numbers and shapes."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def structure_of(model: nn.Module) -> Hashable:
    """A key that equals another's where both networks run the same code on tensors of the same shapes.

    It holds, per module, its class, its class's `forward`, and every attribute: numbers and texts by value, tensors by
    shape and type, functions and other objects as they are. So an object that each network has for itself makes them
    different: at worst something is done twice.

    Args:
        model: not changed.
    """
    named = model.named_modules(remove_duplicate=False)
    return tuple((name, type(module), type(module).forward, _frozen(vars(module))) for name, module in named)


_UNIMPORTANT = {"training"}


class _Same:
    """An object that is equal to itself alone, and stays, so that no other gets its place in memory."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


def _frozen(value: Any) -> Hashable:
    """A value that can be compared and is a key of dictionaries."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, nn.Module):
        return (type(value),)  # its content has an entry of its own
    if isinstance(value, Mapping):
        return tuple((_frozen(key), _frozen(item)) for key, item in value.items() if key not in _UNIMPORTANT)
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, (set, frozenset)):
        return frozenset(map(_frozen, value))
    if isinstance(value, functools.partial):
        return _frozen(value.func), _frozen(value.args), _frozen(value.keywords)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), _frozen(vars(value))
    if isinstance(value, _BY_VALUE):
        return type(value), repr(value)
    return _Same(value)


_BY_VALUE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, enum.Enum)
