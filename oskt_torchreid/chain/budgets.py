"""The widest uniform student within a budget, by bisection over the distinct width ratios.

A group of `N` channels changes its width at the ratios `1/N .. N/N`, so a network has finitely many different
uniform plans. Example: groups of 4 and 6 channels change at 1/6, 1/4, 1/3, 1/2, 2/3, 3/4, 5/6 and 1.

No group is narrower than in the chain. If a chain has some groups wider than others (for example, it was made like a
stock model that keeps its feature whole), these keep the chain's width until the ratio reaches it.

A budget is a number, or a number with a unit: `"1M"` parameters, `"4MB fp16"` of file, `"5ms"`.
"""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import WidthError
from ..graph.plans import ratio_plan, report_lowered, rounded_down, show_ratio
from .chain import WeightChain

logger = logging.getLogger(__name__)

_COUNT = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {**_COUNT, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MILLISECONDS = {"": 1, "us": 1e-3, "ms": 1, "s": 1e3}
UNITS = {"params": _COUNT, "flops": _COUNT, "size": _BYTES, "latency": _MILLISECONDS}
EXAMPLES = {"params": "1M", "flops": "200M", "size": "4MB", "latency": "5ms"}
HALF = "fp16"
_AMOUNT = re.compile(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")

CLOSE_ENOUGH = 0.95  # of a latency budget; a closer match is within the noise of the measurement


Cost = Callable[[dict[str, int]], float]
"""What a student of some widths costs."""


@dataclass(frozen=True)
class Choice:
    """The widths that meet a budget, and what they cost.

    Attributes:
        widths: width per group name.
        way: how the student was requested: `width`, `like`, `params`, `flops`, `size` or `latency`.
        ratio: the uniform width ratio; `None` if it was not searched for.
        budget: the bound, in parameters, multiply-adds, bytes or milliseconds; `None` without one.
        cost: what the widths cost in the same unit.
        half: whether `cost` is the size of a file in half precision.
        held: number of groups that are wider in the chain than the ratio.
        source: what measured latencies, in words.
    """

    widths: dict[str, int]
    way: str
    ratio: float | None = None
    budget: float | None = None
    cost: float | None = None
    half: bool = False
    held: int = 0
    source: str = ""

    def __str__(self) -> str:
        if self.budget is None or self.cost is None or self.ratio is None:
            return self.way if self.ratio is None else f"width ratio {show_ratio(self.ratio)}"
        held = f" ({self.held} groups wider, as in the chain)" if self.held else ""
        share, note = self.cost / self.budget, ""
        if self.way == "latency":
            below = "the teacher's own width" if self.ratio == 1 else "the closest below the budget"
            note = ", within 5 % of the budget" if share >= CLOSE_ENOUGH else f", {below}"
        shown = (show_amount(self.way, amount) for amount in (self.cost, self.budget))
        source = f" {self.source}" if self.source else ""
        amounts = " of ".join(shown)
        return f"width ratio {show_ratio(self.ratio)}{held}: {self.way} {amounts}{source} ({share:.1%}{note})"


def ratios_of(chain: WeightChain) -> np.ndarray:
    """Every width ratio at which some group gets wider, increasing; the first one is that of the chain's own widths."""
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
    """How many groups are wider in a chain than a ratio makes them."""
    plan = rounded_down(chain.graph, ratio)
    return sum(width > plan[name] for name, width in chain.widths.items())


def widest_within(chain: WeightChain, way: str, budget: float | str, cost: Cost) -> Choice:
    """The widest uniform student within a budget.

    Counts grow with the ratio, so that of the result is within the budget and that of the next wider plan is not. For
    latency this holds only for what is measured: the result is within the budget, and either above 95 % of it or the
    closest below it that the bisection measured.

    Args:
        chain: not changed.
        way: `params`, `flops`, `size` or `latency`.
        budget: see `parse_amount`.
        cost: of a student, in the unit of `parse_amount`.

    Raises:
        WidthError: no such amount, or a budget that no student meets; the message gives the smallest and the largest
            possible.
    """
    amount, half = parse_amount(way, budget), way == "size" and in_half_precision(budget)
    ratios = ratios_of(chain)
    costs = _Memory(chain, ratios, cost)
    if costs(0) > amount:
        smallest = show_amount(way, costs(0), at_least=True)  # what is advised is enough
        largest = show_amount(way, costs(len(ratios) - 1))
        raise WidthError(
            f"{way}={budget!r} cannot be met: students of this chain have from {smallest} (the chain's own widths, "
            f"ratio {show_ratio(ratios[0])}) to {largest} (the teacher's width); ask for at least {smallest}, or "
            "refine a narrower chain"
        )
    index = _bisect(costs, len(ratios) - 1, amount, CLOSE_ENOUGH * amount if way == "latency" else amount)
    ratio, plan = float(ratios[index]), costs.plan(index)
    report_lowered(rounded_down(chain.graph, ratio, chain.widths), plan)
    choice = Choice(plan, way, ratio, amount, costs(index), half, held_groups(chain, ratio))
    logger.info("%s=%s gives %s", way, budget, choice)
    return choice


def _bisect(cost: Callable[[int], float], last: int, budget: float, enough: float) -> int:
    """An index whose cost is within the budget while the next one's is not, or one whose cost is at least `enough`.

    Example, costs `1 2 4 8` and a budget of 5: 1 fits (cost 2), 2 fits (4), 3 does not (8), so 2.
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
    """Cost of the plan of each ratio, computed once."""

    def __init__(self, chain: WeightChain, ratios: np.ndarray, cost: Cost) -> None:
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


# ---- amounts ---------------------------------------------------------------------------------------------------------


def parse_amount(way: str, budget: float | str) -> float:
    """A budget in parameters, multiply-adds, bytes or milliseconds.

    Args:
        way: `params`, `flops`, `size` or `latency`.
        budget: a number, or a number with a unit: k, M, G, T for counts; kB, MB, GB (powers of 1000, also without B) or
            KiB, MiB, GiB for sizes, followed by `fp16` for files in half precision; us, ms, s for latencies. Without a
            unit a latency is in milliseconds.

    Raises:
        WidthError: no such amount, or not above zero.
    """
    text = str(budget)
    if way == "size":
        text = text.removesuffix(HALF)
    match = _AMOUNT.fullmatch(text)
    try:
        amount = float(match[1]) * UNITS[way][match[2]] if match else math.nan
    except (KeyError, ValueError):
        amount = math.nan
    if not 0 < amount < math.inf:
        units = ", ".join(unit for unit in UNITS[way] if unit)
        raise WidthError(
            f"{way}={budget!r} is no budget; give a number above zero, alone or with one of the units {units}, such as "
            f"{way}='{EXAMPLES[way]}'"
        )
    return amount


def in_half_precision(budget: float | str) -> bool:
    """Whether a size is that of a file in half precision."""
    return str(budget).endswith(HALF)


def show_amount(way: str, amount: float, at_least: bool = False) -> str:
    """An amount with three digits and a unit: 2193616 parameters -> '2.19M', `at_least` that '2.20M'."""
    units = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    if at_least and 0 < amount < math.inf:
        digit = 10.0 ** (math.floor(math.log10(amount)) - 2)
        amount = max(math.ceil(amount / digit - 1e-9) * digit, math.ceil(amount) if way != "latency" else 0.0)
    if way == "latency":
        if amount == math.inf:
            return "what was not measured"
        return f"{amount:.3g}ms" if amount < 999.5 else f"{amount / 1e3:.3g}s"
    unit = max((name for name, scale in units.items() if amount >= 0.9995 * scale), key=units.__getitem__, default="")
    digits = f"{amount / units[unit]:#.3g}".rstrip(".") if unit else f"{amount:.0f}"
    return f"{digits}{unit}{'B' if way == 'size' else ''}"
