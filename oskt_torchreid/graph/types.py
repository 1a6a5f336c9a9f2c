"""The channel graph as plain data: which axis of which tensor is made of which channels.

Example (4 channels): ``Linear(3, 4)`` followed by ``Linear(4, 2)`` has the channels ``0..3`` (the hidden units) and
``4..5`` (the outputs). Its ties are::

    Tie("0.weight", axis=0, role="row",    channels=[[0, 1, 2, 3]])
    Tie("0.bias",   axis=0, role="row",    channels=[[0, 1, 2, 3]])
    Tie("1.weight", axis=1, role="column", channels=[[0, 1, 2, 3]])
    Tie("1.weight", axis=0, role="row",    channels=[[4, 5]])
    Tie("1.bias",   axis=0, role="row",    channels=[[4, 5]])

and its groups ``{0, 1, 2, 3}`` and, fixed because it is an output, ``{4, 5}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from tabulate import tabulate

from .plans import WidthPlans

Role = Literal["row", "column"]


@dataclass(frozen=True, eq=False)
class Tie:
    """Axis ``axis`` of state-dict tensor ``tensor`` is made of ``channels``.

    Attributes:
        tensor: name of the tensor in the state dict.
        axis: the axis that the channels lie along.
        role: ``row`` where the tensor's operator produces (or scales) the channels, ``column`` where it consumes them.
        channels: channel per position, shape ``[blocks, length]``. There is one block, except along a grouped
            convolution, which has one per convolution group: consecutive positions of axis 0, the same ones of axis 1.
    """

    tensor: str
    axis: int
    role: Role
    channels: np.ndarray

    @property
    def blocks(self) -> int:
        """Number of convolution groups along the axis."""
        return self.channels.shape[0]

    def shaped(self, length_per_block: int) -> int:
        """Length of the tensor's axis when every block holds ``length_per_block`` positions."""
        return length_per_block * self.blocks if self.axis == 0 else length_per_block


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are clustered together and share one width.

    Attributes:
        name: the module that first produces the group, with ``[block]`` or ``:part`` where one module produces several.
        channels: channel ids in increasing order, shape ``[size]``.
        fixed: why the group keeps its width, or an empty string where it may be narrowed.
    """

    name: str
    channels: np.ndarray
    fixed: str = ""

    @property
    def size(self) -> int:
        """Number of channels, which is the teacher's width."""
        return len(self.channels)


@dataclass(frozen=True, eq=False)
class SplitPoint:
    """An integer attribute of a module that says after how many channels its code takes them apart.

    Attributes:
        module: name of the module.
        attribute: name of the attribute; the teacher's value is the length of every part but the last.
        parts: channels of each part.
    """

    module: str
    attribute: str
    parts: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Route:
    """A module whose own code does nothing but move channels between the modules that it calls (perhaps none).

    Source 0 is its input and source ``i`` the output of its call ``i - 1``. What each call is given, and at last the
    output of the module, is made of channels of some sources. Example: a shuffle of 4 channels calls nothing, has the
    source ``[0, 1, 2, 3]``, reads ``((0,),)`` and has the order ``[0, 2, 1, 3]``.

    Attributes:
        module: name of the module.
        calls: names of the called modules, in order, relative to its own.
        sources: channels of each source.
        reads: per call, and for the output, which sources are read; they are joined in this order.
        orders: per call, and for the output, positions in the joined sources.
    """

    module: str
    calls: tuple[str, ...]
    sources: tuple[np.ndarray, ...]
    reads: tuple[tuple[int, ...], ...]
    orders: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Reduction:
    """A module whose own code reduces its input over channels, and does nothing else with it.

    Attributes:
        module: name of the module.
        operator: ``mean`` or ``sum``.
        channels: channels of its input in order, shape ``[length]``.
    """

    module: str
    operator: str
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelNorm:
    """A module that normalises over channels (layer norm, group norm), which counts merged channels once.

    A student computes what its teacher computes only where all its slots along a block stand for equally many channels.

    Attributes:
        module: name of the module.
        channels: channel per position, shape ``[blocks, length]``; each block is normalised by itself.
    """

    module: str
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class Attention:
    """A module that multiplies queries with keys, head by head: ``softmax(scale * q . k) v``.

    The product sums over a head's channels, so merged ones count once instead of as often as they were merged.
    Queries, keys and values of a head are one set of channels; all heads get equal widths.

    Attributes:
        module: name of the module.
        channels: channels of each head, shape ``[heads, head size]``.
        positions: tensor -> positions along its axis 0 that produce queries and keys; empty where something stands
            between these and the linear layers that issue them, so that nothing can be folded into their rows.
        scale_follows: whether the scale is the head's own ``size ** -0.5``, and not a number of the code's.
    """

    module: str
    channels: np.ndarray
    positions: dict[str, np.ndarray]
    scale_follows: bool


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
