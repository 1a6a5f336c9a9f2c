"""Conditions in the rows of keys: they check values and describe what they allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import ConfigError
from ..registry import nearest

INFINITY = float("inf")
LONGEST_SIDE = 4096  # of an image, in pixels
Scalar = bool | int | float | str
Value = Scalar | Sequence[Scalar]
"""The value of a key: a word, a number, a truth value, or a list of these."""


class Allowed(Protocol):
    """A condition on the value of a key."""

    def check(self, key: str, value: Value) -> None:
        """Raises ConfigError, with the allowed values, unless the value of the key is one."""

    def in_words(self) -> str:
        """The allowed values, as on the reference page."""


class OneOf:
    """One of some words or numbers; in a list each entry is one of them."""

    def __init__(self, *choices: str | int) -> None:
        self._choices = choices

    @property
    def choices(self) -> tuple[str | int, ...]:
        """All of them."""
        return self._choices

    def check(self, key: str, value: Value) -> None:
        """Raises ConfigError for the first that is not one of them, with the nearest."""
        for item in entries_of(value):
            if item not in self.choices:
                shown = ", ".join(map(repr, self.choices))
                raise ConfigError(f"{key} is {item!r}{nearest(str(item), map(str, self.choices))}; allowed: {shown}")

    def in_words(self) -> str:
        """The choices, one after the other."""
        return ", ".join(f"`{choice}`" for choice in self.choices)


class Registered(OneOf):
    """One of the names that are registered at the time of the check, including users' own methods."""

    def __init__(self, names: Callable[[], tuple[str, ...]]) -> None:
        super().__init__()
        self._names = names

    @property
    def choices(self) -> tuple[str | int, ...]:
        """The names that are registered now."""
        return self._names()


@dataclass(frozen=True)
class Between:
    """A number of a range, both ends included."""

    lowest: float
    highest: float

    def holds(self, value: Value) -> bool:
        """Whether it is a number of the range."""
        return isinstance(value, (int, float)) and self.lowest <= value <= self.highest

    def check(self, key: str, value: Value) -> None:
        """Raises ConfigError for anything but a number of the range."""
        if not self.holds(value):
            raise ConfigError(f"{key} is {value}; allowed: {self.lowest} to {self.highest}")

    def in_words(self) -> str:
        """The ends of the range, the upper one if there is one."""
        return f"from {self.lowest:g}" if self.highest == INFINITY else f"{self.lowest:g} to {self.highest:g}"


class AtLeast(Between):
    """A number that is not below another."""

    def __init__(self, lowest: float) -> None:
        super().__init__(lowest, INFINITY)


class BetweenOrName(Between):
    """A number of a range, or a name, which the part that knows the names checks."""

    def check(self, key: str, value: Value) -> None:
        """Raises ConfigError for numbers out of range."""
        if not isinstance(value, str):
            super().check(key, value)


class Folder:
    """A path, not an empty one, which is what a shell makes of a variable that is not set."""

    def check(self, key: str, value: Value) -> None:
        """Raises ConfigError for an empty word."""
        if not str(value).strip():
            raise ConfigError(f"{key} is empty; give a folder, '.' for the one you are in")

    def in_words(self) -> str:
        """That it is not empty."""
        return "not empty"


@dataclass(frozen=True)
class Entries:
    """A list of so many entries.

    Attributes:
        fewest: entries that it must have.
        most: entries that it may have.
        each: range of every entry; None: they are words, or checked elsewhere.
    """

    fewest: int = 0
    most: float = INFINITY
    each: Between | None = None

    def check(self, key: str, value: Value) -> None:
        """Raises ConfigError for too few or too many entries, and for one out of range."""
        entries = entries_of(value)
        if not self.fewest <= len(entries) <= self.most:
            number = f"exactly {self.fewest}" if self.fewest == self.most else f"at least {self.fewest}"
            raise ConfigError(f"{key} is {entries!r}, which has {len(entries)} entries; give {number}")
        each = self.each
        if each and not all(each.holds(entry) and not isinstance(entry, bool) for entry in entries):
            raise ConfigError(
                f"{key} is {entries!r}; each entry must be a number from {each.lowest:g} to {each.highest:g}"
            )

    def in_words(self) -> str:
        """The number of entries, and the allowed values of each."""
        number = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} or more"
        return f"{number}, each {self.each.in_words()}" if self.each else number


MOST_PROCESSES = 256
SEED = Between(0, 2**31)  # epochs are added to it, and NumPy takes 32 bits
WIDTH = Between(1e-6, 1)  # of a network, as a share of another's


def entries_of(value: Value) -> list[Scalar]:
    """The entries of a list; any other value is a single entry."""
    return [value] if isinstance(value, (bool, int, float, str)) else list(value)
