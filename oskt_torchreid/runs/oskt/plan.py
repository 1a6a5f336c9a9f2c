"""The plan of a run before anything is trained: networks, widths, specifications of students."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from ...baselines import baseline
from ...chain.chain import WeightChain
from ...chain.distance import check_foldable
from ...chain.expansion import width_plan
from ...chain.ladder import nearest_rung
from ...chain.nesting import tree_over
from ...chain.network import trace
from ...chain.student_reading import load_student
from ...config import Config
from ...errors import CheckpointError, ConfigError, WidthError
from ...files import load_checkpoint
from ...files.weights import load_weights, state_dict_of
from ...graph import ChannelGraph
from ...graph.plans import check_preset, full_plan
from ...host.compat import seed_everything
from ...host.models import build as build_registered
from ...models import bare_name, build_model
from ...models import load_weights as load_any_weights
from .baselines import check_baselines
from .distilling import check_distillation, check_liftable, distilled_names
from .ladder import plan_rungs
from .specification import StudentSpec, chosen_widths, latency_measure, students_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentPlan:
    """One network that the run will make.

    Attributes:
        spec: the configuration's entry.
        widths: width per channel group.
        rung: index of the chain that it is expanded from; 0 unless there is a ladder.
    """

    spec: StudentSpec
    widths: dict[str, int]
    rung: int = 0

    @property
    def name(self) -> str:
        """Name of the network: the text of its entry."""
        return self.spec.text


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        teacher: the teacher's network, with its checkpoint's weights if one is given.
        graph: its channel graph.
        chain_widths: the chain's widths.
        students: the students, in order.
        controls: names of the baselines that are run at the chain's widths.
        chain: an existing chain; its teacher is then a structure without weights.
        rungs: widths of each further chain of a ladder, from wide to narrow.
    """

    teacher: nn.Module
    graph: ChannelGraph
    chain_widths: dict[str, int]
    students: tuple[StudentPlan, ...]
    controls: tuple[str, ...]
    chain: WeightChain | None = None
    rungs: tuple[dict[str, int], ...] = ()


def make_plan(config: Config, num_classes: int) -> RunPlan:
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
    asked = _checked_students(config)
    teacher, known = _teacher(config, num_classes)
    distilled = distilled_names(config, config.oskt.controls, asked)
    refine = config.oskt.refine
    if refine.max_epoch and refine.distil_weight and refine.distil_from == "first":
        distilled.append("oskt.refine.distil_weight")
    check_distillation(distilled, known, num_classes)
    graph = _traced(config, teacher)
    check_liftable(config, asked, graph)
    rungs = _rungs(teacher, graph, config.oskt.ladder) or (full_plan(graph, config.oskt.width),)
    stand_in = stand_in_chain(teacher, graph, rungs[-1])
    check_foldable(stand_in, config.oskt.distance)
    check_baselines({*config.oskt.controls, *_baselines(asked)}, teacher, graph)
    students = _plans_of(config, stand_in, teacher, asked, rungs)
    return RunPlan(teacher, graph, rungs[0], students, tuple(config.oskt.controls), rungs=rungs[1:])


def _traced(config: Config, teacher: nn.Module) -> ChannelGraph:
    size = 3, config.data.height, config.data.width
    return trace(teacher, size, keep=config.oskt.keep, unknown=config.oskt.unknown)


def check_start(config: Config) -> None:
    """Raises `ConfigError` if a run would start from two things, or from none; `WidthError` for an unknown width."""
    oskt = config.oskt
    for key in ("controls", "ladder"):
        if oskt.chain and oskt[key]:
            raise ConfigError(
                f"oskt.chain is given, so nothing is refined, but oskt.{key} is {list(oskt[key])!r}; empty one of them "
                "(with oskt.teacher, baselines next to a given chain are named in oskt.students: slice:width=0.5)"
            )
    is_oskt = (config.engine or config.loss.name) == "oskt"
    if is_oskt and not oskt.chain and isinstance(oskt.width, str):
        check_preset(oskt.width)
    given = oskt.chain or oskt.teacher if is_oskt else config.test.evaluate
    node = config.train
    if not (given or config.test.evaluate) and node.start_epoch >= node.max_epoch:
        raise ConfigError(
            f"train.max_epoch is {node.max_epoch} and train.start_epoch {node.start_epoch}, so that nothing would be "
            "trained; set max_epoch above it, give a trained teacher as oskt.teacher, or set test.evaluate to evaluate "
            "a network as it is"
        )


