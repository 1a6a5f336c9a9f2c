"""Initial weights of a student: the teacher's, except for the last stage and the classifier (paper: section 4.1)."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from ..errors import ConfigError
from ..host.models import initialise
from ..models.building import load_weights
from .model import FrameAverage, class_count

KEEP, SCRATCH = "keep", "scratch"
_BLOCKS_OF_ONE_STAGE = 4  # a network that is one row of blocks restarts the last quarter of them


def student_from(
    teacher: nn.Module,
    num_classes: int | None = None,
    last_stage: str | Path | nn.Module = SCRATCH,
    keep_head: bool = False,
) -> nn.Module:
    """A student of its teacher's architecture, ready to be trained; in a further generation the student is the teacher.

    Args:
        teacher: network of sets; not changed.
        num_classes: training identities of the student; `None`: as many as the teacher's.
        last_stage: what the last stage of the backbone restarts from: `scratch`; `keep`, the teacher's weights; a file
            of published weights of the whole backbone (ImageNet), which must fit in full, and of which the stage is
            taken; or a network of the same architecture that has them.
        keep_head: keep the teacher's neck and classifier instead of fresh ones.

    Raises:
        ConfigError: not a network of sets, or a head that is to be kept for other classes.
        CheckpointError: a file that does not fit.
    """
    if not isinstance(teacher, FrameAverage):
        raise ConfigError(
            f"a student starts from a network of sets, got a {type(teacher).__name__}; give a vkd_<backbone> model"
        )
    classes = class_count(teacher, "teacher")
    if keep_head and num_classes not in (None, classes):
        raise ConfigError(
            f"the teacher's head has {classes} classes and cannot be kept for {num_classes}; set keep_head to False"
        )
    student = copy.deepcopy(teacher)
    _make_trainable(student)
    if isinstance(last_stage, nn.Module) or last_stage != KEEP:
        _restart(student, last_stage_of(student), last_stage)
    if not keep_head:
        _restart_head(student, num_classes or classes)
    return student.train()


def last_stage_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules in the last stage of a backbone, and of those after it except the classifier.

    A *stage* of a backbone holds blocks: modules with submodules. The last stage is searched among the modules that the
    network (or the one part of it that has all weights) consists of; what follows it, such as a last norm, belongs to
    it. A network that is one row of blocks, such as a vision transformer, has no stages: its last quarter counts.

    Args:
        model: network of sets, or any other.
    """
    place, parts = "", _weighted(model, getattr(model, "head_modules", ()))
    while len(parts) == 1 and all(map(_weighted, parts.values())):
        ((place, module),) = parts.items()
        parts = _weighted(module, prefix=f"{place}.")
    stages = [name for name, module in parts.items() if _is_stage(module)]
    names = list(parts)
    if len(stages) > 1:
        return tuple(names[names.index(stages[-1]) :])
    if stages:
        blocks = list(_weighted(parts[stages[0]], prefix=f"{stages[0]}."))
        return (*_last_quarter(blocks), *names[names.index(stages[0]) + 1 :])
    return tuple(_last_quarter(names))


def _weighted(module: nn.Module, left_out: tuple[str, ...] = (), prefix: str = "") -> dict[str, nn.Module]:
    """Children that have parameters, by their names with a prefix, in order."""
    children = {name: child for name, child in module.named_children() if name not in left_out}
    return {prefix + name: child for name, child in children.items() if any(True for _ in child.parameters())}


def _is_stage(module: nn.Module) -> bool:
    blocks = _weighted(module).values()
    return bool(blocks) and all(_weighted(block) for block in blocks)


def _last_quarter(names: list[str]) -> list[str]:
    return names[-max(1, len(names) // _BLOCKS_OF_ONE_STAGE) :]


def _make_trainable(model: FrameAverage) -> None:
    """A teacher may have been frozen; only the necks' biases stay so, which keep their features centred."""
    model.requires_grad_(True)
    for name in model.head_modules:
        neck = getattr(model, name)
        if not isinstance(neck, nn.Linear):
            neck.bias.requires_grad_(False)


def _restart(student: nn.Module, names: tuple[str, ...], source: str | Path | nn.Module) -> None:
    """Gives some modules fresh or published weights, in place."""
    if isinstance(source, nn.Module):
        fresh = source
    else:
        fresh = copy.deepcopy(student)
        initialise(fresh)
        if source != SCRATCH:
            load_weights(fresh, source)
    for name in names:
        student.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())


def _restart_head(student: FrameAverage, num_classes: int) -> None:
    for name in student.head_modules:
        module = getattr(student, name)
        if isinstance(module, nn.Linear):
            module = nn.Linear(module.in_features, num_classes, bias=False, device=module.weight.device)
            nn.init.normal_(module.weight, std=0.001)
            setattr(student, name, module)
        else:
            module.reset_parameters()
