"""Variants of registered data sets: the same class, with one of this package's changes mixed in before it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..host.data import dataset_class, register_dataset
from ..host.guarded import CombinedInOrder
from .checks import Item


class Change:
    """A class that is mixed in before a data set's own, and what it finds there: lists of items, and their counts."""

    train: list[Item]
    query: list[Item]
    gallery: list[Item]
    data: list[Item]
    num_train_pids: int
    num_train_cams: int
    get_num_pids: Callable[[Sequence[Item]], int]
    get_num_cams: Callable[[Sequence[Item]], int]


def register_variant(name: str, suffix: str, kind: str, change: type, **settings: Any) -> str:
    """Registers a variant and returns its name; doing it again changes nothing.

    Args:
        name: of a registered data set.
        suffix: what the variant's name has behind it.
        kind: "image" or "video".
        change: a ``Change``, which is mixed in.
        **settings: its class attributes, hashable.

    Raises:
        ConfigError: unknown name.
    """
    variant = f"{name}-{suffix}"
    register_dataset(variant, _mixed(change, dataset_class(name, kind), tuple(settings.items())), kind)
    return variant


@functools.cache
def _mixed(change: type, whole: type, settings: tuple[tuple[str, Any], ...]) -> type:
    bases = (change, whole) if issubclass(whole, CombinedInOrder) else (change, CombinedInOrder, whole)
    return type(f"{change.__name__}{whole.__name__}", bases, {**dict(settings), "__doc__": whole.__doc__})
