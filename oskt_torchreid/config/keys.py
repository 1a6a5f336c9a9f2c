"""A key of the configuration is one row of a table, which says all there is to say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from .allowed import Allowed, Value


class Effect(str, Enum):
    """The effect of another value of a key."""

    WEIGHTS = "weights"  # networks are trained again
    NUMBERS = "numbers"  # networks are evaluated again
    NEITHER = "neither"  # nothing: how, where and how fast it is done, or which networks there are


WEIGHTS, NUMBERS, NEITHER = Effect


@dataclass(frozen=True)
class Key:
    """A row of the table.

    Attributes:
        default: the default value, of the type that every value must have.
        meaning: what the key is for.
        allowed: allowed values; None: anything of the type.
        effect: the effect of another value. Weights unless the row says otherwise: networks are rather trained once too
            often than kept although they would be others.
        if_twice: the harm of an entry that a list has twice; empty: allowed.
        own: whether torchreid does not have the key; rows of nodes that are this package's own need not say so.
    """

    default: Value
    meaning: str
    allowed: Allowed | None = None
    effect: Effect = WEIGHTS
    if_twice: str = ""
    own: bool = False


Node = Mapping[str, "Key | Node | Callable[[], Node]"]
"""Keys and nodes by their names; a function makes a node whose keys depend on what others have registered."""

Tree = Mapping[str, "Value | Tree"]
"""Values by the names of keys, nested as the keys are."""


def rows_of(node: Node, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every dotted name of a key below a node, and its row."""
    for name, content in node.items():
        if isinstance(content, Key):
            yield prefix + name, content
        else:
            yield from rows_of(content() if callable(content) else content, f"{prefix}{name}.")


def defaults_of(node: Node) -> Tree:
    """A node's defaults, nested as its keys are; lists are fresh ones."""
    values: dict[str, Value | Tree] = {}
    for name, content in node.items():
        if isinstance(content, Key):
            values[name] = list(content.default) if isinstance(content.default, list) else content.default
        else:
            values[name] = defaults_of(content() if callable(content) else content)
    return values
