"""Where everything of one width plan sits: slots of every group, and index arrays along every axis of the graph.

Slots are given the *places* of their group (see ``graph/surgery/shell.py``): slot ``j`` sits where the group's
``j``-th channel sat, and what no slot sits on closes up. A channel that stands several times on one axis (a flattened
map) is followed occurrence by occurrence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..graph import Axis, ChannelGraph, Tie
from ..graph.plans import check_plan, occupied
from .slots import Slots, slots_of_groups


@dataclass(frozen=True, eq=False)
class AxisMap:
    """One axis of the teacher against the same axis of a student.

    Attributes:
        blocks: number of convolution groups along it.
        length: the student's length per block.
        teacher_to_student: student position of each teacher position, shape ``[blocks * teacher's length]``; positions
            count through the blocks.
    """

    blocks: int
    length: int
    teacher_to_student: Tensor

    @cached_property
    def is_identity(self) -> bool:
        """Whether every position stays where it is."""
        return bool(torch.equal(self.teacher_to_student, torch.arange(self.blocks * self.length)))

    @cached_property
    def members(self) -> Tensor:
        """Teacher positions per student position, shape ``[blocks * length]``."""
        return torch.bincount(self.teacher_to_student, minlength=self.blocks * self.length)


def joined(axes: Sequence[AxisMap], alignment: int = 1) -> AxisMap:
    """Several axes, one behind the other, as one.

    Example: the maps ``0 1 0`` (two student positions) and ``0 0`` (one) are together ``0 1 0 2 2``; with an alignment
    of 4 they are ``0 1 0 4 4``, and nothing of the teacher's stands at 2, 3 and 5 to 7.

    Args:
        axes: in order.
        alignment: every axis begins at a multiple of it; see ``spans``.

    Returns:
        A map of one block that is ``sum(spans(axes, alignment))`` long.
    """
    starts = np.cumsum([0, *spans(axes, alignment)])
    positions = [axis.teacher_to_student + int(start) for axis, start in zip(axes, starts[:-1], strict=True)]
    return AxisMap(1, int(starts[-1]), torch.cat(positions))


def spans(axes: Sequence[AxisMap], alignment: int = 1) -> list[int]:
    """Positions that each axis takes among joined ones: its student length, rounded up. Of 4: 3 and 6 are 4 and 8."""
    return [-(-axis.blocks * axis.length // alignment) * alignment for axis in axes]


class Layout:
    """Slots and axis maps of one width plan; computed once per axis and shared by the tensors along it."""

    def __init__(
        self, graph: ChannelGraph, teacher_to_chain: Mapping[str, np.ndarray], widths: Mapping[str, int]
    ) -> None:
        check_plan(graph, widths)
        self.graph = graph
        self.widths = dict(widths)
        names = [group.name for group in graph.groups]
        made = slots_of_groups([teacher_to_chain[name] for name in names], [widths[name] for name in names])
        self.slots: dict[str, Slots] = dict(zip(names, made, strict=True))
        place = np.empty(graph.num_channels, np.int64)
        for group, slots in zip(graph.groups, made, strict=True):
            place[group.channels] = group.channels[slots.teacher_to_slot]
        self._place = place
        self._occupied = occupied(graph, widths)
        self._position = np.empty(graph.num_channels, np.int64)  # per channel, of the axis that is being mapped
        self._axes: dict[Axis, AxisMap] = {}

    @cached_property
    def members(self) -> np.ndarray:
        """Teacher channels that stand at each channel's place, shape ``[num_channels]``; 0 where the axes close up."""
        return self.total(np.ones(self.graph.num_channels, np.int64))

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum of the members' values at each channel's place; both ``[num_channels]``."""
        sums = np.zeros(self.graph.num_channels, values.dtype)
        np.add.at(sums, self._place, values)
        return sums

    def axis(self, tie: Tie) -> AxisMap:
        """The map of the axis that a tie lies along."""
        if tie.axis not in self._axes:
            self._axes[tie.axis] = self._map(tie.axis)
        return self._axes[tie.axis]

    def _map(self, axis: Axis) -> AxisMap:
        channels = axis.channels.reshape(-1)
        student_position = np.cumsum(self._occupied[channels]) - 1
        length = (int(student_position[-1]) + 1) // axis.blocks  # in a plan that was checked blocks are equally long
        return AxisMap(axis.blocks, length, torch.from_numpy(student_position[self._seats(channels)]))

    def _seats(self, channels: np.ndarray) -> np.ndarray:
        """Position along an axis of the place that each position's channel is given, shape as ``channels``."""
        order = np.arange(len(channels))
        self._position[channels] = order
        if np.array_equal(self._position[channels], order):  # every channel stands once
            return self._position[self._place[channels]]
        occurrence = _occurrences(channels)
        repeats = int(occurrence.max()) + 1
        position = np.empty(self.graph.num_channels * repeats, np.int64)
        position[channels * repeats + occurrence] = order
        return position[self._place[channels] * repeats + occurrence]


def student_to_chain(student: AxisMap, chain: AxisMap) -> Tensor:
    """Chain position whose row each student position takes, shape ``[student positions]``."""
    index = torch.empty(student.blocks * student.length, dtype=torch.int64)
    index[student.teacher_to_student] = chain.teacher_to_student
    return index


def _occurrences(channels: np.ndarray) -> np.ndarray:
    """How many times each position's channel stood on the axis before, e.g. ``[3, 5, 3]`` -> ``[0, 0, 1]``."""
    order = np.argsort(channels, kind="stable")
    ordered = channels[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    result = np.empty(len(channels), np.int64)
    result[order] = np.arange(len(channels)) - np.repeat(starts, np.diff(np.r_[starts, len(channels)]))
    return result
