"""A ResNet's chain as the authors' program keeps it; the inverse of `resnet_format.py`, whose names it uses."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from ..chain.chain import WeightChain
from ..chain.layout import AxisMap
from ..chain.narrowing import average_rows, sum_columns
from ..errors import ZooError
from .resnet_format import (
    CHAIN_PREFIX,
    HEAD_PREFIX,
    NORM,
    OURS,
    RUNNING_STATISTICS,
    STAGES,
    TEACHER_PREFIX,
    Convolution,
    convolutions,
)

_BATCHES = "num_batches_tracked"


def resnet_content(chain: WeightChain, teacher: Mapping[str, Tensor]) -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """Labels and state dict of a ResNet's chain in the authors' names.

    Args:
        chain: of `oskt_resnet50` or another network with its names.
        teacher: the teacher's state dict; norms and statistics are the chain's.

    Raises:
        ZooError: a chain of another network.
    """
    names = set(chain.model.state_dict())
    depths = [_depth(names, stage) for stage in range(1, STAGES + 1)]
    parts = list(convolutions(depths))
    expected = {f"{norm}.{name}" for norm in ("neck", *(OURS + p.norm for p in parts)) for name in (*NORM, _BATCHES)}
    expected |= {"classifier.weight", *(f"{OURS}{part.weight}.weight" for part in parts)}
    if names != expected:
        first = min(names ^ expected)
        raise ZooError(
            f"a chain of {type(chain.model).__name__} cannot be written in the authors' format, which holds ResNets of "
            f"bottleneck blocks with a neck (oskt_resnet50) and their vision transformers; they differ in '{first}'"
        )
    labels: dict[str, list[int]] = {}
    state: dict[str, Tensor] = {}
    matrices: dict[int, tuple[Tensor, Tensor]] = {}
    for part in parts:
        axis = chain.layout.axis(chain.graph.row_ties[f"{OURS}{part.weight}.weight"])
        labels[TEACHER_PREFIX + part.name] = axis.teacher_to_student.tolist()
        state.update(_convolution(chain, teacher, part, axis))
        if id(axis) not in matrices:  # one for all that are added up, as they are long
            matrices[id(axis)] = _dense(axis)
        state.update(_matrices(part, matrices[id(axis)]))
    for name in [name for name in state if name.startswith(f"{CHAIN_PREFIX}layer")]:
        block, _, rest = name.removeprefix(CHAIN_PREFIX).partition(".")
        number, _, rest = rest.partition(".")
        state[f"{TEACHER_PREFIX}{block}.{number}.Gene_Bottleneck.{rest}"] = state[name]
    state.update(_head(chain, teacher))
    return labels, state


def _depth(names: set[str], stage: int) -> int:
    return len({match.group() for name in names if (match := re.match(rf"{OURS}layer{stage}\.\d+\.", name))})


def _convolution(
    chain: WeightChain, teacher: Mapping[str, Tensor], part: Convolution, axis: AxisMap
) -> dict[str, Tensor]:
    weight = f"{part.weight}.weight"
    state = {
        TEACHER_PREFIX + weight: teacher[OURS + weight],
        CHAIN_PREFIX + weight: chain.rows[OURS + weight],
    }
    for name in NORM:
        ours, vector = f"{OURS}{part.norm}.{name}", chain.vectors[f"{OURS}{part.norm}.{name}"]
        state[f"{TEACHER_PREFIX}{part.norm}.{name}"] = vector
        if name in RUNNING_STATISTICS:
            narrow = chain.statistics[ours] if ours in chain.statistics else average_rows(vector, axis)
            vector = narrow[axis.teacher_to_student]
        state[f"{CHAIN_PREFIX}{part.norm}.{name}"] = vector
    for prefix in (TEACHER_PREFIX, CHAIN_PREFIX):
        state[f"{prefix}{part.norm}.{_BATCHES}"] = teacher[f"{OURS}{part.norm}.{_BATCHES}"]
    return state


def _dense(axis: AxisMap) -> tuple[Tensor, Tensor]:
    """The matrix that repeats chain rows, `[N, K, 1, 1]`, and the one that averages in clusters, `[N, N, 1, 1]`.

    Example: clusters `[0, 1, 0, 0]` give rows `(1, 0), (0, 1), (1, 0), (1, 0)` and, of the average, a third where
    both channels are in cluster 0.
    """
    repeat = functional.one_hot(axis.teacher_to_student, axis.length).float()
    average = (repeat / axis.members) @ repeat.T
    return repeat[..., None, None], average[..., None, None]


def _matrices(part: Convolution, dense: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Derived tensors that the authors' program keeps with the chain: the labels again, as matrices."""
    names = []
    for module in (part.weight, part.norm):
        where, _, last = module.rpartition(".")
        if last.isdigit():  # downsample.0 has trans_downsample0 next to it
            where, _, word = where.rpartition(".")
            last = word + last
        names.append(f"{CHAIN_PREFIX}{where}{'.' if where else ''}trans_{last}.weight")
    return dict(zip(names, dense, strict=True))


def _head(chain: WeightChain, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's neck and classifier, and the S-student's at the chain's width."""
    axis = chain.layout.axis(chain.graph.column_ties["classifier.weight"])
    state = {f"bottleneck.{name}": teacher[f"neck.{name}"] for name in (*NORM, _BATCHES)}
    for name in NORM:
        own = chain.statistics.get(f"neck.{name}")
        vector = chain.vectors[f"neck.{name}"]
        state[f"{HEAD_PREFIX}bottleneck.{name}"] = average_rows(vector, axis) if own is None else own
    state[f"{HEAD_PREFIX}bottleneck.{_BATCHES}"] = teacher[f"neck.{_BATCHES}"]
    state["classifier.weight"] = teacher["classifier.weight"]
    state[f"{HEAD_PREFIX}classifier.weight"] = sum_columns(chain.rows["classifier.weight"], axis)
    return state
