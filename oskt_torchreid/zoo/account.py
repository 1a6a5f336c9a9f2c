"""A full account of an official file: every tensor is taken, scratch by a rule, or an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ZooError

Shape = tuple[int, ...]
_SHOWN, _MANY_SHOWN = 3, 20


class StateReader:
    """A state dict that is read key by key; tensors that were neither read nor derived are an error at the end.

    Args:
        state: tensors by name.
        path: their file, for messages.
        scratch: rule of the names that mean nothing.
    """

    def __init__(self, state: Mapping[str, Tensor], path: object, scratch: re.Pattern[str]) -> None:
        self.state = state
        self.path = path
        self._scratch = scratch
        self._taken: set[str] = set()

    def rows(self, key: str, dimensions: int) -> int:
        """Length of axis 0 of a tensor with that many axes."""
        return self.shape(key, dimensions)[0]

    def shape(self, key: str, dimensions: int) -> Shape:
        """Shape of a tensor with that many axes, none of them empty."""
        shape = tuple(self._given(key).shape)
        if len(shape) != dimensions or 0 in shape:
            raise self.error(key, f"has shape {shape}, it must have {dimensions} axes")
        return shape

    def take(self, key: str, shape: Shape) -> Tensor:
        """A tensor of exactly this shape, of real numbers; without axes it is a count."""
        tensor = self._given(key)
        if tensor.is_complex() or tensor.is_floating_point() != bool(shape):
            raise self.error(key, f"is {tensor.dtype}, it must be {'real numbers' if shape else 'a whole number'}")
        if tuple(tensor.shape) != tuple(shape):
            raise self.error(key, f"has shape {tuple(tensor.shape)}, by the tensors around it it must be {shape}")
        self._taken.add(key)
        return tensor

    def skip(self, key: str) -> None:
        """Counts a tensor as read, if it is there: it repeats another one."""
        self._taken.add(key)

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def names(self, pattern: str | re.Pattern[str]) -> list[re.Match[str]]:
        """Matches of the names that a pattern fits from the beginning."""
        return [match for name in self.state if (match := re.match(pattern, name))]

    def count(self, pattern: str) -> int:
        """How many numbers, from 0 without a gap, the one group of a pattern takes among the names.

        Raises:
            ZooError: a gap.
        """
        numbers = {match.group(1) for match in self.names(pattern)}
        if numbers != {str(number) for number in range(len(numbers))}:
            shown = ", ".join(sorted(numbers)[:_MANY_SHOWN])[:200]
            raise ZooError(f"'{self.path}' has the numbers {shown} in names like '{pattern}'; it must have them all")
        return len(numbers)

    def close(self) -> None:
        """Raises `ZooError` if tensors are left that nothing is known of."""
        left = [name for name in self.state if name not in self._taken and not self._scratch.search(name)]
        if left:
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            raise ZooError(
                f"'{self.path}' has tensors that are unexpected in a file of this format: "
                f"{', '.join(left[:_SHOWN])}{more}; give the file as the authors' program wrote it"
            )

    def error(self, key: str, problem: str) -> ZooError:
        """The error of one tensor of this file."""
        return ZooError(f"'{key}' in '{self.path}' {problem}")

    def _given(self, key: str) -> Tensor:
        if key not in self.state:
            raise ZooError(
                f"'{self.path}' lacks '{key}' ({len(self.state)} tensors are there); it is incomplete, or of another "
                "network than the file next to it says"
            )
        return self.state[key]


class LabelReader:
    """Labels that are read key by key; labels that were not read are an error at the end.

    Args:
        content: the labels' JSON object.
        path: its file, for messages.
    """

    def __init__(self, content: Mapping[str, Any], path: object) -> None:
        self.content = content
        self.path = path
        self._taken: set[str] = set()

    def take(self, key: str, count: int) -> np.ndarray:
        """Clusters of `count` channels, `0..K-1` with each in use.

        Raises:
            ZooError: missing, of another length, no integers, or clusters without channels.
        """
        if key not in self.content:
            raise ZooError(
                f"'{self.path}' has no labels '{key}', which the weights next to it need; the two files belong to "
                "networks of different depth, or one is damaged"
            )
        given = self.content[key]
        if not isinstance(given, list) or not all(type(label) is int for label in given):
            raise ZooError(f"'{key}' in '{self.path}' must be a list of integers")
        if len(given) != count:
            raise ZooError(f"'{key}' in '{self.path}' labels {len(given)} channels, the weights have {count}")
        self._taken.add(key)
        if not all(-1 <= label < count for label in given):
            raise ZooError(f"'{key}' in '{self.path}' has labels that are not 0..{count - 1}, of {count} channels")
        labels = np.array(given, np.int64)
        if labels.min() < 0 or len(np.unique(labels)) != labels.max() + 1:
            raise ZooError(
                f"'{key}' in '{self.path}' has labels from {labels.min()} to {labels.max()} of which "
                f"{len(np.unique(labels))} occur; clusters are 0..K-1, each with a channel"
            )
        return labels

    def close(self) -> None:
        """Raises `ZooError` if labels are left that belong to nothing."""
        left = [key for key in self.content if key not in self._taken]
        if left:
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            raise ZooError(
                f"'{self.path}' labels {', '.join(left[:_SHOWN])}{more}, which the weights next to it do not have; the "
                "two files belong to networks of different depth, or one is damaged"
            )
