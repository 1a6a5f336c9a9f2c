"""The costs of students of a range of widths: parameters, FLOPs, bytes of the file and milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tabulate import tabulate
from torch import nn
from tqdm.auto import tqdm

from ..chain.budgets import held_groups, ratios_of, show_amount
from ..chain.chain import WeightChain
from ..chain.counting import Costs
from ..chain.expansion import expand_to_plan
from ..chain.student_file import file_size
from ..deploy import Latency
from ..graph.plans import ratio_plan, show_ratio

HEADERS = ("width", "params", "FLOPs", "size", "size fp16")
LATENCY_HEADERS = ("latency", "spread")


def spaced_ratios(chain: WeightChain, count: int) -> list[float]:
    """Width ratios from the chain's to the teacher's, `count` at most."""
    ratios = ratios_of(chain)
    if len(ratios) == 1:
        return [1.0]
    return sorted({float(show_ratio(ratio)) for ratio in np.linspace(ratios[0], 1.0, count)})


def cost_table(
    chain: WeightChain,
    ratios: Sequence[float],
    measure: Callable[[nn.Module, tuple[int, ...]], Latency] | None = None,
) -> str:
    """A table with a row per width ratio.

    Args:
        chain: only read.
        ratios: width ratios; no group gets narrower than in the chain.
        measure: measures the latency of a student; `None` leaves it out.

    Returns:
        Parameters and FLOPs (multiply-adds of one image) without the classifier, sizes of the saved files with
        everything, and the median latency with the distance of its quartiles. Ratios that some groups of the chain are
        wider than are marked with `+`.

    Raises:
        WidthError: a ratio out of range.
    """
    plans = [ratio_plan(chain.graph, ratio, chain.widths) for ratio in ratios]
    costs = Costs(chain)
    counts = costs.count(plans)
    students = [expand_to_plan(chain, plan) for plan in tqdm(plans, disable=None, unit="student", leave=False)]
    sizes, halves = ([file_size(student, half) for student in students] for half in (False, True))
    columns = zip(ratios, counts.params, counts.flops, sizes, halves, strict=True)
    ways = ("params", "flops", "size", "size")
    rows = [
        (_shown(chain, ratio), *(show_amount(way, cost) for way, cost in zip(ways, row, strict=True)))
        for ratio, *row in columns
    ]
    if measure is not None:
        seen = [measure(s, chain.input_size) for s in tqdm(students, disable=None, unit="student", leave=False)]
        times = ([show_amount("latency", ms) for ms in (each.median_ms, each.spread_ms)] for each in seen)
        rows = [(*row, *pair) for row, pair in zip(rows, times, strict=True)]
    headers = HEADERS + (LATENCY_HEADERS if measure is not None else ())
    return tabulate(rows, headers=headers, disable_numparse=True, stralign="right")


def _shown(chain: WeightChain, ratio: float) -> str:
    return f"{show_ratio(ratio)}{'+' * bool(held_groups(chain, ratio))}"
