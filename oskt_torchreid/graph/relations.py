"""Solves equations between unknowns that are 0 or 1: equalities, zeros, and products where one of two sides is 1."""

from __future__ import annotations

Unknown = tuple[str, ...]
"""Its kind (`activation`, `rows`, `columns`, `statistics`), and what it belongs to."""


class Relations:
    """Equations between unknowns that are 0 (unchanged) or 1 (carries the factor).

    Attributes:
        known: every unknown.
        tensors: names of the tensors that an unknown stands for, if not the single tensor of its own name.
    """

    def __init__(self) -> None:
        self._parent: dict[Unknown, Unknown] = {}
        self._zero: list[tuple[Unknown, str]] = []
        self._products: list[tuple[Unknown, Unknown, Unknown, str]] = []
        self.tensors: dict[Unknown, tuple[str, ...]] = {}

    @property
    def known(self) -> list[Unknown]:
        """Every unknown, in order of appearance."""
        return list(self._parent)

    def find(self, unknown: Unknown) -> Unknown:
        """The representative of all unknowns that are equal to this one."""
        self._parent.setdefault(unknown, unknown)
        while (parent := self._parent[unknown]) != unknown:
            self._parent[unknown] = self._parent[parent]
            unknown = parent
        return unknown

    def equal(self, first: Unknown, *others: Unknown) -> None:
        """All of them are 0, or all are 1."""
        for other in others:
            self._parent[self.find(other)] = self.find(first)

    def unscaled(self, unknown: Unknown, why: str) -> None:
        """It is 0."""
        self.find(unknown)
        self._zero.append((unknown, why))

    def product(self, result: Unknown, left: Unknown, right: Unknown, why: str) -> None:
        """`result = left + right`: a product carries the factor once, from one side."""
        for unknown in (result, left, right):
            self.find(unknown)
        self._products.append((result, left, right, why))

    def solve(self, wanted: set[Unknown]) -> tuple[set[Unknown], str]:
        """The smallest set of unknowns that are 1 if the wanted ones are.

        Returns:
            That set and an empty string, or the reason why it is impossible.
        """
        zeros: dict[Unknown, str] = {}
        for unknown, why in self._zero:
            zeros.setdefault(self.find(unknown), why)
        products = [(*map(self.find, product[:3]), product[3]) for product in self._products]
        return _complete({self.find(unknown) for unknown in wanted}, zeros, products)


def _complete(ones: set[Unknown], zeros: dict[Unknown, str], products: list[tuple]) -> tuple[set[Unknown], str]:
    """Adds what follows from `ones`; if a product leaves a choice, the left side is tried first."""
    for unknown in ones:
        if unknown in zeros:
            return set(), zeros[unknown]
    for result, left, right, why in products:
        sides = [side for side in (left, right) if side in ones]
        if len(sides) == 2:
            return set(), why
        if sides and result not in ones:
            return _complete(ones | {result}, zeros, products)
        if not sides and result in ones:
            first, reason = _complete(ones | {left}, zeros, products)
            return (first, "") if not reason else _complete(ones | {right}, zeros, products)
    return ones, ""
