"""Guards around users' data sets: an error names the set, the part, and what the set itself reported.

torchreid's managers make data sets by name from a table. Inside `guarded`, the table's entries are functions that make
the same objects, check their items, and renumber their labels.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, OsktError, first_line
from .compat import torchreid

logger = logging.getLogger(__name__)

PARTS = ("train", "query", "gallery")
IDENTITY, CAMERA = 1, 2  # positions in an item
LARGEST_LABEL = 2**31  # batches hold whole numbers of this size
_BASE = torchreid.data.Dataset.__init__.__code__

Item = tuple[Any, ...]


class CombinedInOrder(torchreid.data.Dataset):
    """Mixed into a data set's class: before all parts are combined, training identities are numbered from 0.

    torchreid numbers the test identities from the number of training identities, whatever labels those have.
    """

    train: list[Item]

    def combine_all(self) -> None:
        """As torchreid's."""
        self.train = _in_order(self.train, IDENTITY)
        super().combine_all()


@contextlib.contextmanager
def guarded(table: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Makes torchreid build data sets with `guarded_dataset`; the table is restored afterwards.

    Args:
        table: torchreid's own, from names to classes.
        names: of the data sets that will be made.

    Yields:
        The last object that was made for each name, filled while they are made.
    """
    classes = {name: table[name] for name in names}
    made: dict[str, Any] = {}

    def make(name: str, **arguments: Any) -> Any:
        made[name] = guarded_dataset(name, classes[name], arguments)
        return made[name]

    table.update({name: functools.partial(make, name) for name in names})
    try:
        yield made
    finally:
        table.update(classes)


def guarded_dataset(name: str, kind: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """An object of a data set's class, with items of plain values and training labels from 0 without gaps.

    Raises:
        DataError: what the class raised, with its own message; or invalid items.
    """
    dataset = _plain_parts(name, _made(name, kind, arguments))
    if _is_in_order(dataset.train, IDENTITY) and _is_in_order(dataset.train, CAMERA):
        return dataset
    logger.info("data set '%s': identities and cameras of the training part are renumbered from 0", name)
    if arguments.get("combineall") and not _is_in_order(dataset.train, IDENTITY):
        dataset = _combined(_plain_parts(name, _made(name, kind, {**arguments, "combineall": False})))
    _replace(dataset, "train", _in_order(_in_order(dataset.train, IDENTITY), CAMERA))
    return dataset


def _combined(dataset: Any) -> Any:
    """The data set itself, with all of its parts combined for training.

    torchreid numbers the test identities from the number of training identities, so these must be numbered from 0
    first. Cameras are the same in all parts, and keep their numbers until the parts are combined.
    """
    _replace(dataset, "train", _in_order(dataset.train, IDENTITY))
    before, dataset.combineall = dataset.train, True
    dataset.combine_all()
    if dataset.data is before:
        dataset.data = dataset.train
    return dataset


def _plain_parts(name: str, dataset: Any) -> Any:
    """The data set itself, with plain values in the items of every part."""
    has_tracklets = isinstance(dataset, torchreid.data.VideoDataset)
    for part in PARTS:
        _replace(dataset, part, _checked(name, part, getattr(dataset, part, None), has_tracklets))
    return dataset


def _made(name: str, kind: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except OsktError:
        raise
    except Exception as reason:  # a user's class may raise anything
        title = getattr(kind, "__qualname__", repr(kind))
        _check_given(name, kind, reason)
        raise DataError(
            f"data set '{name}' cannot be read: {_own_words(reason, title)}; fix the data set, or the class that "
            "reads it"
        ) from reason


def _check_given(name: str, kind: Callable[..., Any], reason: Exception) -> None:
    """Raises `DataError` if a class passed an invalid part to torchreid's base class, which then fails on it.

    The base class reads the first item of every part without checking that there is one.
    """
    for frame, _ in traceback.walk_tb(reason.__traceback__):
        if frame.f_code is _BASE:
            has_tracklets = isinstance(kind, type) and issubclass(kind, torchreid.data.VideoDataset)
            for part in PARTS:
                _checked(name, part, frame.f_locals[part], has_tracklets)


def _own_words(reason: Exception, title: str) -> str:
    """The message of an exception of a data set's class, or the line that raised it if there is no message."""
    last = traceback.extract_tb(reason.__traceback__)[-1]
    text = first_line(reason) if str(reason).strip() else f"'{last.line}' in {os.path.basename(last.filename)}"
    return f"{title} raised {type(reason).__name__}: {text}"


def _replace(dataset: Any, part: str, items: list[Item]) -> None:
    """Sets a part of a data set, and the list that it serves items from, if that is the same."""
    if getattr(dataset, "data", None) is getattr(dataset, part):
        dataset.data = items
    setattr(dataset, part, items)


def _checked(name: str, part: str, items: Any, has_tracklets: bool) -> list[Item]:
    """The items with plain labels; raises `DataError` for an invalid one."""
    if not isinstance(items, (Sequence, np.ndarray)):
        raise DataError(
            f"the {part} part of data set '{name}' is {items!r:.200}; expected a list of (path, identity, camera): its "
            "class gives three of them to that of torchreid.data that it is derived from"
        )
    if not len(items):
        raise DataError(f"the {part} part of data set '{name}' is empty; it needs at least one picture")
    return [_plain(name, part, place, item, has_tracklets) for place, item in enumerate(items)]


def _plain(name: str, part: str, place: int, item: Any, has_tracklets: bool) -> Item:
    try:
        paths, *labels = item
        paths = _paths(paths)
        fits = bool(paths) and isinstance(paths, tuple) == has_tracklets
        fits = fits and len(labels) in (2, 3) and all(_is_label(label) for label in labels)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        expected = "((path, path, ...), identity, camera)" if has_tracklets else "(path, identity, camera)"
        raise DataError(
            f"item {place} of the {part} part of data set '{name}' is {item!r:.200}; expected {expected}, with whole "
            f"numbers below {LARGEST_LABEL}"
        )
    return (paths, *map(int, labels))


def _paths(paths: Any) -> str | tuple[str, ...]:
    if isinstance(paths, (str, os.PathLike)):
        return os.fspath(paths)
    return tuple(os.fspath(path) for path in paths)


def _is_label(label: Any) -> bool:
    is_whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
    return is_whole and abs(int(label)) < LARGEST_LABEL


def _is_in_order(items: Sequence[Item], place: int) -> bool:
    labels = {item[place] for item in items}
    return min(labels) == 0 and max(labels) == len(labels) - 1


def _in_order(items: Sequence[Item], place: int) -> list[Item]:
    """Items with identities or cameras numbered from 0, in the order of their numbers."""
    numbers = {label: number for number, label in enumerate(sorted({item[place] for item in items}))}
    return [(*item[:place], numbers[item[place]], *item[place + 1 :]) for item in items]
