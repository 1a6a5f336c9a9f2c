"""The layout of one width plan: slots of every group, and index arrays along every axis of the graph.

Widening a group of `N` teacher channels in `K` clusters to width `m`, `K <= m <= N` (paper, section on weight
chain expansion; the steps are numbered as in its text):

1. *Slots.* One slot per cluster, in cluster order. Then slots are appended one at a time, each to the cluster with the
   smallest `slots / size` (ties: the lowest cluster), until there are `m`.
2. *Members.* A cluster's channels, in increasing order, are split contiguously and evenly over its slots in slot order;
   the first `size mod slots` slots take one more.

Worked example, 4 channels in 2 clusters, width 3. `teacher_to_chain = [0, 1, 0, 0]`: cluster 0 holds channels 0, 2, 3
and cluster 1 holds channel 1. Two slots start; the third goes to cluster 0 (1/3 < 1/1). Hence
`slot_to_cluster = [0, 1, 0]`; slot 0 stands for channels 0 and 2, slot 2 for channel 3, slot 1 for channel 1, so
`teacher_to_slot = [0, 1, 0, 2]`.

Slots take the *places* of their group (see `graph/surgery/shell.py`): slot `j` takes the place of the group's `j`-th
channel, and places without a slot are dropped. A channel that occurs several times on one axis (a flattened map) is
followed occurrence by occurrence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import WidthError
from ..graph import Axis, ChannelGraph, Tie
from ..graph.plans import check_plan, occupied_places
from .nesting import Tree, cut_trees


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of one group at one width.

    Attributes:
        slot_to_cluster: cluster whose chain row each slot takes, shape `[m]`.
        teacher_to_slot: slot that stands for each teacher channel, shape `[N]`.
    """

    slot_to_cluster: np.ndarray
    teacher_to_slot: np.ndarray


def slots_of_groups(teacher_to_chain: Sequence[np.ndarray], widths: Sequence[int]) -> list[Slots]:
    """Slots and members of many groups at once: networks of convolution groups have thousands of channel groups.

    Args:
        teacher_to_chain: per group, cluster of each teacher channel, shape `[N]`, every cluster `0..K-1` in use.
        widths: `m` per group.

    Raises:
        WidthError: a width is outside of its group's `[K, N]`.
    """
    channels = np.array([len(labels) for labels in teacher_to_chain])
    clusters = np.array([int(labels.max()) + 1 for labels in teacher_to_chain])
    width = np.asarray(widths)
    _check(width, clusters, channels)
    first_cluster = _starts(clusters)  # clusters of all groups are numbered consecutively
    cluster = np.concatenate(teacher_to_chain) + np.repeat(first_cluster, channels)
    size = np.bincount(cluster)
    slot_cluster, turn, place = _apportion(size, clusters, channels, width)
    member_turn = _member_turns(cluster, size, np.bincount(slot_cluster))
    by_turn = np.lexsort((turn, slot_cluster))  # index of each slot within its cluster
    first_slot = _starts(np.bincount(slot_cluster))
    teacher_to_slot = place[by_turn[first_slot[cluster] + member_turn]]
    slot_to_cluster = slot_cluster - np.repeat(first_cluster, width)
    parts = zip(_cut(slot_to_cluster, width), _cut(teacher_to_slot, channels), strict=True)
    return [Slots(*part) for part in parts]


def slots_of_trees(trees: Sequence[Tree], teacher_to_chain: Sequence[np.ndarray], widths: Sequence[int]) -> list[Slots]:
    """Slots and members of many groups of a nested chain: the cuts of their trees.

    Args:
        trees: per group.
        teacher_to_chain: the cut at the chain's width per group.
        widths: per group.

    Raises:
        WidthError: a width is outside of its group's `[K, N]`.
    """
    clusters = np.array([int(labels.max()) + 1 for labels in teacher_to_chain])
    _check(np.asarray(widths), clusters, np.array([len(labels) for labels in teacher_to_chain]))
    made = []
    for cut, labels, width in zip(cut_trees(trees, widths), teacher_to_chain, widths, strict=True):
        slot_to_cluster = np.empty(width, np.int64)
        slot_to_cluster[cut] = labels
        made.append(Slots(slot_to_cluster, cut))
    return made


