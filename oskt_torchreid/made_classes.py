"""Classes that a function makes: pickled as the call that makes them, so that their objects reach other processes.

Python pickles a class by its name in a module, which a class that was made inside a function does not have.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any


class Made(type):
    """The kind of such classes: `class Mine(Base, metaclass=made_kind(Base))`, then `Mine.made_by = (make, arguments)`.

    Another process calls `make(*arguments)`. Copies of an object within a process keep its class.
    """

    made_by: tuple[Callable[..., type], tuple[Any, ...]]


def made_kind(base: type) -> type:
    """The metaclass of a class that a function derives from `base`; where that has one of its own, it stays."""
    return Made if type(base) in (type, Made) else type(base)


def _reduced(kind: Made) -> Any:
    """What a class is pickled as; one that is derived from such a class in a module is found there."""
    return vars(kind).get("made_by", kind.__qualname__)


copyreg.pickle(Made, _reduced)
