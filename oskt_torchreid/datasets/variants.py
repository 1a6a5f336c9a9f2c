"""Variants of registered data sets: the same class, whose objects are changed once they are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..host.data import dataset_class, register_dataset
from ..host.guarded import CombinedInOrder
from ..made_classes import made_kind
from .checks import Item


class Dataset(Protocol):
    """The parts of torchreid's data sets that a variant changes: lists of items, and their counts."""

    train: list[Item]
    query: list[Item]
    gallery: list[Item]
    data: list[Item]
    num_train_pids: int
    num_train_cams: int

    def get_num_pids(self, data: Sequence[Item]) -> int:
        """Number of identities."""

    def get_num_cams(self, data: Sequence[Item]) -> int:
        """Number of cameras."""


def register_variant(name: str, suffix: str, kind: str, change: Callable[..., None], **settings: Any) -> str:
    """Registers a variant and returns its name; done again, it is the variant of what the name stands for now.

    Args:
        name: of a registered data set.
        suffix: of the variant's name.
        kind: "image" or "video".
        change: a function of a `Dataset`, which it changes in place, and of the settings.
        **settings: hashable.

    Raises:
        ConfigError: unknown name.
    """
    variant = f"{name}-{suffix}"
    changed = _changed(dataset_class(name, kind), change, tuple(settings.items()))
    register_dataset(variant, changed, kind, replace=True)
    return variant


def replace_parts(dataset: Dataset, **parts: list[Item]) -> None:
    """Puts items in the place of some parts of a data set, whose counts and chosen part follow.

    Args:
        dataset: changed in place.
        **parts: items of `train`, `query` or `gallery`.
    """
    before = {name: getattr(dataset, name) for name in parts}
    for name, items in parts.items():
        setattr(dataset, name, items)
    dataset.num_train_pids = dataset.get_num_pids(dataset.train)
    dataset.num_train_cams = dataset.get_num_cams(dataset.train)
    for name, items in before.items():
        if dataset.data is items:
            dataset.data = getattr(dataset, name)


@functools.cache
def _changed(whole: Any, change: Callable[..., None], settings: tuple[tuple[str, Any], ...]) -> type:
    bases = (whole,) if issubclass(whole, CombinedInOrder) else (CombinedInOrder, whole)

    def read(self: Any, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, *args, **kwargs)
        change(self, **dict(settings))

    functools.update_wrapper(read, whole.__init__)  # torchreid's arguments are those of the class
    about = {"__init__": read, "__module__": __name__, "__doc__": whole.__doc__}
    made_by = _changed, (whole, change, settings)
    return made_kind(whole)(whole.__name__, bases, {**about, "made_by": made_by})
