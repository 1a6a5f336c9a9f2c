"""Recipes of stages: the settings, files and pictures that determine weights, and those that determine numbers.

Recipes are compared when a run is started again, see `stages`. They hold the values themselves, not only a digest, so
that the log can say what changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..config import digest

_SHOWN = 3
_LONGEST = 60  # characters of a value in a message

Settings = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a stage's result.

    Attributes:
        weights: name and value of everything that determines the trained weights: keys, digests of files, pictures and
            earlier stages.
        numbers: the same for the evaluation of finished networks.
        idle: names that are kept but not compared: they have no effect under the values of others, see `conditions`.
    """

    weights: Mapping[str, Any]
    numbers: Mapping[str, Any]
    idle: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """Digest of everything that determines the weights."""
        return digest(self._compared(self.weights))

    def with_weights(self, **changes: Any) -> Recipe:
        """This recipe with further settings, or without some of them."""
        kept = {**self.weights, **changes}
        return replace(self, weights={name: value for name, value in kept.items() if value is not None})

    def changed_weights(self, made: Settings) -> str:
        """The differences of `weights` from the settings of an earlier run, as text; see `changes_of`."""
        return self._changes(made, "weights")

    def changed_numbers(self, made: Settings) -> str:
        """The same for `numbers`."""
        return self._changes(made, "numbers")

    def _changes(self, made: Settings, part: str) -> str:
        return changes_of(self._compared(made.get(part, {})), self._compared(self.as_json()[part]))

    def _compared(self, values: Mapping[str, Any]) -> Settings:
        return {name: value for name, value in values.items() if name not in self.idle}

    def as_json(self) -> Settings:
        """Plain values, as they are read back from a file."""
        return json.loads(json.dumps({"weights": self.weights, "numbers": self.numbers}, sort_keys=True, default=str))


def changes_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences between two settings, as text; empty if there are none.

    Example: `{"train.lr": 0.1, "seed": 1}` and `{"train.lr": 0.2, "seed": 1}` give `train.lr was 0.1, is 0.2`.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    parts = [_change(name, before, now) for name in names[:_SHOWN]]
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(parts) + more


def _change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name.startswith("the "):  # files, pictures, earlier stages: their digests mean nothing to a reader
        if name not in before or name not in now:
            return f"{name} is {'given now' if name in now else 'not given any more'}"
        return f"{name} changed"
    return f"{name} was {_shown(before.get(name))}, is {_shown(now.get(name))}"


def _shown(value: Any) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
