"""Students for users: made from a chain by width or by example, saved and loaded as plain checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from .. import files
from ..errors import CheckpointError, ConfigError, GraphError, WidthError
from ..graph import rebuild
from ..graph.routing import restore_code
from ..host import models
from .budget import check_range, plan_like, plan_of_ratio, shapes_of
from .chain import WeightChain, full_plan
from .expand import StudentRecord, expand_to_plan

Like = str | nn.Module | Mapping[str, Tensor]


def expand(
    chain: WeightChain,
    width: float | Mapping[str, int] | None = None,
    *,
    like: Like | None = None,
    attention: str | None = None,
) -> nn.Module:
    """Makes a student of a chain, without training (paper: weight chain expansion).

    Args:
        chain: not changed.
        width: ratio of the teacher's channels, or a width per group name (others keep the teacher's).
        like: a registered model name, a network, or a state dict, whose shapes the student shall have.
        attention: ``folded`` (merged queries and keys are made exact) or ``paper`` (they are left as they come); by
            default as the chain was made.

    Returns:
        A module of the teacher's class in evaluation mode, sharing no memory with the chain. With ``like``, its state
        dict loads strictly into that network.

    Raises:
        WidthError: a width outside of [chain, teacher], another depth or family, or not exactly one way of asking.
        ConfigError: an unknown model name or attention.
    """
    return expand_to_plan(chain, width_plan(chain, width, like=like), attention)


def width_plan(
    chain: WeightChain, width: float | Mapping[str, int] | None = None, *, like: Like | None = None
) -> dict[str, int]:
    """The widths that ``expand`` would give a student; same arguments and errors."""
    if (width is None) == (like is None):
        raise WidthError("a student is asked for in exactly one way: width=0.5, or like='osnet_x0_5'")
    if width is None:
        return _plan_like(chain, like)
    if isinstance(width, Mapping):
        plan = full_plan(chain.graph, width)
        check_range(chain, plan)
        return plan
    return plan_of_ratio(chain, float(width))


def _plan_like(chain: WeightChain, like: Like) -> dict[str, int]:
    if isinstance(like, str):
        num_classes = chain.spec.num_classes if chain.spec else _num_classes(chain)
        return plan_like(chain, shapes_of(models.skeleton(like, num_classes)), f"'{like}'")
    if isinstance(like, nn.Module):
        return plan_like(chain, shapes_of(like), f"the given {type(like).__name__}")
    return plan_like(chain, {name: tuple(tensor.shape) for name, tensor in like.items()}, "the given state dict")


def _num_classes(chain: WeightChain) -> int:
    return max((chain.rows[name].shape[0] for name in chain.graph.heads), default=1)


def save_student(student: nn.Module, path: str | Path) -> None:
    """Writes a student as a checkpoint that torchreid's own loaders take: ``{"state_dict": ..., "oskt": ...}``.

    Args:
        student: made by ``expand``; may have been fine-tuned.
        path: written whole or not at all.

    Raises:
        CheckpointError: a network that ``expand`` did not make.
    """
    record = getattr(student, "student_record", None)
    if not isinstance(record, StudentRecord):
        raise CheckpointError(f"this {type(student).__name__} was not made by expand; save it with torch.save instead")
    files.save_checkpoint(path, {"state_dict": student.state_dict(), "oskt": record.to_dict()})


def load_student(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Reads a student that ``save_student`` wrote; everything is checked before anything is returned.

    Args:
        path: checkpoint.
        model: the teacher's network, needed only if its builder is not registered; left as it is.

    Returns:
        The student in evaluation mode.

    Raises:
        CheckpointError: missing, damaged or foreign file, or tensors that do not make the network it names.
    """
    content = files.load_checkpoint(path)
    record = StudentRecord.from_dict(content.get("oskt") if isinstance(content, dict) else None, path)
    state = models.state_dict_of(content, path)
    if model is None:
        model = _skeleton(record, path)
    try:
        student = restore_code(model, record.code, {name: tensor.shape for name, tensor in state.items()})
    except GraphError as error:
        raise CheckpointError(f"'{path}' does not make a student of {type(model).__name__}: {error}") from error
    expected = student.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"'{path}' does not make a student of {record.name or type(model).__name__}: {len(missing)} tensors are "
            f"missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}"
        )
    return record.attach(rebuild(student, state).eval())


def _skeleton(record: StudentRecord, path: str | Path) -> nn.Module:
    if not record.name:
        raise CheckpointError(f"the teacher of '{path}' is not a registered model; pass its network: model=...")
    try:
        return models.skeleton(record.name, record.num_classes, record.loss)
    except ConfigError as error:
        raise CheckpointError(f"'{path}' cannot be loaded: {error}") from error
