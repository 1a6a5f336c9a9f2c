"""Data sets of anybody, read so that what is wrong with them is said: which set, which part, in its own words.

torchreid's managers make data sets by name from a table. While one does so, the table gives functions that make the
same objects, look at what is in them, and put their labels in order.
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
LARGEST_LABEL = 2**31  # what batches hold as whole numbers
_BASE = torchreid.data.Dataset.__init__.__code__.co_filename

Item = tuple[Any, ...]


@contextlib.contextmanager
def guarded(table: dict[str, Callable[..., Any]], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Has torchreid make data sets by `guarded_dataset`; afterwards the table is as it was.

    Args:
        table: torchreid's own, from names to classes.
        names: of the data sets that will be made.

    Yields:
        The last object of each name that was made, as they are made.
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
        DataError: whatever the class raised, in its own words; or items that are none.
    """
    dataset = _made(name, kind, arguments)
    for part in PARTS:
        _replace(dataset, part, _checked(name, part, getattr(dataset, part)))
    if all(_is_in_order(dataset.train, place) for place in (1, 2)):
        return dataset
    if arguments.get("combineall"):
        raise DataError(
            f"data set '{name}' has training labels that do not run from 0 to one less than their number, and "
            "data.combineall puts those of its test behind them; number identities and cameras so in its class"
        )
    logger.info("data set '%s': identities and cameras of the training part are numbered anew, from 0", name)
    _replace(dataset, "train", _in_order(dataset.train))
    return dataset


def _made(name: str, kind: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except OsktError:
        raise
    except Exception as reason:  # a class of anybody raises what it likes
        title = getattr(kind, "__qualname__", repr(kind))
        raise DataError(
            f"data set '{name}' cannot be read: {_own_words(reason, title)}; mend the data set, or the class that "
            "reads it"
        ) from reason


def _own_words(reason: Exception, title: str) -> str:
    """What an exception of a data set's class says, and where, if it says nothing itself."""
    last = traceback.extract_tb(reason.__traceback__)[-1]
    if isinstance(reason, IndexError) and last.filename == _BASE:
        return "train, query or gallery is empty"
    text = first_line(reason) if str(reason).strip() else f"'{last.line}' in {os.path.basename(last.filename)}"
    return f"{title} raised {type(reason).__name__}: {text}"


def _replace(dataset: Any, part: str, items: list[Item]) -> None:
    """Sets a part of a data set, and what it gives items of, where that is the same."""
    if dataset.data is getattr(dataset, part):
        dataset.data = items
    setattr(dataset, part, items)


def _checked(name: str, part: str, items: Sequence[Any]) -> list[Item]:
    """The items with plain labels; raises ``DataError`` for one that is none."""
    if not len(items):
        raise DataError(f"the {part} part of data set '{name}' is empty; it needs at least one picture")
    return [_plain(name, part, place, item) for place, item in enumerate(items)]


def _plain(name: str, part: str, place: int, item: Any) -> Item:
    try:
        paths, *labels = item
        fits = len(labels) >= 2 and all(_is_label(label) for label in labels)
        paths = _paths(paths)
    except TypeError:
        fits = False
    if not fits:
        raise DataError(
            f"item {place} of the {part} part of data set '{name}' is {item!r:.200}; expected (path, identity, camera) "
            f"with whole numbers below {LARGEST_LABEL}, or (paths, identity, camera) for a tracklet"
        )
    return (paths, *map(int, labels))


def _paths(paths: Any) -> Any:
    if isinstance(paths, (str, os.PathLike)):
        return os.fspath(paths)
    return tuple(os.fspath(path) for path in paths)


def _is_label(label: Any) -> bool:
    is_whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
    return is_whole and abs(int(label)) < LARGEST_LABEL


def _is_in_order(items: Sequence[Item], place: int) -> bool:
    labels = {item[place] for item in items}
    return min(labels) == 0 and max(labels) == len(labels) - 1


def _in_order(items: Sequence[Item]) -> list[Item]:
    """Items with identities and cameras numbered from 0, in the order of their numbers."""
    numbers = [{label: n for n, label in enumerate(sorted({item[place] for item in items}))} for place in (1, 2)]
    return [(paths, numbers[0][pid], numbers[1][camera], *rest) for paths, pid, camera, *rest in items]
