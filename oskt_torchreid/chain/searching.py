"""Widths of single channel groups within a budget, searched by what unlabelled pictures say, beside the uniform ratio.

A uniform ratio takes the same share of every group. Some groups cost much and matter little: to narrow these and to
widen others, at the same cost, may keep more of the teacher. What is kept is seen without labels, in how similar a
network finds pictures to each other: with `s_ij` the cosine similarity of the features of pictures `i` and `j` in a
student, and `t_ij` that in the teacher,

    agreement = mean over i of the correlation of s_ij with t_ij over all j != i

which ignores the features' length, scale and order, and so compares networks of any width.

Example: of two groups, a step of the first costs 3 and a step of the second 1; narrowing them loses 0.01 and 0.02 of
agreement, widening gains 0.005 and 0.015. The first loses least for what it saves (0.003 for a unit of cost), the
second gains most (0.015): the first is narrowed by one step, which pays for three steps of the second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from ..batches import images_of
from ..errors import ChainError, DataError
from ..graph import ChannelGraph
from ..graph.plans import balanced, full_plan
from .budgets import Choice, Cost, ratios_of
from .chain import WeightChain
from .expansion import Measure, cost_of, expand, expand_to_plan, widest_within
from .measured import MeasuredTable

logger = logging.getLogger(__name__)

STEPS = (
    1 / 4,
    1 / 8,
    1 / 16,
)  # shares of a group's channels by which it is made wider or narrower, from coarse to fine
LEAST_PICTURES = 8
NOTHING = 1e-5  # less agreement than this is no difference

Plan = dict[str, int]


@dataclass(frozen=True)
class Searched:
    """Widths that were searched for, and the uniform ones of the same budget.

    Attributes:
        uniform: the widest uniform student within the budget.
        widths: those found, by group name; the uniform ones, if no others are better.
        cost: what they cost, in the unit of the budget.
        uniform_agreement: with the teacher, of the uniform student, 1 at most.
        agreement: of the student found.
        tried: number of students that were compared.
    """

    uniform: Choice
    widths: Plan
    cost: float
    uniform_agreement: float
    agreement: float
    tried: int


def search_widths(
    chain: WeightChain, images: Iterable[Any], way: str, budget: float | str, measure: Any = None, rounds: int = 6
) -> Searched:
    """Searches the widths of single channel groups within a budget.

    Starts at the uniform student. A round tries a step up and a step down in every group, then takes the steps up that
    gain most for their cost together with the steps down that lose least for what they save, as long as the student
    agrees better with the teacher. When nothing does, steps get finer.

    Args:
        chain: not changed. Its students must differ before they are fine-tuned: those of a chain that was refined
            without levels (`oskt.nested: False`) all compute the same.
        images: batches of pictures as for `recalibrate`, some hundred together; their labels are not read.
        way: `params`, `flops`, `size` or `latency`.
        budget: as of `expand`.
        measure: of latencies, as of `expand`: a `MeasuredTable`, or a function, which then times every student.
        rounds: at most so many.

    Raises:
        WidthError: a budget that no uniform student meets.
        ChainError: students that all compute the same.
        DataError: fewer than 8 pictures, or batches of anything else.
        ConfigError: a `measure` that is neither.
    """
    agreement = Agreement(chain, images)
    cost = cost_of(chain, way, budget, measure)
    uniform = widest_within(chain, way, budget, cost)
    search = _Search(chain, agreement, cost, float(uniform.budget or 0))
    start = search.state(uniform.widths)
    best = search.improved(start, rounds)
    logger.info("agreement with the teacher %.4f, of the uniform ratio %.4f", best.agreement, start.agreement)
    return Searched(uniform, best.widths, best.cost, start.agreement, best.agreement, search.tried)


def measured_ratios(chain: WeightChain, measure: Measure, count: int = 5) -> MeasuredTable:
    """A table of evenly spaced uniform widths of a chain, measured here, which a search can ask as often as it likes.

    Args:
        chain: not changed.
        measure: of latencies, a function of network and input size.
        count: of widths.
    """
    least = float(ratios_of(chain)[0])
    ratios = np.unique(np.linspace(least, 1.0, count))
    students = {float(ratio): expand(chain, float(ratio)) for ratio in ratios}
    rows = [(ratio, measure(student, chain.input_size).median_ms) for ratio, student in students.items()]
    return MeasuredTable(tuple(rows), "widths measured here")


# ---- agreement -----------------------------------------------------------------------------------------------------


class Agreement:
    """How far students of a chain find the same pictures similar as the widest of them does.

    Args:
        chain: not changed.
        images: batches of pictures.

    Raises:
        DataError: see `search_widths`.
        ChainError: students that all compute the same.
    """

    def __init__(self, chain: WeightChain, images: Iterable[Any]) -> None:
        self._chain = chain
        self._batches = [images_of(batch, number) for number, batch in enumerate(images, 1)]
        if (count := sum(map(len, self._batches))) < LEAST_PICTURES:
            raise DataError(f"widths are searched on {count} pictures; give at least {LEAST_PICTURES}, better 256")
        self._teacher = similarities(expand_to_plan(chain, full_plan(chain.graph, 1.0)), self._batches)
        if self(chain.widths) > 1 - NOTHING:
            raise ChainError(
                "students of this chain all compute the same before they are fine-tuned, so that there is nothing to "
                "search; refine a chain with oskt.nested and oskt.refine.levels, or choose one ratio for all groups"
            )

    def __call__(self, widths: Mapping[str, int]) -> float:
        """Of the student of some widths, by group name; 1 if it finds the same as the teacher."""
        return row_correlation(similarities(expand_to_plan(self._chain, widths), self._batches), self._teacher)


def similarities(network: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Cosine similarities of the features of all pictures, `[pictures, pictures]`."""
    with torch.inference_mode():
        features = normalize(torch.cat([network(batch).flatten(1) for batch in batches]).double())
    return features @ features.t()


