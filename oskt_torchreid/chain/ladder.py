"""Ladders: chains of students of chains, which together give students of every width up to the teacher's.

Rung 1 is a chain of the teacher; the teacher of every further rung is the S-student of the rung above it, the student
of that chain's own width. A rung therefore gives widths from its own up to that of the rung above::

    ratios 0.5, 0.25, 0.125:   teacher 1 ---- 0.5 ---- 0.25 ---- 0.125
                                    rung 1     rung 2     rung 3
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tabulate import tabulate
from torch import nn

from ..errors import ChainError, WidthError, expect
from ..graph.plans import check_plan
from .chain import WeightChain
from .expansion import expand_to_plan, width_plan

Widths = Mapping[str, int]
"""Width per group name."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """Chains from wide to narrow, each but the first made of the S-student of the one before.

    Attributes:
        chains: the rungs; the first is a chain of a first teacher.

    Raises:
        ChainError: no chain, or chains that do not follow from each other.
    """

    chains: tuple[WeightChain, ...]

    def __post_init__(self) -> None:
        expect((list, tuple), self.chains, "chains of a ladder", "give a tuple of weight chains", ChainError)
        object.__setattr__(self, "chains", tuple(self.chains))
        for chain in self.chains:
            expect(WeightChain, chain, "a chain of a ladder", "read one: WeightChain.load(path)", ChainError)
        if not self.chains:
            raise ChainError("a ladder has at least one chain")
        if self.chains[0].origin_to_teacher:
            raise ChainError("the first chain of a ladder is one of a first teacher; this one was made of a student")
        for number, (above, below) in enumerate(zip(self.chains, self.chains[1:], strict=False), 2):
            if not below.origin_to_teacher or below.graph.sizes != above.widths:
                raise ChainError(
                    f"chain {number} of the ladder was not made of the student of the widths of chain {number - 1}; "
                    "make it with WeightChain.from_student(expand_to_plan(chain, chain.widths), chain, ...)"
                )

    @property
    def span(self) -> WeightChain:
        """The widest chain with the clusters of the narrowest: the widths of the ladder, not their weights."""
        without: dict[str, Any] = {"statistics": {}, "trees": {}, "own": {}, "importance": {}}
        return replace(self.chains[0], teacher_to_chain=self.chains[-1].origin_to_chain, **without)

    def expand(
        self,
        *args: Any,
        distance: str = "none",
        attention: str | None = None,
        statistics: str = "own",
        vectors_over: str | None = None,
        feature: str = "own",
        **options: Any,
    ) -> nn.Module:
        """A student of the nearest chain; arguments and errors as of `oskt.expand`, ratios of the first teacher's.

        Features are lifted to the teacher of the chain that the student is of: students of two chains share no gallery.
        """
        widths = width_plan(self.span, *args, **options)
        chain = self.nearest(widths)
        return expand_to_plan(chain, widths, attention, distance, statistics, vectors_over, feature)

    def nearest(self, widths: Widths) -> WeightChain:
        """The widest chain that gives these widths.

        Raises:
            WidthError: there is none.
        """
        check_plan(self.chains[0].graph, widths)
        return self.chains[nearest_rung([chain.widths for chain in self.chains], self.chains[0].graph.sizes, widths)]

    def summary(self) -> str:
        """Widths that each rung gives, as ratios of the first teacher's channels (those that may be narrowed)."""
        top = self.chains[0].graph
        free = [group.name for group in top.groups if not group.fixed]
        whole = sum(top.sizes[name] for name in free)
        table = []
        for number, chain in enumerate(self.chains, 1):
            widest, narrowest = (sum(widths[name] for name in free) for widths in (chain.graph.sizes, chain.widths))
            table.append((number, narrowest, widest, f"{narrowest / whole:.3f}", f"{widest / whole:.3f}"))
        headers = ("rung", "fewest channels", "most", "narrowest", "widest")
        return tabulate(table, headers=headers, disable_numparse=True)


def nearest_rung(rungs: Sequence[Widths], whole: Widths, widths: Widths) -> int:
    """Index of the widest rung that gives these widths.

    Args:
        rungs: widths of each rung's chain, from wide to narrow.
        whole: the first teacher's widths.
        widths: the requested ones.

    Raises:
        WidthError: too narrow, too wide, or some groups belong to one rung and some to another.

    Example: rungs of 2 and 1 of 4 channels give 2..4 and 1..2. A width of 3 is the first's, 1 the second's, and 2 too
    is the first's, whose S-student it is.
    """
    ceilings = [whole, *rungs[:-1]]
    for index, (floor, ceiling) in enumerate(zip(rungs, ceilings, strict=True)):
        if all(floor[name] <= width <= ceiling[name] for name, width in widths.items()):
            return index
    wrong = [name for name, width in widths.items() if not rungs[-1][name] <= width <= whole[name]]
    if wrong:
        name = wrong[0]
        raise WidthError(
            f"width {widths[name]} of group '{name}' is outside of [{rungs[-1][name]}, {whole[name]}], from the "
            "narrowest chain's to the first teacher's"
        )
    number, low, high = next(_straddled(rungs, widths))
    floor = rungs[number - 1]
    raise WidthError(
        f"no rung of the ladder gives all of these widths: group '{low}' ({widths[low]}) is narrower than chain "
        f"{number}'s {floor[low]}, and group '{high}' ({widths[high]}) wider than its {floor[high]}; ask for widths of "
        "one rung, or refine chains whose widths lie on one side of them"
    )


def _straddled(rungs: Sequence[Widths], widths: Widths) -> Iterator[tuple[int, str, str]]:
    """A rung with some groups below and some above its widths: its number, counted from 1, and one group of each."""
    for number, floor in enumerate(rungs, 1):
        low = next((name for name, width in widths.items() if width < floor[name]), "")
        high = next((name for name, width in widths.items() if width > floor[name]), "")
        if low and high:
            yield number, low, high
