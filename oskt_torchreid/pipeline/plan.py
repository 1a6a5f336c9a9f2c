"""Everything that can be known before anything is trained: networks, widths, specifications of students."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..baselines import BASELINES
from ..errors import ConfigError
from ..graph import ChannelGraph
from ..host.models import builder_of, load_weights
from ..models import build_model
from ..models import load_weights as load_any_weights
from ..oskt.chain import WeightChain
from ..oskt.network import trace
from ..oskt.students import width_plan
from ..registry import nearest

WAYS = ("width", "like")


@dataclass(frozen=True)
class StudentPlan:
    """One network that the run will make.

    Attributes:
        name: as the configuration asks for it; also the name of its folder.
        widths: width per channel group.
    """

    name: str
    widths: dict[str, int]


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
    """

    teacher: nn.Module
    graph: ChannelGraph
    chain_widths: dict[str, int]
    students: tuple[StudentPlan, ...]
    controls: tuple[str, ...]
    chain: WeightChain | None = None


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
        if name not in BASELINES:
            raise ConfigError(f"unknown control '{name}'{nearest(name, BASELINES)}; known: {', '.join(BASELINES)}")
    wanted = [(name, _parse(name)) for name in config.oskt.students]
    teacher = build_model(config, num_classes)
    if config.model.load_weights:
        load_any_weights(teacher, config.model.load_weights)
    if config.oskt.teacher:
        load_weights(teacher, config.oskt.teacher)
    graph = trace(teacher, (3, config.data.height, config.data.width))
    chain_widths = graph.ratio_plan(config.oskt.width)
    stand_in = stand_in_chain(teacher, graph, chain_widths)
    students = tuple(StudentPlan(name, width_plan(stand_in, **how)) for name, how in wanted)
    return RunPlan(teacher, graph, chain_widths, students, tuple(config.oskt.controls))


def _plan_of_chain(config: Any) -> RunPlan:
    """Students of a chain that an earlier run refined, perhaps on other data."""
    oskt = config.oskt
    for key, value in (("oskt.teacher", oskt.teacher), ("oskt.controls", oskt.controls)):
        if value:
            raise ConfigError(f"oskt.chain is given, so there is no teacher, but {key} is {value!r}; empty one of them")
    chain = WeightChain.load(oskt.chain)
    name = chain.spec.name if chain.spec else ""
    if name.removeprefix("oskt_") != config.model.name.removeprefix("oskt_"):
        raise ConfigError(
            f"'{oskt.chain}' is a chain of '{name}', but model.name is '{config.model.name}'; set it to '{name}'"
        )
    students = tuple(StudentPlan(name, width_plan(chain, **_parse(name))) for name in oskt.students)
    return RunPlan(chain.model, chain.graph, chain.widths, students, (), chain)


def _parse(name: str) -> dict[str, Any]:
    """``width=0.5`` or ``like=osnet_x0_5`` as arguments of ``expand``."""
    way, equals, value = name.partition("=")
    if not equals or way not in WAYS or not value:
        raise ConfigError(f"oskt.students has '{name}'{nearest(way, WAYS)}; write width=0.5 or like=osnet_x0_5")
    if way == "like":
        builder_of(value)
        return {"like": value}
    if not re.fullmatch(r"\d*\.?\d+", value):
        raise ConfigError(f"oskt.students has '{name}'; the width is a ratio of the teacher's, such as width=0.5")
    return {"width": float(value)}


def stand_in_chain(teacher: nn.Module, graph: ChannelGraph, widths: dict[str, int]) -> WeightChain:
    """A chain with the right widths and arbitrary clusters: enough to check plans against, at no cost."""
    labels = {group.name: np.arange(group.size) % widths[group.name] for group in graph.groups}
    return WeightChain.from_labels(teacher, graph, labels)