def row_correlation(first: Tensor, second: Tensor) -> float:
    """Mean over rows of the correlation of two matrices `[n, n]`, their diagonals left out.

    Example: rows `0.1 0.5` and `0.2 0.6` rise together and correlate by 1, whatever their scale.
    """
    outside = ~torch.eye(len(first), dtype=torch.bool)
    rows = [matrix[outside].view(len(matrix), -1) for matrix in (first, second)]
    centred = [normalize(each - each.mean(1, keepdim=True)) for each in rows]
    return float((centred[0] * centred[1]).sum(1).mean())


# ---- search --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    widths: Plan
    cost: float
    agreement: float


class _Search:
    """Compares students of one budget; every student once.

    Args:
        chain: of the students.
        agreement: of some widths with the teacher.
        cost: of some widths.
        budget: that no student exceeds.

    Attributes:
        tried: number of students that were compared.
    """

    def __init__(self, chain: WeightChain, agreement: Callable[[Plan], float], cost: Cost, budget: float) -> None:
        self._graph, self._least = chain.graph, chain.widths
        self._agreement, self._cost, self._budget = agreement, cost, budget
        self._units = _units(chain.graph)
        self._known: dict[tuple[int, ...], _State] = {}

    @property
    def tried(self) -> int:
        return len(self._known)

    def state(self, widths: Plan) -> _State:
        key = tuple(widths.values())
        if key not in self._known:
            self._known[key] = _State(widths, self._cost(widths), self._agreement(widths))
        return self._known[key]

    def improved(self, state: _State, rounds: int) -> _State:
        """The best state found; steps get finer when a round finds nothing."""
        steps = list(STEPS)
        for _ in tqdm(range(rounds), "widths", disable=None):
            better = self._round(state, steps[0])
            if better.agreement > state.agreement + NOTHING:
                state = better
            elif len(steps) > 1:
                steps.pop(0)
            else:
                break
        return state

    def _round(self, state: _State, step: float) -> _State:
        """The best of several combinations of steps up and down."""
        ups, downs = (self._steps(state, sign * step) for sign in (1, -1))
        ups.sort(key=lambda to: _rate(state, to), reverse=True)
        downs.sort(key=lambda to: _rate(state, to))
        found = [self._combined(state, ups[:count], downs) for count in (1, 2, 4, 8) if count <= len(ups)]
        return max([state, *found], key=lambda each: each.agreement)

    def _steps(self, state: _State, step: float) -> list[_State]:
        """What becomes of a state when one unit of groups gets wider or narrower."""
        moved = [self._moved(state.widths, unit, step) for unit in self._units]
        return [self.state(widths) for widths in moved if widths != state.widths]

    def _moved(self, widths: Plan, unit: list[str], step: float) -> Plan:
        sizes = self._graph.sizes
        moves = {name: round(step * sizes[name]) or int(np.sign(step)) for name in unit}
        wanted = {name: widths[name] + move for name, move in moves.items()}
        limited = {name: min(max(width, self._least[name]), sizes[name]) for name, width in wanted.items()}
        return balanced(self._graph, {**widths, **limited}, self._least)

    def _combined(self, state: _State, ups: list[_State], downs: list[_State]) -> _State:
        """All steps up, and as many steps down, the cheapest loss first, as the budget requires."""
        changes = [_change(state.widths, up.widths) for up in ups]
        raised = {name for change in changes for name in change}
        widths = self._with(state.widths, changes)
        for down in downs:
            if self._cost(widths) <= self._budget:
                break
            change = _change(state.widths, down.widths)
            if not raised & set(change):
                widths = self._with(widths, [change])
        return self.state(widths) if self._cost(widths) <= self._budget else state

    def _with(self, widths: Plan, changes: Iterable[Plan]) -> Plan:
        changed = dict(widths)
        for change in changes:
            changed.update(change)
        return balanced(self._graph, changed, self._least)


def _change(before: Plan, after: Plan) -> Plan:
    return {name: width for name, width in after.items() if width != before[name]}


def _rate(before: _State, after: _State) -> float:
    """Agreement gained for a unit of cost spent, or lost for one that is saved."""
    gained, spent = after.agreement - before.agreement, after.cost - before.cost
    return gained / spent if spent else float(np.sign(gained)) * float("inf")


def _units(graph: ChannelGraph) -> list[list[str]]:
    """Names of groups that become wider and narrower together: those that lie in different blocks of one axis."""
    count, edges = len(graph.groups), [(index, index) for index in range(len(graph.groups))]
    for blocks in graph.blocked_groups:
        groups = np.unique(np.concatenate([members for members, _ in blocks]))
        edges += [(int(groups[0]), int(other)) for other in groups]
    first, second = np.array(edges).T
    _, labels = connected_components(coo_matrix((np.ones(len(edges)), (first, second)), shape=(count, count)), False)
    names = np.array([group.name for group in graph.groups])
    free = np.array([not group.fixed for group in graph.groups])
    units = [names[(labels == label) & free].tolist() for label in range(labels.max() + 1)]
    return [unit for unit in units if unit]
