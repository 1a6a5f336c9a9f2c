"""The widest uniform student within a budget, by bisection over the width ratios that differ.

A group of ``N`` channels changes its width at the ratios ``1/N .. N/N``, so a network has finitely many different
uniform plans. Example: groups of 4 and 6 channels change at 1/6, 1/4, 1/3, 1/2, 2/3, 3/4, 5/6 and 1.

No group is narrower than in the chain. Where a chain has some groups wider than others (it was made like a stock model
that keeps its feature whole, say), these stay as they are until the ratio reaches them: its own widths come first.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from ..errors import WidthError
from ..graph.plans import ratio_plan, report_lowered, rounded_down
from .amounts import in_half_precision, parse_amount, show_amount, show_ratio
from .chain import WeightChain
from .counting import Costs
from .expansion import expand_to_plan

logger = logging.getLogger(__name__)

CLOSE_ENOUGH = 0.95  # of a latency budget; nearer is within the noise of measuring
ATTEMPTS = 3  # measurements of a network that would be within a latency budget but for their spread


class Measured(Protocol):
    """What a measuring function returns."""

    median_ms: float
    spread_ms: float


Measure = Callable[[nn.Module, tuple[int, ...]], Measured]


@dataclass(frozen=True)
class Choice:
    """The widths that meet a budget, and what they cost.

    Attributes:
        widths: width per group name.
        way: what was asked for: ``width``, ``like``, ``params``, ``flops``, ``size`` or ``latency``.
        ratio: the uniform width ratio; ``None`` where it was not looked for.
        budget: the bound, in parameters, multiply-adds, bytes or milliseconds; ``None`` without one.
        cost: what the widths cost in the same unit.
        half: whether ``cost`` is the size of a file in half precision.
        held: number of groups that the chain has wider than the ratio.
    """

    widths: dict[str, int]
    way: str
    ratio: float | None = None
    budget: float | None = None
    cost: float | None = None
    half: bool = False
    held: int = 0

    def __str__(self) -> str:
        if self.budget is None:
            return self.way if self.ratio is None else f"width ratio {show_ratio(self.ratio)}"
        held = f" ({self.held} groups wider, as in the chain)" if self.held else ""
        share, note = self.cost / self.budget, ""
        if self.way == "latency":
            below = "the teacher's own width" if self.ratio == 1 else "the closest below the budget"
            note = ", within 5 % of the budget" if share >= CLOSE_ENOUGH else f", {below}"
        shown = (show_amount(self.way, amount) for amount in (self.cost, self.budget))
        return f"width ratio {show_ratio(self.ratio)}{held}: {self.way} {' of '.join(shown)} ({share:.1%}{note})"


def ratios_of(chain: WeightChain) -> np.ndarray:
    """Every width ratio at which some group gets wider, increasing; before them the one of the chain's own widths."""
    own = chain.widths
    ranges = {(own[group.name], group.size) for group in chain.graph.groups if own[group.name] < group.size}
    if not ranges:
        return np.ones(1)
    wider = np.unique(np.concatenate([np.arange(least + 1, size + 1) / size for least, size in ranges]))
    first = max(least / size for least, size in ranges if least / size < wider[0])
    ratios = np.concatenate([[first], wider])
    same = bisect_right(ratios, False, key=lambda ratio: ratio_plan(chain.graph, ratio, own) != own)
    return ratios[max(0, same - 1) :]


def held_groups(chain: WeightChain, ratio: float) -> int:
    """How many groups a chain has wider than a ratio gives them."""
    plan = rounded_down(chain.graph, ratio)
    return sum(width > plan[name] for name, width in chain.widths.items())


def widest_within(chain: WeightChain, way: str, budget: float | str, measure: Measure | None = None) -> Choice:
    """The widest uniform student within a budget.

    Counts grow with the ratio, so that of the result is within the budget and that of the next wider plan is not. Of a
    latency that is known only as far as it is measured: the result's is within the budget, and either above 95 % of it
    or the closest below it that bisection met.

    Args:
        chain: only read.
        way: ``params``, ``flops``, ``size`` or ``latency``.
        budget: see ``parse_amount``.
        measure: latency of a network for images of a size; needed for ``latency`` alone.

    Raises:
        WidthError: no such amount, or a budget that no student meets; says the smallest and the largest there is.
    """
    amount, half = parse_amount(way, budget), way == "size" and in_half_precision(budget)
    ratios = ratios_of(chain)
    find = _measured(chain, measure, amount) if way == "latency" else _counted(chain, way, half)
    cost = _Memory(chain, ratios, find)
    if cost(0) > amount:
        smallest, largest = (show_amount(way, cost(index)) for index in (0, len(ratios) - 1))
        raise WidthError(
            f"{way}={budget!r} cannot be met: students of this chain have from {smallest} (the chain's own widths, "
            f"ratio {show_ratio(ratios[0])}) to {largest} (the teacher's width); ask for at least {smallest}, or "
            "refine a narrower chain"
        )
    index = _bisect(cost, len(ratios) - 1, amount, CLOSE_ENOUGH * amount if way == "latency" else amount)
    ratio, plan = float(ratios[index]), cost.plan(index)
    report_lowered(rounded_down(chain.graph, ratio, chain.widths), plan)
    choice = Choice(plan, way, ratio, amount, cost(index), half, held_groups(chain, ratio))
    logger.info("%s=%s gives %s", way, budget, choice)
    return choice


def _bisect(cost: Callable[[int], float], last: int, budget: float, enough: float) -> int:
    """An index whose cost is within the budget while that of the next one is not, or one that costs ``enough``.

    Example, costs ``1 2 4 8`` and a budget of 5: 1 fits (cost 2), 2 fits (4), 3 does not (8), so 2.
    """
    if cost(last) <= budget:
        return last
    within, beyond = 0, last
    while beyond - within > 1 and cost(within) < enough:
        middle = (within + beyond) // 2
        if cost(middle) <= budget:
            within = middle
        else:
            beyond = middle
    return within


class _Memory:
    """Cost of the plan of each ratio, found out once."""

    def __init__(self, chain: WeightChain, ratios: np.ndarray, cost: Callable[[dict[str, int]], float]) -> None:
        self._graph, self._ratios, self._cost = chain.graph, ratios, cost
        self._least = chain.widths
        self._known: dict[tuple[int, ...], float] = {}

    def plan(self, index: int) -> dict[str, int]:
        return ratio_plan(self._graph, float(self._ratios[index]), self._least)

    def __call__(self, index: int) -> float:
        plan = self.plan(index)
        key = tuple(plan.values())
        if key not in self._known:
            self._known[key] = self._cost(plan)
        return self._known[key]


def _counted(chain: WeightChain, way: str, half: bool) -> Callable[[dict[str, int]], float]:
    costs = Costs(chain)
    if way == "size":
        return lambda plan: int(costs.file_sizes([plan], half)[0])
    return lambda plan: int(getattr(costs.count([plan]), way)[0])


def _measured(chain: WeightChain, measure: Measure, budget: float) -> Callable[[dict[str, int]], float]:
    """Milliseconds; other work on the machine only ever adds some, so the least of a few doubtful measurements."""

    def cost(plan: dict[str, int]) -> float:
        student = expand_to_plan(chain, plan)
        medians: list[float] = []
        doubtful = True
        while doubtful and len(medians) < ATTEMPTS:
            latency = measure(student, chain.input_size)
            logger.info("measured: %s", latency)
            medians.append(latency.median_ms)
            doubtful = min(medians) > budget >= min(medians) - latency.spread_ms
        return min(medians)

    return cost
