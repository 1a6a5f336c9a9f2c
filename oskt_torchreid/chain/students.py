"""Students for users: made from a chain by width or by example, saved and loaded as plain checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import files
from ..deploy.latency import measure_latency
from ..errors import ChainError, CheckpointError, ConfigError, GraphError, WidthError
from ..files import weights
from ..graph import rebuild
from ..graph.plans import Width, full_plan
from ..graph.surgery.routing import restore_code
from ..networks import resolver
from . import network
from .budgets import check_range, plan_like, shapes_of
from .chain import WeightChain
from .expansion import StudentRecord, expand_to_plan
from .file_size import file_content, file_state
from .fitting import check_tensors, check_tensors_fit
from .search import Choice, Measure, widest_within

Like = str | nn.Module | Mapping[str, Tensor]


def expand(
    chain: WeightChain,
    width: Width | None = None,
    *,
    params: float | str | None = None,
    flops: float | str | None = None,
    size: float | str | None = None,
    latency: float | str | None = None,
    like: Like | None = None,
    measure: Measure | None = None,
    attention: str | None = None,
    distance: str = "none",
    statistics: str = "own",
) -> nn.Module:
    """Makes a student of a chain, without training (paper: weight chain expansion).

    Args:
        chain: not changed.
        width: ratio of the teacher's channels, a preset such as ``res50-s1``, or a width per group name or pattern
            (others keep the teacher's), see ``full_plan``.
        params: the widest uniform student of at most so many parameters, without its classifier: ``1e6`` or ``"1M"``.
        flops: the same for the multiply-adds of one image of the chain's input size, without the classifier.
        size: the same for the bytes of its file, everything included: ``"4MB"``, ``"4MB fp16"``.
        latency: the same for the milliseconds of a batch on this machine, measured: ``"5ms"``.
        like: a registered model name, a network, or a state dict, whose shapes the student shall have.
        measure: how latency is measured, a function of network and input size; by default
            ``deploy.measure_latency`` (``functools.partial`` of it sets batch, threads, device or backend).
        attention: ``folded`` (merged queries and keys are made exact) or ``paper`` (they are left as they come); by
            default as the chain was made.
        distance: whose retrieval distances the features have before fine-tuning. ``teacher``: those of the teacher,
            ``chain``: those of the S-student, both exact where the rows of each cluster are equal; ``none``: merged
            dimensions count once. Class scores are the same in all three.
        statistics: running statistics: ``own`` of the S-student where the chain was refined, ``merged`` from the
            teacher's, or ``initial`` ones, see ``expand_to_plan``.

    Returns:
        A module of the teacher's class in evaluation mode, sharing no memory with the chain. With ``like``, its state
        dict loads strictly into that network.

    Raises:
        ChainError: something else than a chain.
        WidthError: a width outside of [chain, teacher], a budget that no student meets, another depth or family, or
            not exactly one way of asking.
        ConfigError: an unknown model name, attention, distance or statistics.
        GraphError: a network whose features cannot be scaled, see ``distance.py``.
    """
    choice = choose_widths(
        chain, width, params=params, flops=flops, size=size, latency=latency, like=like, measure=measure
    )
    return expand_to_plan(chain, choice.widths, attention, distance, statistics)


def width_plan(chain: WeightChain, width: Width | None = None, **how: Any) -> dict[str, int]:
    """The widths that ``expand`` would give a student; same arguments and errors."""
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
    measure: Measure | None = None,
) -> Choice:
    """The widths that ``expand`` would give a student, and what they cost; same arguments and errors."""
    asked = {"width": width, "params": params, "flops": flops, "size": size, "latency": latency, "like": like}
    given = {way: value for way, value in asked.items() if value is not None}
    if len(given) != 1:
        raise WidthError(
            f"a student is asked for in exactly one way, not {len(given)} ({', '.join(given) or 'none'}): width=0.5, "
            "params='1M', flops='200M', size='4MB', latency='5ms' or like='osnet_x0_5'"
        )
    if not isinstance(chain, WeightChain):
        raise ChainError(f"a student is made of a WeightChain, not of {chain!r:.100}; read one: WeightChain.load(path)")
    ((way, value),) = given.items()
    if way == "like":
        return Choice(_plan_like(chain, value), way)
    if way != "width":
        return widest_within(chain, way, value, measure or measure_latency)
    plan = full_plan(chain.graph, value)
    check_range(chain, plan)
    return Choice(plan, way, None if isinstance(value, (str, Mapping)) else float(value))


def _plan_like(chain: WeightChain, like: Like) -> dict[str, int]:
    if isinstance(like, str):
        num_classes = chain.spec.num_classes if chain.spec else _num_classes(chain)
        return plan_like(chain, shapes_of(resolver().skeleton(like, num_classes)), f"'{like}'")
    if isinstance(like, nn.Module):
        return plan_like(chain, shapes_of(like), f"the given {type(like).__name__}")
    if not isinstance(like, Mapping):
        raise WidthError(f"like is {like!r:.100}; give the name of a model, a network, or a state dict")
    return plan_like(chain, {name: tuple(tensor.shape) for name, tensor in like.items()}, "the given state dict")


def _num_classes(chain: WeightChain) -> int:
    return max((chain.rows[name].shape[0] for name in chain.graph.heads), default=1)


def save_student(student: nn.Module, path: str | Path, half: bool = False) -> None:
    """Writes a student as a checkpoint that torchreid's own loaders take: ``{"state_dict": ..., "oskt": ...}``.

    Args:
        student: made by ``expand``; may have been fine-tuned.
        path: written whole or not at all.
        half: numbers in half precision, for half the bytes; every loader widens them again.

    Raises:
        CheckpointError: a network that ``expand`` did not make, or values beyond the range of half precision.
    """
    files.save_checkpoint(path, file_content(student, half))


def save_plain(model: nn.Module, path: str | Path, half: bool = False) -> None:
    """Writes a state dict alone, ``{"state_dict": ...}``, for programs that know the network by its name.

    Args:
        model: any; of one with a neck, ``without_neck`` makes the stock form first.
        path: written whole or not at all.
        half: numbers in half precision, for half the bytes.

    Raises:
        CheckpointError: values beyond the range of half precision.
    """
    files.save_checkpoint(path, {"state_dict": file_state(model, half)})


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
    state = weights.state_dict_of(content, path)
    is_given = model is not None
    if not is_given:
        model = _skeleton(record, path)
    try:
        student = restore_code(model, record.code, {name: tensor.shape for name, tensor in state.items()})
    except GraphError as error:
        raise CheckpointError(f"'{path}' does not make a student of {type(model).__name__}: {error}") from error
    expected = student.state_dict()
    check_tensors(state, expected, f"'{path}'", record.name or type(model).__name__)
    full = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    student = rebuild(student, full).eval()
    check_tensors_fit(student, record.input_size, str(path))
    if is_given:
        _check_blocks(student, record, path)
    if record.feature_dim and record.feature_dim not in {t.shape[1] for t in state.values() if t.dim() == 2}:
        raise CheckpointError(
            f"'{path}' says that its features are {record.feature_dim} long, which no layer of it takes; give a file "
            "that save_student wrote"
        )
    return record.attach(student)


def _check_blocks(student: nn.Module, record: StudentRecord, path: str | Path) -> None:
    try:
        network.check_blocks(student, record.blocks, record.input_size)
    except GraphError as error:
        raise CheckpointError(f"'{path}' was made of another network: {error}") from error


def _skeleton(record: StudentRecord, path: str | Path) -> nn.Module:
    if not record.name:
        raise CheckpointError(f"the teacher of '{path}' is not a registered model; pass its network: model=...")
    try:
        return resolver().skeleton(record.name, record.num_classes, record.loss)
    except ConfigError as error:
        raise CheckpointError(f"'{path}' cannot be loaded: {error}") from error
