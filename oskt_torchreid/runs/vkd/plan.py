"""The plan of a run of VKD before anything is trained: its teacher, and the initial weights of students."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from ...chain.chain import WeightChain
from ...chain.expansion import expand, expand_to_plan, width_plan
from ...chain.network import trace
from ...chain.student_record import StudentRecord
from ...config import Config
from ...errors import ConfigError, WidthError
from ...host.compat import seed_everything
from ...host.models import build
from ...models import build_fetching
from ...models import load_weights as load_any_weights
from ...models.neck import PREFIX as NECK_PREFIX
from ...models.neck import last_strided
from ...vkd.model import SET_PREFIX, as_set_model, class_count, load_set_model
from ...vkd.students import KEEP, SCRATCH, student_from
from ..oskt.plan import narrowest_chain
from ..oskt.specification import StudentSpec

CHAIN_SUFFIX = ".safetensors"
IMAGENET = "imagenet"
SELF, CROSS, CHAIN = "self", "cross", "chain"
_REMEDY = "empty vkd.last_stage_weights to restart the last stage with fresh weights, or give a file of weights"


@dataclass(frozen=True)
class SetPlan:
    """What a run will do, checked beforehand.

    Attributes:
        teacher: the teacher's network, with its checkpoint's weights if one is given.
        student: how the first student is made: `self` (from its teacher), `cross` (another backbone) or `chain`.
        chain: the chain that the student is expanded from, if it is made so and the chain exists already.
        published: a network with ImageNet weights whose last stage restarts the students', if requested.
    """

    teacher: nn.Module
    student: str
    chain: WeightChain | None = None
    published: nn.Module | None = None


def plan_sets(config: Config, num_classes: int) -> SetPlan:
    """Builds the teacher and reads the source of the student.

    Raises:
        ConfigError: an unknown backbone or width, or settings that do not go together.
        CheckpointError: a teacher's checkpoint of another network, or without a head; weights that do not fit.
        ChainError: a chain that cannot be read.
        WidthError: a student that the teacher or the chain does not give.
        ZooError: ImageNet weights that cannot be fetched.
    """
    check_set_start(config)
    node, kind = config.vkd, student_kind(config)
    seed_everything(config.train.seed)
    teacher = repeated = _teacher(config, num_classes)
    chain = None
    if kind == CROSS:
        repeated = build(SET_PREFIX + node.student.removeprefix(SET_PREFIX), num_classes, "triplet")
    elif kind == CHAIN:
        chain = _checked_chain(config, teacher)
    plan = SetPlan(teacher, kind, chain)
    if kind != SELF and node.generations == 1:
        return plan  # no student starts from its teacher's weights
    name = config.model.name if kind == SELF else node.student
    plan = replace(plan, published=_published(config, SET_PREFIX + name.removeprefix(SET_PREFIX), num_classes))
    if kind != CHAIN and node.reinit_last_stage and node.last_stage_weights:
        start_student(config, plan, repeated, num_classes, generation=0)  # raises if something does not fit
    return plan


def _published(config: Config, name: str, num_classes: int) -> nn.Module | None:
    """A network with ImageNet weights, if the last stage of students restarts with them."""
    node = config.vkd
    if not node.reinit_last_stage or node.last_stage_weights != IMAGENET:
        return None
    return build_fetching(name, num_classes, "triplet", pretrained=True, remedy=_REMEDY)


def check_set_start(config: Config) -> None:
    """Raises `ConfigError` if a run would train nothing, or networks without embeddings."""
    node = config.vkd
    if config.loss.name != "triplet":
        raise ConfigError(
            f"engine vkd needs embeddings in training, but loss.name is '{config.loss.name}': set triplet"
        )
    if not node.teacher and not node.teacher_stage.max_epoch:
        raise ConfigError(
            "vkd.teacher_stage.max_epoch is 0, so that the teacher would not be trained; set it to 1 or more, or give "
            "a trained one as vkd.teacher"
        )
    if not node.student_stage.max_epoch:
        raise ConfigError("vkd.student_stage.max_epoch is 0, so that no student would be trained; set it to 1 or more")
    restarts = node.reinit_last_stage and node.last_stage_weights
    if restarts and student_kind(config) == CHAIN and node.generations > 1:
        raise ConfigError(
            f"vkd.last_stage_weights is '{node.last_stage_weights}', but from the second generation on students have "
            "the widths of a chain's, which no published weights fit; empty it, or set vkd.generations to 1"
        )


def student_kind(config: Config) -> str:
    """How the first student is made: `self`, `cross` or `chain`."""
    asked = config.vkd.student
    if not asked:
        return SELF
    return CHAIN if asked.endswith(CHAIN_SUFFIX) or "=" in asked else CROSS


def student_label(config: Config) -> str:
    """The first student, if its widths are not its teacher's: a backbone, `width=0.5`, ..."""
    node = config.vkd
    return f"width={node.student_width:g}" if node.student.endswith(CHAIN_SUFFIX) else node.student