def _apportion(
    size: np.ndarray, clusters: np.ndarray, channels: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster of each slot, the slot's turn within its cluster and its place in its group, `[all slots]` each.

    A cluster of size `s` gets its slot number `t` when its ratio is `t / s`, and these ratios only grow: sorting all
    `t / s` is the same as appending greedily one at a time. The first slots have the ratio 0.

    Args:
        size: members of each cluster.
        clusters: `K` of each group.
        channels: `N` of each group.
        widths: `m` of each group.
    """
    cluster = np.repeat(np.arange(len(size)), size)
    turn = np.arange(len(cluster)) - np.repeat(_starts(size), size)
    group = np.repeat(np.arange(len(clusters)), clusters)[cluster]
    order = np.lexsort((cluster, turn / size[cluster], group))
    place = np.arange(len(cluster)) - np.repeat(_starts(channels), channels)
    kept = place < np.repeat(widths, channels)
    return cluster[order][kept], turn[order][kept], place[kept]


def _member_turns(cluster: np.ndarray, size: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Which of its cluster's slots each channel belongs to, `[all channels]`.

    Args:
        cluster: of each channel.
        size: members of each cluster.
        slots: number of slots of each cluster.
    """
    rank = np.empty_like(cluster)
    rank[np.argsort(cluster, kind="stable")] = np.arange(len(cluster)) - np.repeat(_starts(size), size)
    base, extra = (part[cluster] for part in np.divmod(size, slots))
    in_larger = rank < extra * (base + 1)  # the first `extra` slots of a cluster hold `base + 1` members
    return np.where(in_larger, rank // (base + 1), extra + (rank - extra * (base + 1)) // base)


def _check(widths: np.ndarray, clusters: np.ndarray, channels: np.ndarray) -> None:
    wrong = np.flatnonzero((widths < clusters) | (widths > channels))
    if len(wrong):
        width, least, most = (int(numbers[wrong[0]]) for numbers in (widths, clusters, channels))
        raise WidthError(
            f"width {width} is outside of [{least}, {most}]: a student is at least as wide as the chain and at most as "
            "wide as the teacher"
        )


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where consecutive parts of these lengths begin: `3 1 2` -> `0 3 4`."""
    return np.cumsum(lengths) - lengths


def _cut(joined: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [joined[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


# ---- axes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AxisMap:
    """The map from one axis of the teacher to the same axis of a student.

    Attributes:
        blocks: number of convolution groups along it.
        length: the student's length per block.
        teacher_to_student: student position of each teacher position, shape `[blocks * teacher's length]`; positions
            count through the blocks.
        leading: which teacher positions lead their student position, the same shape; `None`: all have the same share.
    """

    blocks: int
    length: int
    teacher_to_student: Tensor
    leading: Tensor | None = None

    @cached_property
    def is_identity(self) -> bool:
        """Whether every position stays where it is."""
        return bool(torch.equal(self.teacher_to_student, torch.arange(self.blocks * self.length)))

    @cached_property
    def leaders(self) -> Tensor:
        """Teacher position that leads each student position, shape `[blocks * length]`; without leaders, its last."""
        leading = torch.arange(len(self.teacher_to_student))
        leading = leading if self.leading is None else leading[self.leading]
        leaders = torch.empty(self.blocks * self.length, dtype=torch.int64)
        leaders[self.teacher_to_student[leading]] = leading
        return leaders

    @cached_property
    def members(self) -> Tensor:
        """Teacher positions per student position, shape `[blocks * length]`."""
        return torch.bincount(self.teacher_to_student, minlength=self.blocks * self.length)


def joined(axes: Sequence[AxisMap], alignment: int = 1) -> AxisMap:
    """Several consecutive axes as one.

    Example: the maps `0 1 0` (two student positions) and `0 0` (one) are together `0 1 0 2 2`; with an alignment
    of 4 they are `0 1 0 4 4`, and positions 2, 3 and 5 to 7 stay empty.

    Args:
        axes: in order.
        alignment: every axis begins at a multiple of it; see `spans`.

    Returns:
        A map of one block that is `sum(spans(axes, alignment))` long.
    """
    starts = np.cumsum([0, *spans(axes, alignment)])
    positions = [axis.teacher_to_student + int(start) for axis, start in zip(axes, starts[:-1], strict=True)]
    leading = [axis.leading for axis in axes if axis.leading is not None]
    return AxisMap(1, int(starts[-1]), torch.cat(positions), torch.cat(leading) if leading else None)


def spans(axes: Sequence[AxisMap], alignment: int = 1) -> list[int]:
    """Positions that each joined axis takes: its student length, rounded up. Alignment 4: 3 and 6 become 4 and 8."""
    return [-(-axis.blocks * axis.length // alignment) * alignment for axis in axes]


class Layout:
    """Slots and axis maps of one width plan; computed once per axis and shared by the tensors along it.

    Args:
        graph: the teacher's channel graph.
        teacher_to_chain: cluster of each channel per group name, `[N]`.
        widths: width per group name.
        trees: of a nested chain, per group name: slots are the cuts of its tree, instead of even parts of clusters.
        importance: of each channel per group name, `[N]`: the first of the most important members leads each slot.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        teacher_to_chain: Mapping[str, np.ndarray],
        widths: Mapping[str, int],
        trees: Mapping[str, Tree] | None = None,
        importance: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        check_plan(graph, widths)
        self.graph = graph
        self.widths = dict(widths)
        names = [group.name for group in graph.groups]
        labels, asked = [teacher_to_chain[name] for name in names], [widths[name] for name in names]
        made = (
            slots_of_trees([trees[name] for name in names], labels, asked) if trees else slots_of_groups(labels, asked)
        )
        self.slots: dict[str, Slots] = dict(zip(names, made, strict=True))
        self._merged_into = np.empty(graph.num_channels, np.int64)  # per channel, the one whose place its slot takes
        for group, slots in zip(graph.groups, made, strict=True):
            self._merged_into[group.channels] = group.channels[slots.teacher_to_slot]
        self._leads: np.ndarray | None = None
        if importance:
            self._leads = np.zeros(graph.num_channels, bool)
            for group, slots in zip(graph.groups, made, strict=True):
                self._leads[group.channels[leaders(slots.teacher_to_slot, importance[group.name])]] = True
        self.fade = np.empty(graph.num_channels)
        for group, own, width in zip(graph.groups, labels, asked, strict=True):
            self.fade[group.channels] = fade_of_width(int(own.max()) + 1, width, group.size)
        self._occupied = occupied_places(graph, widths)
        self._position = np.empty(graph.num_channels, np.int64)  # per channel, for the axis that is being mapped
        self._axes: dict[Axis, AxisMap] = {}

    @cached_property
    def members(self) -> np.ndarray:
        """Number of teacher channels merged at each channel's place, shape `[num_channels]`; 0 where it is dropped."""
        return self.total(np.ones(self.graph.num_channels, np.int64))

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum of the members' values at each channel's place; both `[num_channels]`."""
        sums = np.zeros(self.graph.num_channels, values.dtype)
        np.add.at(sums, self._merged_into, values)
        return sums

    @cached_property
    def lifting(self) -> np.ndarray:
        """The entry of the student's feature that stands for each entry of the teacher's, `[teacher's length]`.

        Empty where the network has several features, or none. Example: the feature has the channels 0..3, and a student
        of width 3 the slots `(0, 2)`, `(1)` and `(3)`: its feature `[a, b, c]` stands for `[a, b, a, c]`, by the
        indices `0 1 0 2`.
        """
        channels = self.graph.feature
        moving = channels >= 0  # the others are in every student
        there = ~moving
        there[moving] = self._occupied[channels[moving]]
        position = np.cumsum(there) - 1
        lifting = position.copy()
        if moving.any():
            axis = self.map_of(Axis(channels[None, moving]))
            lifting[moving] = position[moving & there][axis.teacher_to_student.numpy()]
        return lifting

    def axis(self, tie: Tie) -> AxisMap:
        """The map of the axis that a tie lies along."""
        if tie.axis not in self._axes:
            self._axes[tie.axis] = self.map_of(tie.axis)
        return self._axes[tie.axis]

    def map_of(self, axis: Axis) -> AxisMap:
        """The map of any axis of channels, such as a feature's."""
        channels = axis.channels.reshape(-1)
        student_position = np.cumsum(self._occupied[channels]) - 1
        length = (int(student_position[-1]) + 1) // axis.blocks  # blocks of a checked plan are equally long
        leading = None if self._leads is None else torch.from_numpy(self._leads[channels])
        return AxisMap(axis.blocks, length, torch.from_numpy(student_position[self._seats(channels)]), leading)

    def _seats(self, channels: np.ndarray) -> np.ndarray:
        """Position along an axis of the place of each position's channel, shape as `channels`."""
        order = np.arange(len(channels))
        self._position[channels] = order
        if np.array_equal(self._position[channels], order):  # every channel occurs once
            return self._position[self._merged_into[channels]]
        occurrence = _occurrences(channels)
        repeats = int(occurrence.max()) + 1
        position = np.empty(self.graph.num_channels * repeats, np.int64)
        position[channels * repeats + occurrence] = order
        return position[self._merged_into[channels] * repeats + occurrence]


def fade_of_width(narrowest: int, width: int, widest: int) -> float:
    """How much of the S-student's own a student has, see `nesting.py`: 1 at the chain's width, 0 at the teacher's.

    It is NaN for a group that has one width, which follows the others.
    """
    return (widest - width) / (widest - narrowest) if widest > narrowest else np.nan


def leaders(slots: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """The most important member of each slot, the first of equal ones; shape `[slots]`.

    Example: slots `0 0 1 1` and importance `1 3 2 2` give `1 2`.
    """
    order = np.lexsort((-importance, slots))
    return order[np.r_[True, np.diff(slots[order]) != 0]]


def student_to_chain(student: AxisMap, chain: AxisMap) -> Tensor:
    """Chain position whose row each student position takes, shape `[student positions]`."""
    index = torch.empty(student.blocks * student.length, dtype=torch.int64)
    index[student.teacher_to_student] = chain.teacher_to_student
    return index


def _occurrences(channels: np.ndarray) -> np.ndarray:
    """How many times each position's channel occurred on the axis before, e.g. `[3, 5, 3]` -> `[0, 0, 1]`."""
    order = np.argsort(channels, kind="stable")
    ordered = channels[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    result = np.empty(len(channels), np.int64)
    result[order] = np.arange(len(channels)) - np.repeat(starts, np.diff(np.r_[starts, len(channels)]))
    return result
