"""Everything that can be known before anything is trained: networks, widths, specifications of students."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...baselines import baseline
from ...chain.chain import WeightChain
from ...chain.distance import check_foldable
from ...chain.ladder import nearest_rung
from ...chain.network import trace
from ...chain.students import load_student, width_plan
from ...chain.widths import full_plan
from ...errors import CheckpointError, ConfigError, WidthError
from ...files import load_checkpoint
from ...files.weights import load_weights, state_dict_of
from ...graph import ChannelGraph
from ...host.compat import seed_everything
from ...host.models import build as build_registered
from ...models import bare_name, build_model
from ...models import load_weights as load_any_weights
from .baselines import check_baselines
from .ladder import plan_rungs
from .wishes import FILE_METHOD, Wish, chosen_widths, latency_measure, method_of, parse_wish

logger = logging.getLogger(__name__)


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
        ZooError: ImageNet weights that cannot be fetched.
        GraphError: a network that cannot be traced.
        WidthError: a student outside of [chain, teacher], or of another family.
        ChainError: a given chain that cannot be read.
    """
    if config.oskt.chain:
        return _plan_of_chain(config, num_classes)
    for name in config.oskt.controls:
        baseline(name)
    methods, wishes = _wishes(config)
    teacher, known = _teacher(config, num_classes)
    _check_distillation({**{name: name for name in config.oskt.controls}, **methods}, known, num_classes)
    graph = trace(teacher, (3, config.data.height, config.data.width))
    rungs = _rungs(teacher, graph, config.oskt.ladder) or (full_plan(graph, config.oskt.width),)
    stand_in = stand_in_chain(teacher, graph, rungs[-1])
    check_foldable(stand_in, config.oskt.distance)
    check_baselines({*config.oskt.controls, *methods.values()} - {"", FILE_METHOD}, teacher, graph)
    students = _students(config, stand_in, teacher, methods, wishes, rungs)
    return RunPlan(teacher, graph, rungs[0], students, tuple(config.oskt.controls), rungs=rungs[1:])


def check_start(config: Any) -> None:
    """Raises ``ConfigError`` where a run would start from two things, or from none."""
    oskt = config.oskt
    for key in ("controls", "ladder"):
        if oskt.chain and oskt[key]:
            raise ConfigError(
                f"oskt.chain is given, so nothing is refined, but oskt.{key} is {list(oskt[key])!r}; empty one of them "
                "(with oskt.teacher, baselines beside a given chain are named in oskt.students: slice:width=0.5)"
            )
    is_oskt = (config.engine or config.loss.name) == "oskt"
    given = oskt.chain or oskt.teacher if is_oskt else config.test.evaluate
    node = config.train
    if not (given or config.test.evaluate) and node.start_epoch >= node.max_epoch:
        raise ConfigError(
            f"train.max_epoch is {node.max_epoch} and train.start_epoch {node.start_epoch}, so that nothing would be "
            "trained; set max_epoch above it, give a trained teacher as oskt.teacher, or set test.evaluate to evaluate "
            "a network as it is"
        )


def _teacher(config: Any, num_classes: int) -> tuple[nn.Module, int]:
    """The teacher's network, with the weights of its checkpoint, or those that its training starts from.

    Returns:
        The network, and the identities that its classifier was trained on: of a checkpoint of other identities the
        classifier is fresh.
    """
    path = config.oskt.teacher
    seed_everything(config.train.seed)
    if not path:
        teacher = build_model(config, num_classes)
        if config.model.load_weights:
            load_any_weights(teacher, config.model.load_weights)
        return teacher, num_classes
    bare = config.clone()
    bare.defrost()
    bare.model.pretrained = False  # nothing is fetched that the checkpoint replaces
    teacher = build_model(bare, num_classes)
    try:
        return teacher, _load_teacher(teacher, path, (3, config.data.height, config.data.width), num_classes)
    except CheckpointError as error:
        raise CheckpointError(f"oskt.teacher cannot be the teacher '{config.model.name}': {error}") from error


def _load_teacher(teacher: nn.Module, path: str, size: tuple[int, int, int], num_classes: int) -> int:
    """Loads a checkpoint; where it differs in its classifier's identities alone, all but the classifier.

    Returns:
        Identities of the checkpoint.
    """
    state, own = state_dict_of(load_checkpoint(path), path), teacher.state_dict()
    misshaped = [name for name in own if name in state and state[name].shape != own[name].shape]
    others = {name: len(state[name]) for name in misshaped if state[name].shape[1:] == own[name].shape[1:]}
    owners = {name.rpartition(".")[0] for name in trace(teacher, size).heads} if others else set()
    if not others or own.keys() != state.keys() or not all(name.rpartition(".")[0] in owners for name in others):
        load_weights(teacher, path)
        return num_classes
    load_weights(teacher, path, ignore=list(others))
    known = next(iter(others.values()))
    logger.info(
        "oskt.teacher: '%s' knows %d identities, the data have %d; all is taken but the fresh classifier (%s)",
        path,
        known,
        num_classes,
        ", ".join(others),
    )
    return known