def start_student(
    config: Config, plan: SetPlan, teacher: nn.Module, num_classes: int, generation: int = 1
) -> nn.Module:
    """A student before its training; from the second generation on it has its teacher's architecture.

    Args:
        config: whole tree.
        plan: how the first generation is made.
        teacher: of this generation; not changed.
        num_classes: training identities.
        generation: number of the generation, from 1; all others start from their teacher's weights.
    """
    node = config.vkd
    kind = plan.student if generation == 1 else SELF
    if kind == CHAIN:
        size = _size(config)
        if plan.chain is not None:
            return _of_sets(expand(plan.chain, width=node.student_width), num_classes, size)
        graph = trace(teacher, size)
        widths = width_plan(narrowest_chain(teacher, graph), **StudentSpec.parse(node.student).arguments("vkd.student"))
        chain = WeightChain.from_teacher(teacher, widths, graph=graph)  # of the student's widths: a cluster per channel
        return _of_sets(expand_to_plan(chain, widths), num_classes, size)
    if kind == CROSS:
        name = SET_PREFIX + node.student.removeprefix(SET_PREFIX)
        return build_fetching(name, num_classes, "triplet", bool(config.model.pretrained))
    same = class_count(teacher, "teacher") == num_classes
    restarts = node.reinit_last_stage
    last_stage = plan.published or node.last_stage_weights or SCRATCH
    return student_from(teacher, num_classes, last_stage if restarts else KEEP, same and not restarts)


def _of_sets(student: nn.Module, num_classes: int, size: tuple[int, int, int]) -> nn.Module:
    """An expanded student as a network of sets; its record in the file names that network."""
    record: StudentRecord = vars(student)["student_record"]
    name = record.name.removeprefix(NECK_PREFIX).removeprefix(SET_PREFIX)
    if not getattr(student, "has_neck", False):
        record = record.inside("backbone")
        for strided in last_strided(name) if name else ():  # as vkd_<name> has it
            convolution = student.get_submodule(strided)
            if isinstance(convolution, nn.Conv2d):
                convolution.stride = (1, 1)
    network = as_set_model(student, num_classes, size)
    name = name and SET_PREFIX + name
    return replace(record, name=name, num_classes=num_classes, loss="triplet").attach(network)


def _teacher(config: Config, num_classes: int) -> nn.Module:
    name = SET_PREFIX + config.model.name.removeprefix(SET_PREFIX)
    if config.vkd.teacher:
        return load_set_model(name, config.vkd.teacher)
    teacher = build_fetching(name, num_classes, "triplet", bool(config.model.pretrained))
    if config.model.load_weights:
        load_any_weights(teacher, config.model.load_weights)
    return teacher


def _checked_chain(config: Config, teacher: nn.Module) -> WeightChain | None:
    """The existing chain, after a check that it, or the teacher, gives the student."""
    node = config.vkd
    chain, key = None, "vkd.student"
    try:
        if node.student.endswith(CHAIN_SUFFIX):
            chain, key = WeightChain.load(node.student), "vkd.student_width"
            width_plan(chain, width=node.student_width)
        else:
            asked = StudentSpec.parse(node.student).arguments(key)
            width_plan(narrowest_chain(teacher, trace(teacher, _size(config))), **asked)
    except WidthError as error:
        raise WidthError(f"{key} cannot be made: {error}") from error
    return chain


def _size(config: Config) -> tuple[int, int, int]:
    return 3, config.data.height, config.data.width