def _teacher(config: Config, num_classes: int) -> tuple[nn.Module, int]:
    """The teacher's network, with the weights of its checkpoint, or those that its training starts from.

    Returns:
        The network, and the identities that its classifier was trained on: for a checkpoint of other identities the
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
    bare.model.pretrained = False  # weights that the checkpoint replaces are not fetched
    teacher = build_model(bare, num_classes)
    try:
        return teacher, _load_teacher(config, teacher, num_classes)
    except CheckpointError as error:
        raise CheckpointError(f"oskt.teacher cannot be the teacher '{config.model.name}': {error}") from error


def _load_teacher(config: Config, teacher: nn.Module, num_classes: int) -> int:
    """Loads a checkpoint; if only its classifier's identities differ, everything but the classifier.

    Returns:
        Identities of the checkpoint.
    """
    path = config.oskt.teacher
    state, own = state_dict_of(load_checkpoint(path), path), teacher.state_dict()
    misshaped = [name for name in own if name in state and state[name].shape != own[name].shape]
    others = {name: len(state[name]) for name in misshaped if state[name].shape[1:] == own[name].shape[1:]}
    owners = {name.rpartition(".")[0] for name in _traced(config, teacher).heads} if others else set()
    if not others or own.keys() != state.keys() or not all(name.rpartition(".")[0] in owners for name in others):
        load_weights(teacher, path)
        return num_classes
    load_weights(teacher, path, ignore=list(others))
    known = next(iter(others.values()))
    logger.info(
        "oskt.teacher: '%s' has %d identities, the data have %d; everything is taken except the classifier (%s)",
        path,
        known,
        num_classes,
        ", ".join(others),
    )
    return known


def _checked_students(config: Config) -> list[StudentSpec]:
    """The requested students; files of earlier runs are read.

    Raises:
        ConfigError: see `StudentSpec.arguments`; or a missing file.
        CheckpointError: a file without a student.
    """
    students = students_of(config)
    for spec in students:
        if spec.is_file:
            _check_file(spec)
        else:
            spec.arguments()
    return students


def _check_file(spec: StudentSpec) -> None:
    path = Path(spec.value)
    if not path.is_file():
        raise ConfigError(f"oskt.students has '{spec.text}', and there is no such file (looked in '{path.absolute()}')")
    try:
        load_student(path)
    except CheckpointError as error:
        raise CheckpointError(f"oskt.students has '{spec.text}': {error}") from error


def _plans_of(
    config: Config,
    chain: WeightChain,
    teacher: nn.Module,
    students: Sequence[StudentSpec],
    rungs: tuple[dict[str, int], ...],
) -> tuple[StudentPlan, ...]:
    """Plans of all students, in order; those of the chain are checked against its widths, baselines have any."""
    graph = chain.graph
    plans = _widths(config, chain, [spec for spec in students if spec.of_chain])
    free = [spec for spec in students if spec.of_baseline]
    if free:
        plans |= _widths(config, narrowest_chain(teacher, graph), free)
    return tuple(
        StudentPlan(
            spec,
            plans.get(spec.text, {}),
            nearest_rung(rungs, graph.sizes, plans[spec.text]) if spec.of_chain else 0,
        )
        for spec in students
    )


def _plan_of_chain(config: Config, num_classes: int) -> RunPlan:
    """Students of a chain that an earlier run refined, possibly on other data; baselines if its teacher is given."""
    oskt = config.oskt
    chain = WeightChain.load(oskt.chain)
    spec = chain.spec
    name = spec.name if spec else ""
    if spec is None or bare_name(name) != bare_name(config.model.name):
        raise ConfigError(
            f"'{oskt.chain}' is a chain of '{name}', but model.name is '{config.model.name}'; set it to '{name}'"
        )
    asked = _checked_students(config)
    teacher, baselines = chain.model, _baselines(asked)
    if baselines and not oskt.teacher:
        named = next(spec for spec in asked if spec.of_baseline)
        raise ConfigError(
            f"oskt.chain is given, so there is no teacher that '{named.text}' could be made of; give it as "
            "oskt.teacher, or drop the student"
        )
    if oskt.teacher:
        teacher = build_registered(spec.name, spec.num_classes, spec.loss)
        load_weights(teacher, oskt.teacher)
        check_baselines(baselines, teacher, chain.graph)
    check_distillation(distilled_names(config, (), asked), spec.num_classes, num_classes)
    check_liftable(config, asked, chain.graph)
    check_foldable(chain, oskt.distance)
    students = _plans_of(config, chain, teacher, asked, (chain.widths,))
    return RunPlan(teacher, chain.graph, chain.widths, students, (), chain)


def _baselines(students: Sequence[StudentSpec]) -> set[str]:
    return {spec.method for spec in students if spec.of_baseline}


def _widths(config: Config, chain: WeightChain, wanted: Sequence[StudentSpec]) -> dict[str, dict[str, int]]:
    """Widths of each student; one with a latency budget keeps the widths chosen at its first measurement."""
    known, measure = chosen_widths(config), latency_measure(config)
    plans = {}
    for spec in wanted:
        try:
            plans[spec.text] = known.get(spec.text) or width_plan(chain, measure=measure, **spec.arguments())
        except WidthError as error:
            raise WidthError(f"oskt.students has '{spec.text}': {error}") from error
    return plans


def _rungs(teacher: nn.Module, graph: ChannelGraph, ladder: list) -> tuple[dict[str, int], ...]:
    """Widths of the chains of a ladder, each a ratio, or requested like a student."""
    if not ladder:
        return ()
    specs = [StudentSpec.parse(entry if isinstance(entry, str) else f"width={entry}") for entry in ladder]
    for spec in specs:
        if not spec.of_chain:
            raise ConfigError(
                f"oskt.ladder has '{spec.text}'; its chains are made one of another: leave out '{spec.method}'"
            )
    return plan_rungs(narrowest_chain(teacher, graph), [(spec.text, spec.arguments("oskt.ladder")) for spec in specs])


def narrowest_chain(teacher: nn.Module, graph: ChannelGraph) -> WeightChain:
    """A stand-in for a chain that allows every width."""
    return stand_in_chain(teacher, graph, {group.name: group.size if group.fixed else 1 for group in graph.groups})


def stand_in_chain(
    teacher: nn.Module, graph: ChannelGraph, widths: dict[str, int], nested: bool = False
) -> WeightChain:
    """A chain with the right widths and arbitrary clusters: enough to check plans against, at no cost."""
    labels = {group.name: np.arange(group.size) % widths[group.name] for group in graph.groups}
    trees = {name: tree_over(part) for name, part in labels.items()} if nested else None
    return WeightChain.from_labels(teacher, graph, labels, trees=trees)
