"""Everything that can be known before anything is trained: networks, widths, specifications of students."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..baselines import baseline
from ..errors import ConfigError
from ..graph import ChannelGraph
from ..host.models import load_weights
from ..models import build_model
from ..models import load_weights as load_any_weights
from ..oskt.chain import WeightChain
from ..oskt.distance import check_foldable
from ..oskt.ladder import nearest_rung
from ..oskt.network import trace
from ..oskt.students import width_plan
from ..oskt.widths import full_plan
from .baselines import check_baselines, method_of
from .ladder import plan_rungs
from .wishes import Wish, chosen_widths, latency_measure, parse_wish


@dataclass(frozen=True)
class StudentPlan:
    """One network that the run will make.

    Attributes:
        name: as the configuration asks for it; also the name of its folder.
        widths: width per channel group.
        rung: index of the chain that it is expanded from; 0 unless there is a ladder.
        method: the baseline that makes it instead of a chain; empty for a student of the chain.
    """

    name: str
    widths: dict[str, int]
    rung: int = 0
    method: str = ""


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        teacher: the teacher's network, with its checkpoint's weights where one is given.
        graph: its channel graph.
        chain_widths: the chain's widths.
        students: the students, in order.
        controls: names of the baselines that are run at the chain's widths.
        chain: a chain that is there already; its teacher is then a structure without weights.
        rungs: widths of each further chain of a ladder, from wide to narrow.
    """

    teacher: nn.Module
    graph: ChannelGraph
    chain_widths: dict[str, int]
    students: tuple[StudentPlan, ...]
    controls: tuple[str, ...]
    chain: WeightChain | None = None
    rungs: tuple[dict[str, int], ...] = ()


def make_plan(config: Any, num_classes: int) -> RunPlan:
    """Builds the teacher's network and every width plan.

    Raises:
        ConfigError: unknown backbone, student or control.
        CheckpointError: a teacher checkpoint of another network.
        GraphError: a network that cannot be traced.
        WidthError: a student outside of [chain, teacher], or of another family.
        ChainError: a given chain that cannot be read.
    """
    if config.oskt.chain:
        return _plan_of_chain(config)
    for name in config.oskt.controls:
        baseline(name)
    methods = {name: method_of(name) for name in config.oskt.students}
    wishes = {name: parse_wish(name.rpartition(":")[2]) for name in config.oskt.students}
    teacher = build_model(config, num_classes)
    if config.model.load_weights:
        load_any_weights(teacher, config.model.load_weights)
    if config.oskt.teacher:
        load_weights(teacher, config.oskt.teacher)
    graph = trace(teacher, (3, config.data.height, config.data.width))
    rungs = _rungs(teacher, graph, config.oskt.ladder) or (full_plan(graph, config.oskt.width),)
    stand_in = stand_in_chain(teacher, graph, rungs[-1])
    check_foldable(stand_in, config.oskt.distance)
    check_baselines({*config.oskt.controls, *methods.values()} - {""}, teacher, graph)
    plans = _plans(config, stand_in, {name: wish for name, wish in wishes.items() if not methods[name]})
    free = {name: wish for name, wish in wishes.items() if methods[name]}
    if free:  # baselines are bound to no chain's width
        plans.update(_plans(config, _narrowest_chain(teacher, graph), free))
    rung_of = {name: 0 if methods[name] else nearest_rung(rungs, graph.sizes, plan) for name, plan in plans.items()}
    students = tuple(StudentPlan(name, plans[name], rung_of[name], methods[name]) for name in wishes)
    return RunPlan(teacher, graph, rungs[0], students, tuple(config.oskt.controls), rungs=rungs[1:])


def check_start(config: Any) -> None:
    """Raises ``ConfigError`` where a run would start from two things, or from none."""
    oskt = config.oskt
    for key, value in (("teacher", oskt.teacher), ("controls", list(oskt.controls)), ("ladder", list(oskt.ladder))):
        if oskt.chain and value:
            raise ConfigError(
                f"oskt.chain is given, so there is no teacher and nothing is refined, but oskt.{key} is {value!r}; "
                "empty one of them"
            )
    is_oskt = (config.engine or config.loss.name) == "oskt"
    given = oskt.chain or oskt.teacher if is_oskt else config.test.evaluate
    node = config.train
    if not given and node.start_epoch >= node.max_epoch:
        raise ConfigError(
            f"train.max_epoch is {node.max_epoch} and train.start_epoch {node.start_epoch}, so that nothing would be "
            "trained; set max_epoch above it, give a trained teacher as oskt.teacher, or set test.evaluate to evaluate "
            "a network as it is"
        )


def _plan_of_chain(config: Any) -> RunPlan:
    """Students of a chain that an earlier run refined, perhaps on other data."""
    oskt = config.oskt
    chain = WeightChain.load(oskt.chain)
    name = chain.spec.name if chain.spec else ""
    if name.removeprefix("oskt_") != config.model.name.removeprefix("oskt_"):
        raise ConfigError(
            f"'{oskt.chain}' is a chain of '{name}', but model.name is '{config.model.name}'; set it to '{name}'"
        )
    for name in oskt.students:
        if method_of(name):
            raise ConfigError(f"oskt.chain is given, so there is no teacher that '{name}' could be made of; drop it")
    check_foldable(chain, oskt.distance)
    plans = _plans(config, chain, {name: parse_wish(name) for name in oskt.students})
    students = tuple(StudentPlan(name, plan) for name, plan in plans.items())
    return RunPlan(chain.model, chain.graph, chain.widths, students, (), chain)


def _plans(config: Any, chain: WeightChain, wanted: dict[str, Wish]) -> dict[str, dict[str, int]]:
    """Widths of each student; one with a latency budget keeps those that were chosen when it was first measured."""
    known, measure = chosen_widths(config), latency_measure(config)
    return {name: known.get(name) or width_plan(chain, measure=measure, **how) for name, how in wanted.items()}


def _rungs(teacher: nn.Module, graph: ChannelGraph, ladder: list) -> tuple[dict[str, int], ...]:
    """Widths of the chains of a ladder, each a ratio, or asked for as a student is."""
    if not ladder:
        return ()
    names = [entry if isinstance(entry, str) else f"width={entry}" for entry in ladder]
    return plan_rungs(_narrowest_chain(teacher, graph), [(name, parse_wish(name, "oskt.ladder")) for name in names])


def _narrowest_chain(teacher: nn.Module, graph: ChannelGraph) -> WeightChain:
    """A stand-in that allows every width."""
    return stand_in_chain(teacher, graph, {group.name: group.size if group.fixed else 1 for group in graph.groups})


def stand_in_chain(teacher: nn.Module, graph: ChannelGraph, widths: dict[str, int]) -> WeightChain:
    """A chain with the right widths and arbitrary clusters: enough to check plans against, at no cost."""
    labels = {group.name: np.arange(group.size) % widths[group.name] for group in graph.groups}
    return WeightChain.from_labels(teacher, graph, labels)
