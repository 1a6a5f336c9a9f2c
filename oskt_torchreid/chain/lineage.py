"""The lineage of a chain of a student: which channels of the first teacher its channels stand for, over all levels.

Each level maps the first teacher's channels to the channels of its own teacher (`origin_to_teacher`) and these to its
clusters (`teacher_to_chain`); the composition maps the first teacher's channels to a narrow student's. Example: the
first teacher's channels `0 1 2 3` went to the slots `0 1 0 2` of a student, whose three channels were clustered as
`0 1 0`: the composed map is `0 1 0 0`, and cluster 0 stands for three channels of the first teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ChainError, GraphError
from ..graph import ChannelGraph, rebuild
from ..graph.plans import occupied_places
from ..graph.surgery.rebuild import restore_code
from ..graph.surgery.shell import student_axis
from .layout import Layout
from .narrowing import rows_first

ChannelMap = dict[str, np.ndarray]


def student_channels(
    graph: ChannelGraph, layout_of: Callable[[Mapping[str, int]], Layout], own: ChannelGraph
) -> ChannelMap:
    """The channel of a student, counted within its group, that stands for each channel of its teacher.

    Args:
        graph: the teacher's channel graph.
        layout_of: the layout of a student of the chain, by its widths.
        own: the student's channel graph, traced again.

    Returns:
        Per group name, shape `[teacher's width]`.

    Raises:
        ChainError: a network that was not expanded from this chain.
        WidthError: widths that the chain does not give.
    """
    missing = [name for name in graph.sizes if name not in own.sizes]
    unknown = [name for name in own.sizes if name not in graph.sizes]
    if missing or unknown:
        raise ChainError(
            f"the student was not expanded from this chain: it has no channel groups {missing[:3]} and others "
            f"{unknown[:3]}; give a student of this very chain"
        )
    layout = layout_of(own.sizes)
    occupied = occupied_places(graph, own.sizes)
    channel_at = np.empty(graph.num_channels, np.int64)
    for group in own.groups:
        teachers = next(other for other in graph.groups if other.name == group.name)
        channel_at[teachers.channels[: group.size]] = group.channels
    for tie in graph.ties:
        other = own.ties_by_key.get(tie.key)
        if other is not None and not np.array_equal(channel_at[student_axis(tie.axis, occupied)], other.channels):
            raise ChainError(
                f"the student was not expanded from this chain: axis {tie.dimension} of '{tie.tensor}' is made of "
                "other channels; give a student of this very chain"
            )
    return {name: slots.teacher_to_slot for name, slots in layout.slots.items()}


def check_unscaled(student: nn.Module) -> None:
    """Raises `ChainError` for a student whose features were scaled: its channels no longer have equal weight."""
    distance = getattr(getattr(student, "student_record", None), "distance", "none")
    if distance != "none":
        raise ChainError(
            f"the student was expanded with distance='{distance}'; expand it with distance='none' to make the next "
            "chain of it, and scale the students of that chain"
        )


def composed(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> ChannelMap:
    """`second` after `first`, group by group; an empty `first` changes nothing."""
    return {name: labels[first[name]] if first else labels for name, labels in second.items()}


def origins_per_channel(graph: ChannelGraph, origin_to_teacher: Mapping[str, np.ndarray]) -> np.ndarray:
    """How many of the first teacher's channels each channel stands for, `[num_channels]`; 1 if there is no map."""
    counts = np.ones(graph.num_channels, np.int64)
    for group in graph.groups:
        if origin_to_teacher:
            counts[group.channels] = np.bincount(origin_to_teacher[group.name], minlength=group.size)
    return counts


def check_origin(graph: ChannelGraph, origin_to_teacher: Mapping[str, np.ndarray]) -> None:
    """Raises `ChainError` unless every group's map reaches each of its channels."""
    for group in graph.groups:
        channels = origin_to_teacher.get(group.name)
        if channels is None or not np.array_equal(np.unique(channels), np.arange(group.size)):
            raise ChainError(
                f"group '{group.name}' of {group.size} channels does not say which channels of the first teacher each "
                "of them stands for"
            )


# ---- files -----------------------------------------------------------------------------------------------------------


def join_origin(graph: ChannelGraph, origin_to_teacher: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """The map as one array, in the order of the groups, and the length of each part."""
    parts = [origin_to_teacher[group.name] for group in graph.groups] if origin_to_teacher else []
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int32), [len(part) for part in parts]


def cut_origin(graph: ChannelGraph, joined: np.ndarray, lengths: list[int]) -> ChannelMap:
    """Inverse of `join_origin`; raises `ChainError` where lengths do not agree."""
    if not lengths:
        return {}
    lengths = [int(length) for length in lengths]
    if len(lengths) != len(graph.groups) or min(lengths) < 1 or sum(lengths) != len(joined):
        raise ChainError(f"its map from the first teacher has {len(lengths)} parts of {len(joined)} channels together")
    parts = np.split(joined.astype(np.int64), np.cumsum(lengths)[:-1])
    return {group.name: part for group, part in zip(graph.groups, parts, strict=True)}


def narrow_skeleton(
    model: nn.Module, code: Mapping, graph: ChannelGraph, rows: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> nn.Module:
    """The structure of a chain's teacher that is a student itself, on the meta device.

    Args:
        model: the first teacher's structure; not changed.
        code: how the student's own code was adapted, see `graph.surgery.rebuild.describe_code`.
        graph: the student's channel graph.
        rows: the chain's rows, whose columns are the student's.
        others: all other tensors of the student.

    Raises:
        ChainError: tensors and code that do not make such a network.
    """
    tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in others.items()}
    for name, chain_rows in rows.items():
        tie = graph.row_ties[name]
        whole = chain_rows.new_empty((tie.channels.size, *chain_rows.shape[1:]), device="meta")
        tensors[name] = rows_first(whole, tie)
    try:
        narrow = restore_code(model, code, {name: tensor.shape for name, tensor in tensors.items()})
    except GraphError as error:
        raise ChainError(f"its teacher's structure cannot be rebuilt: {error}") from error
    unknown = sorted(tensors.keys() - narrow.state_dict().keys())
    if unknown:
        raise ChainError(f"its tensors {unknown[:3]} are unknown to {type(model).__name__}")
    return rebuild(narrow, tensors)