def _wishes(config: Any) -> tuple[dict[str, str], dict[str, Wish]]:
    """Method and wish of every student, by name; a file of an earlier run has the method ``file`` and no wish.

    Raises:
        ConfigError: see ``parse_wish``; or a file that is not there.
    """
    methods = {name: method_of(name) for name in config.oskt.students}
    files = [name for name, method in methods.items() if method == FILE_METHOD]
    for name in files:
        path = Path(name.partition("=")[2])
        if not path.is_file():
            raise ConfigError(f"oskt.students has '{name}', and there is no such file (looked in '{path.absolute()}')")
        check_file_student(name)
    wishes = {name: parse_wish(name.rpartition(":")[2]) for name in config.oskt.students if name not in files}
    return methods, wishes


def check_file_student(name: str) -> None:
    """Raises ``CheckpointError`` unless the file of ``file=PATH`` holds a student."""
    try:
        load_student(name.partition("=")[2])
    except CheckpointError as error:
        raise CheckpointError(f"oskt.students has '{name}': {error}") from error


def _students(
    config: Any,
    chain: WeightChain,
    teacher: nn.Module,
    methods: dict[str, str],
    wishes: dict[str, Wish],
    rungs: tuple[dict[str, int], ...],
) -> tuple[StudentPlan, ...]:
    """Plans of all students, in order; those of the chain are checked against its widths, baselines have any."""
    graph = chain.graph
    plans = _plans(config, chain, {name: wish for name, wish in wishes.items() if not methods[name]})
    free = {name: wish for name, wish in wishes.items() if methods[name]}
    if free:
        plans.update(_plans(config, narrowest_chain(teacher, graph), free))
    rung_of = {name: 0 if methods[name] else nearest_rung(rungs, graph.sizes, plan) for name, plan in plans.items()}
    return tuple(
        StudentPlan(name, plans.get(name, {}), rung_of.get(name, 0), method) for name, method in methods.items()
    )


def _plan_of_chain(config: Any, num_classes: int) -> RunPlan:
    """Students of a chain that an earlier run refined, perhaps on other data; baselines where its teacher is given."""
    oskt = config.oskt
    chain = WeightChain.load(oskt.chain)
    name = chain.spec.name if chain.spec else ""
    if bare_name(name) != bare_name(config.model.name):
        raise ConfigError(
            f"'{oskt.chain}' is a chain of '{name}', but model.name is '{config.model.name}'; set it to '{name}'"
        )
    methods, wishes = _wishes(config)
    teacher = chain.model
    baselines = {method for method in methods.values() if method not in ("", FILE_METHOD)}
    if baselines and not oskt.teacher:
        named = next(name for name, method in methods.items() if method in baselines)
        raise ConfigError(
            f"oskt.chain is given, so there is no teacher that '{named}' could be made of; give it as oskt.teacher, or "
            "drop the student"
        )
    if oskt.teacher:
        teacher = build_registered(chain.spec.name, chain.spec.num_classes, chain.spec.loss)
        load_weights(teacher, oskt.teacher)
        check_baselines(baselines, teacher, chain.graph)
    _check_distillation(methods, chain.spec.num_classes, num_classes)
    check_foldable(chain, oskt.distance)
    students = _students(config, chain, teacher, methods, wishes, (chain.widths,))
    return RunPlan(teacher, chain.graph, chain.widths, students, (), chain)


def _check_distillation(methods: Mapping[str, str], known: int, num_classes: int) -> None:
    """Raises ``ConfigError`` for a network that would learn from class scores of other identities.

    Args:
        methods: baseline of each network by its name; empty or ``file`` for others.
        known: identities that the teacher's classifier was trained on.
        num_classes: identities of the data.
    """
    named = {name: method for name, method in methods.items() if method not in ("", FILE_METHOD)}
    distilled = [name for name, method in named.items() if baseline(method).distils]
    if distilled and known != num_classes:
        raise ConfigError(
            f"'{distilled[0]}' is trained by class scores of its teacher, which knows {known} identities, but the data "
            f"have {num_classes}; drop it, or distil on the teacher's own identities"
        )


def _plans(config: Any, chain: WeightChain, wanted: dict[str, Wish]) -> dict[str, dict[str, int]]:
    """Widths of each student; one with a latency budget keeps those that were chosen when it was first measured."""
    known, measure = chosen_widths(config), latency_measure(config)
    plans = {}
    for name, how in wanted.items():
        try:
            plans[name] = known.get(name) or width_plan(chain, measure=measure, **how)
        except WidthError as error:
            raise WidthError(f"oskt.students has '{name}': {error}") from error
    return plans


def _rungs(teacher: nn.Module, graph: ChannelGraph, ladder: list) -> tuple[dict[str, int], ...]:
    """Widths of the chains of a ladder, each a ratio, or asked for as a student is."""
    if not ladder:
        return ()
    names = [entry if isinstance(entry, str) else f"width={entry}" for entry in ladder]
    return plan_rungs(narrowest_chain(teacher, graph), [(name, parse_wish(name, "oskt.ladder")) for name in names])


def narrowest_chain(teacher: nn.Module, graph: ChannelGraph) -> WeightChain:
    """A stand-in of a chain that allows every width."""
    return stand_in_chain(teacher, graph, {group.name: group.size if group.fixed else 1 for group in graph.groups})


def stand_in_chain(teacher: nn.Module, graph: ChannelGraph, widths: dict[str, int]) -> WeightChain:
    """A chain with the right widths and arbitrary clusters: enough to check plans against, at no cost."""
    labels = {group.name: np.arange(group.size) % widths[group.name] for group in graph.groups}
    return WeightChain.from_labels(teacher, graph, labels)
