"""Expansion: chain and widths to a student, without training (paper: weight chain expansion)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..deploy.latency import measure_latency
from ..deploy.lifting import FEATURES, lifted
from ..errors import ChainError, ConfigError, WidthError
from ..graph import adapt_code, rebuild
from ..graph.plans import Width, full_plan
from .budgets import Choice, Cost, in_half_precision, parse_amount, widest_within
from .chain import WeightChain
from .counting import Costs
from .distance import check_distance, scale_features
from .layout import Layout
from .likeness import Like, plan_like
from .measured import MeasuredTable
from .narrowing import Narrowing, check_vectors_over
from .student_file import file_size
from .student_record import attach_record

logger = logging.getLogger(__name__)

STATISTICS = ("own", "merged", "initial")
ATTEMPTS = 3  # measurements of a network that is within a latency budget except for the spread


class Measured(Protocol):
    """What a measuring function returns."""

    @property
    def median_ms(self) -> float:
        """Milliseconds of a batch."""

    @property
    def spread_ms(self) -> float:
        """Interquartile range."""


Measure = Callable[[nn.Module, tuple[int, ...]], Measured]
"""A network and `(channels, height, width)` of its images to its latency on this machine."""


def expand(
    chain: WeightChain,
    width: Width | None = None,
    *,
    params: float | str | None = None,
    flops: float | str | None = None,
    size: float | str | None = None,
    latency: float | str | None = None,
    like: Like | None = None,
    measure: Measure | MeasuredTable | None = None,
    attention: str | None = None,
    distance: str = "none",
    statistics: str = "own",
    vectors_over: str | None = None,
    feature: str = "own",
) -> nn.Module:
    """Makes a student from a chain, without training (paper: weight chain expansion).

    Args:
        chain: not changed.
        width: ratio of the teacher's channels, a preset such as `res50-s1`, or a width per group name or pattern
            (others keep the teacher's), see `graph.full_plan`.
        params: the widest uniform student of at most so many parameters, without its classifier: `1e6` or `"1M"`.
        flops: the same for the multiply-adds of one image of the chain's input size, without the classifier.
        size: the same for the bytes of its file, everything included: `"4MB"`, `"4MB fp16"`.
        latency: the same for the milliseconds of a batch on this machine, measured: `"5ms"`.
        like: a registered model name, a network, or a state dict, whose shapes the student gets.
        measure: how latency is measured, a function of network and input size; by default
            `deploy.measure_latency` (`functools.partial` of it sets batch, threads, device or backend). Or a
            `MeasuredTable` of what was measured elsewhere.
        attention: `folded` (merged queries and keys are made exact) or `paper` (they are not corrected); by default as
            the chain was made.
        distance: whose retrieval distances the features have before fine-tuning. `teacher`: those of the teacher,
            `chain`: those of the S-student, both exact where the rows of each cluster are equal; `none`: merged
            dimensions count once. Class scores are the same in all three.
        statistics: running statistics: `own` of the S-student where the chain was refined, `merged` from the
            teacher's, or `initial` ones, see `expand_to_plan`.
        vectors_over: with own statistics, whose mean of norm parameters and biases a slot has: `clusters` or `slots`;
            by default as the chain says, see `WeightChain`.
        feature: `own`, an entry per slot; or `teacher`, an entry for each of the teacher's, so that students of all
            widths share one gallery: the student is returned inside of a `deploy.Lifted`.

    Returns:
        A module of the teacher's class in evaluation mode, sharing no memory with the chain. With `like`, its state
        dict loads strictly into that network.

    Raises:
        ChainError: anything other than a chain.
        WidthError: a width outside of [chain, teacher], a budget that no student meets, another depth or family, or not
            exactly one kind of request.
        ConfigError: an unknown model name, attention, distance, statistics, vectors_over or feature.
        GraphError: a network whose features cannot be scaled, see `distance.py`.
        FeatureError: a network whose features cannot be lifted, or that shall be scaled as well.
    """
    choice = choose_widths(
        chain, width, params=params, flops=flops, size=size, latency=latency, like=like, measure=measure
    )
    return expand_to_plan(chain, choice.widths, attention, distance, statistics, vectors_over, feature)


def width_plan(chain: WeightChain, width: Width | None = None, **how: Any) -> dict[str, int]:
    """The widths that `expand` would give a student; same arguments and errors."""
    return choose_widths(chain, width, **how).widths


def choose_widths(
    chain: WeightChain,
    width: Width | None = None,
    *,
    params: float | str | None = None,
    flops: float | str | None = None,
    size: float | str | None = None,
    latency: float | str | None = None,
    like: Like | None = None,
    measure: Measure | MeasuredTable | None = None,
) -> Choice:
    """The widths that `expand` would give a student, and what they cost; same arguments and errors."""
    asked = {"width": width, "params": params, "flops": flops, "size": size, "latency": latency, "like": like}
    given = [way for way, value in asked.items() if value is not None]
    if len(given) != 1:
        raise WidthError(
            f"a student is requested in exactly one way, not {len(given)} ({', '.join(given) or 'none'}): width=0.5, "
            "params='1M', flops='200M', size='4MB', latency='5ms' or like='osnet_x0_5'"
        )
    _check_chain(chain)
    check_measure(measure)
    if like is not None:
        return Choice(plan_like(chain, like), "like")
    if width is not None:
        plan = full_plan(chain.graph, width)
        chain.check_range(plan)
        return Choice(plan, "width", None if isinstance(width, (str, Mapping)) else float(width))
    budgets = {"params": params, "flops": flops, "size": size, "latency": latency}
    ((way, budget),) = ((way, budget) for way, budget in budgets.items() if budget is not None)
    cost = cost_of(chain, way, budget, measure)
    return replace(widest_within(chain, way, budget, cost), source=getattr(cost, "source", ""))


def expand_to_plan(
    chain: WeightChain,
    widths: Mapping[str, int],
    attention: str | None = None,
    distance: str = "none",
    statistics: str = "own",
    vectors_over: str | None = None,
    feature: str = "own",
) -> nn.Module:
    """A student of exactly these widths.

    Args:
        chain: not changed; the student shares no memory with it.
        widths: width per group name, each between the chain's and the teacher's.
        attention: `folded` or `paper`, see `narrowing.py`; by default as the chain's S-student has it.
        distance: `none`, `chain` or `teacher`, see `distance.py`.
        statistics: running statistics. `own`: the S-student's where the chain was refined, else merged; `merged`: the
            teacher's, averaged over members; `initial`: 0 and 1, as in the authors' code, not usable before fine-tuning
            or `recalibrate`.
        vectors_over: `clusters` or `slots`, see `expand`; other statistics than `own` go with `slots`.
        feature: `own` or `teacher`, see `expand`.

    Returns:
        A module of the teacher's class, on the CPU, in evaluation mode.

    Raises:
        ConfigError: unknown statistics, distance, attention, vectors_over or feature.
        FeatureError: features that cannot be lifted.
        ChainError: anything other than a chain.
        WidthError: a width out of range.
    """
    if statistics not in STATISTICS:
        raise ConfigError(f"statistics is '{statistics}'; allowed: {', '.join(STATISTICS)}")
    if feature not in FEATURES:
        raise ConfigError(f"feature is {feature!r:.100}; allowed: {', '.join(FEATURES)}")
    if distance != "none":
        check_distance(distance)
    _check_chain(chain)
    chain.check_range(widths)
    over = check_vectors_over(chain.vectors_over if vectors_over is None else vectors_over)
    of_chain = not chain.trees or dict(widths) == chain.widths  # of a nested chain each width is another function
    chain = chain if statistics == "own" and of_chain else replace(chain, statistics={})
    layout, attention = chain.layout_of(widths), chain.attention if attention is None else attention
    over = over if statistics == "own" else "slots"
    made = _narrowed(chain, layout, attention, over) | chain.fixed
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in made.items()}
    if distance != "none":
        scale_features(tensors, chain, layout, distance)
    student = rebuild(chain.model, tensors, training=False)
    adapt_code(student, chain.graph, layout.members)
    for module in student.modules() if statistics == "initial" else ():
        if callable(reset := getattr(module, "reset_running_stats", None)):
            reset()
    attach_record(student, chain.graph, chain.spec, distance, chain.fingerprint, layout.lifting)
    return lifted(student) if feature == "teacher" else student


def _check_chain(chain: object) -> None:
    if not isinstance(chain, WeightChain):
        raise ChainError(f"a student is made of a WeightChain, not of {chain!r:.100}; read one: WeightChain.load(path)")


def _narrowed(chain: WeightChain, layout: Layout, attention: str, vectors_over: str) -> dict[str, Tensor]:
    """Tensors of a student that have channels, statistics included."""
    vectors = {name: vector for name, vector in chain.vectors.items() if name not in chain.statistics}
    if not chain.trees:
        narrowing = Narrowing(chain.graph, chain.layout, layout, attention)
        shared, of_slots = (
            ({}, _of_clusters(chain, narrowing, vectors)) if vectors_over == "clusters" else (vectors, {})
        )
        return narrowing(chain.rows, shared, of_slots) | _statistics(chain, narrowing)
    if layout.widths == chain.widths:  # the S-student itself
        narrowing = Narrowing(chain.graph, layout, layout, attention)
        own = {name: tensor for name, tensor in chain.own.items() if name in vectors}
        shared = {name: vector for name, vector in vectors.items() if name not in own}
        return narrowing(chain.cluster_rows, shared, own) | chain.statistics
    narrowing = Narrowing(chain.graph, chain.layout, layout, attention, nested=True)
    return narrowing.between(chain.rows, vectors, chain.own)


def _statistics(chain: WeightChain, narrowing: Narrowing) -> dict[str, Tensor]:
    """A slot's refined running statistics are its cluster's."""
    return {name: narrowing.gathered(name, statistic) for name, statistic in chain.statistics.items()}


def _of_clusters(chain: WeightChain, narrowing: Narrowing, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each slot's cluster, with which every width computes what the S-student does."""
    means = Narrowing(chain.graph, chain.layout, chain.layout, chain.attention).averages(vectors)
    return {name: narrowing.gathered(name, mean) for name, mean in means.items()}


# ---- costs -----------------------------------------------------------------------------------------------------------


def cost_of(chain: WeightChain, way: str, budget: float | str, measure: Measure | MeasuredTable | None = None) -> Cost:
    """What a student of some widths costs, in the unit of a budget; of a latency its `source` says what measured it.

    Args:
        chain: not changed.
        way: `params`, `flops`, `size` or `latency`.
        budget: which says in what precision a size is meant, and near which latency measurements are repeated.
        measure: of a latency, see `expand`.

    Raises:
        WidthError: no such amount.
        ConfigError: a `measure` that is neither a function nor a table.
    """
    amount = parse_amount(way, budget)
    check_measure(measure)
    if way == "latency":
        here = measure or measure_latency
        return here.costs(chain) if isinstance(here, MeasuredTable) else _MeasuredHere(chain, here, amount)
    if way == "size":
        half = in_half_precision(budget)
        return lambda plan: file_size(expand_to_plan(chain, plan), half)
    costs = Costs(chain)
    return lambda plan: int(getattr(costs.count([plan]), way)[0])


def check_measure(measure: object) -> None:
    """Raises `ConfigError` for what cannot say how long a network takes."""
    if measure is not None and not (callable(measure) or isinstance(measure, MeasuredTable)):
        raise ConfigError(f"measure is {measure!r:.100}; give a function of network and input size, or a MeasuredTable")


class _MeasuredHere:
    """Milliseconds of students of some widths, by a function that measures them.

    Args:
        chain: of the students.
        measure: of a network and the size of its images.
        budget: in milliseconds.

    Attributes:
        source: what measured them, in words; empty before the first.
    """

    def __init__(self, chain: WeightChain, measure: Measure, budget: float) -> None:
        self._chain, self._measure, self._budget = chain, measure, budget
        self.source = ""

    def __call__(self, plan: dict[str, int]) -> float:
        """Other work on the machine only ever adds time, so of uncertain measurements the smallest counts."""
        student = expand_to_plan(self._chain, plan)
        medians: list[float] = []
        doubtful = True
        while doubtful and len(medians) < ATTEMPTS:
            latency = self._measure(student, self._chain.input_size)
            if not (hasattr(latency, "median_ms") and hasattr(latency, "spread_ms")):
                raise ConfigError(
                    f"measure gave {latency!r:.100}; it must give median_ms and spread_ms, as measure_latency"
                )
            logger.info("measured: %s", latency)
            self.source = f"by {backend}" if (backend := getattr(latency, "backend", "")) else ""
            medians.append(latency.median_ms)
            doubtful = min(medians) > self._budget >= min(medians) - latency.spread_ms
        return min(medians)
