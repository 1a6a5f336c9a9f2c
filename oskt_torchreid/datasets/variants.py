"""Variants of registered data sets: the same class, with one of this package's changes mixed in before it."""

from __future__ import annotations

import functools
from typing import Any

from ..host.data import dataset_class, register_dataset
from ..host.guarded import CombinedInOrder


def register_variant(name: str, suffix: str, kind: str, change: type, **settings: Any) -> str:
    """Registers a variant and returns its name; doing it again changes nothing.

    Args:
        name: of a registered data set.
        suffix: what the variant's name has behind it.
        kind: "image" or "video".
        change: class that is mixed in.
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
