"""The channel graph of one network, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from tabulate import tabulate

from .plans import WidthPlans
from .types import Attention, ChannelGroup, ChannelNorm, Reduction, Route, SplitPoint, Tie


@dataclass(frozen=True, eq=False)
class ChannelGraph(WidthPlans):
    """Channels, ties and groups of one network.

    Attributes:
        ties: every tie, in the order in which the forward pass met them. Ties over the same channels share one array.
        groups: every group, in order of its first channel; together they hold each channel once.
        matrices: names of the tensors that are weights of convolutions or linear layers: their rows are clustered and
            merged; every other tied tensor is a vector over its channels.
        heads: the matrices whose rows are outputs of the network (its classifiers).
        unused: tensors that the traced forward pass never touched; they keep their shape.
        input_size: ``(channels, height, width)`` of the traced image.
        splits: attributes that follow the widths of the channels they part.
        routes: modules whose own code only moves channels.
        reductions: modules whose own code reduces their input over channels.
        norms: modules that normalise over channels.
        attentions: modules that multiply queries with keys.
    """

    ties: tuple[Tie, ...]
    groups: tuple[ChannelGroup, ...]
    matrices: frozenset[str]
    heads: frozenset[str]
    unused: tuple[str, ...]
    input_size: tuple[int, ...]
    splits: tuple[SplitPoint, ...] = ()
    routes: tuple[Route, ...] = ()
    reductions: tuple[Reduction, ...] = ()
    norms: tuple[ChannelNorm, ...] = ()
    attentions: tuple[Attention, ...] = ()
    _ties_of: dict[str, tuple[Tie, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for tie in self.ties:
            self._ties_of[tie.tensor] = (*self._ties_of.get(tie.tensor, ()), tie)

    @cached_property
    def num_channels(self) -> int:
        """Number of channels of all groups together."""
        return sum(group.size for group in self.groups)

    @cached_property
    def group_of_channel(self) -> np.ndarray:
        """Index into ``groups`` per channel, shape ``[num_channels]``."""
        return self._per_channel([np.full(group.size, index) for index, group in enumerate(self.groups)])

    @cached_property
    def rank_in_group(self) -> np.ndarray:
        """Place of each channel within its group, shape ``[num_channels]``."""
        return self._per_channel([np.arange(group.size) for group in self.groups])

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Teacher's width per group name."""
        return {group.name: group.size for group in self.groups}

    @cached_property
    def module_blocks(self) -> dict[str, int]:
        """Heads of each attention, and blocks of each norm over channels: what shapes of tensors do not tell."""
        return {axis.module: len(axis.channels) for axis in (*self.norms, *self.attentions)}

    def ties_of(self, tensor: str) -> tuple[Tie, ...]:
        """The ties of one tensor; empty where it has none."""
        return self._ties_of.get(tensor, ())

    def row_tie(self, tensor: str) -> Tie | None:
        """The tie of a tensor in the role ``row``, if there is one."""
        return next((tie for tie in self.ties_of(tensor) if tie.role == "row"), None)

    def column_tie(self, tensor: str) -> Tie | None:
        """The tie of a tensor in the role ``column``, if there is one."""
        return next((tie for tie in self.ties_of(tensor) if tie.role == "column"), None)

    def summary(self) -> str:
        """The groups as a table: name, size, number of row and column ties, and why a group is fixed."""
        rows = np.zeros(len(self.groups), int)
        columns = np.zeros(len(self.groups), int)
        for tie in self.ties:
            counts = rows if tie.role == "row" else columns
            counts[np.unique(self.group_of_channel[tie.channels])] += 1
        table = [
            (group.name, group.size, rows[index], columns[index], group.fixed)
            for index, group in enumerate(self.groups)
        ]
        head = f"{self.num_channels} channels in {len(self.groups)} groups, {len(self.ties)} ties\n"
        return head + tabulate(table, headers=("group", "channels", "row ties", "column ties", "fixed"))

    def _per_channel(self, per_group: list[np.ndarray]) -> np.ndarray:
        result = np.empty(self.num_channels, np.int64)
        if self.groups:
            result[np.concatenate([group.channels for group in self.groups])] = np.concatenate(per_group)
        return result
