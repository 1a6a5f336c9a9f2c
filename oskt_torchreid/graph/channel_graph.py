"""The channel graph of one network: which axis of which tensor is made of which channels, and which belong together.

Example (4 channels): ``Linear(3, 4)`` followed by ``Linear(4, 2)`` has the channels ``0..3`` (the hidden units) and
``4..5`` (the outputs). With the axes ``hidden = Axis([[0, 1, 2, 3]])`` and ``output = Axis([[4, 5]])`` its ties are::

    Tie("0.weight", dimension=0, role="row",    axis=hidden)
    Tie("0.bias",   dimension=0, role="row",    axis=hidden)
    Tie("1.weight", dimension=1, role="column", axis=hidden)
    Tie("1.weight", dimension=0, role="row",    axis=output)
    Tie("1.bias",   dimension=0, role="row",    axis=output)

and its groups ``{0, 1, 2, 3}`` and, fixed because it is an output, ``{4, 5}``.

A width plan gives each group a width. It is legal where every width lies in its group's range (fixed groups stay
whole), and where blocks side by side along one axis (convolution groups, heads, blocks of a norm) are equally wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from tabulate import tabulate

from ..errors import WidthError
from .modules import Attention, ChannelNorm, Reduction, Route, SplitPoint

Role = Literal["row", "column"]


@dataclass(frozen=True, eq=False)
class Axis:
    """Channels in a row, as they lie along a dimension of one tensor or of several; equal only to itself.

    Attributes:
        channels: channel per position, shape ``[blocks, length]``. There is one block, except along a grouped
            convolution, which has one per convolution group: consecutive positions of dimension 0, the same ones of
            dimension 1.
    """

    channels: np.ndarray

    @property
    def blocks(self) -> int:
        """Number of convolution groups."""
        return self.channels.shape[0]


@dataclass(frozen=True, eq=False)
class Tie:
    """Dimension ``dimension`` of state-dict tensor ``tensor`` is made of the channels of ``axis``.

    Attributes:
        tensor: name of the tensor in the state dict.
        dimension: the dimension that the channels lie along.
        role: ``row`` where the tensor's operator produces (or scales) the channels, ``column`` where it consumes them.
        axis: the channels; ties over the same ones share it.
    """

    tensor: str
    dimension: int
    role: Role
    axis: Axis

    @property
    def place(self) -> tuple[str, int, Role]:
        """Tensor, dimension and role, which no other tie of a graph has together."""
        return self.tensor, self.dimension, self.role

    @property
    def channels(self) -> np.ndarray:
        """Channel per position, shape ``[blocks, length]``."""
        return self.axis.channels

    @property
    def blocks(self) -> int:
        """Number of convolution groups along it."""
        return self.axis.blocks

    def shaped(self, length_per_block: int) -> int:
        """Length of the tensor's dimension when every block holds ``length_per_block`` positions."""
        return length_per_block * self.blocks if self.dimension == 0 else length_per_block


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
class ChannelGraph:
    """Channels, ties and groups of one network.

    Attributes:
        ties: every tie, in the order in which the forward pass met them. Ties over the same channels share one axis.
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

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Every axis that ties lie along, once, in order."""
        return tuple(dict.fromkeys(tie.axis for tie in self.ties))

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

    @cached_property
    def row_ties(self) -> dict[str, Tie]:
        """The tie in the role ``row`` per tensor: every tied one has it."""
        return {tie.tensor: tie for tie in reversed(self.ties) if tie.role == "row"}

    @cached_property
    def column_ties(self) -> dict[str, Tie]:
        """The tie in the role ``column`` per tensor: matrices have it, but depthwise ones and those of the image."""
        return {tie.tensor: tie for tie in reversed(self.ties) if tie.role == "column"}

    @cached_property
    def places(self) -> dict[tuple[str, int, Role], Tie]:
        """Every tie by its place."""
        return {tie.place: tie for tie in self.ties}

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

    # ---- width plans -----------------------------------------------------------------------------------------------

    def ratio_plan(self, ratio: float, least: Mapping[str, int] | None = None) -> dict[str, int]:
        """Width plan of a width ratio: ``rounded_down``, and ``balanced`` where blocks would get unequal lengths.

        Args:
            ratio: share of the channels to keep.
            least: a legal plan below which no group goes, such as a chain's widths.
        """
        return self.balanced(self.rounded_down(ratio, least), least)

    def rounded_down(self, ratio: float, least: Mapping[str, int] | None = None) -> dict[str, int]:
        """``floor(ratio * size)`` channels of each group, at least one; fixed groups whole. It may be no legal plan.

        With ``least``, at least that many.

        Rounding down is what the stock families do (``mid_channels // 16`` gates), so that a ratio of 0.25 of
        ``osnet_x1_0`` gives exactly the widths of ``osnet_x0_25``.

        Raises:
            WidthError: a ratio outside of (0, 1].
        """
        if not 0 < ratio <= 1:
            raise WidthError(f"width ratio {ratio} is outside of (0, 1]; give the share of the channels to keep")
        widths = {g.name: g.size if g.fixed else max(1, int(ratio * g.size + 1e-6)) for g in self.groups}
        return {name: max(width, least[name]) for name, width in widths.items()} if least else widths

    def balanced(self, widths: Mapping[str, int], least: Mapping[str, int] | None = None) -> dict[str, int]:
        """The nearest legal widths below: lowered where blocks side by side would get different lengths.

        In every block that is wider than the narrowest, the groups with the largest share of their channels give way,
        one channel at a time, until all axes agree. Example: blocks of 27 + 26 and 26 + 27 channels at widths 14 + 13
        and 13 + 13 become 13 + 13 each.

        Args:
            widths: width per group name.
            least: narrowest width per group name; by default one channel, and fixed groups whole.

        Raises:
            WidthError: a block that cannot be as narrow as another one beside it.
        """
        width = np.array([widths[group.name] for group in self.groups])
        lowest = np.array([least[group.name] if least else _least(group) for group in self.groups])
        while sum(self._lower(blocks, width, lowest) for blocks in self._blocked_groups):
            pass  # what one axis gives up, others may have to give up as well
        return {group.name: int(value) for group, value in zip(self.groups, width, strict=True)}

    def _lower(self, blocks: list[np.ndarray], width: np.ndarray, least: np.ndarray) -> bool:
        """Lowers widths, ``[groups]``, in place, until the blocks of one axis agree; whether it had to."""
        totals = [int(width[groups].sum()) for groups in blocks]
        if max(totals) == min(totals):
            return False
        size = np.array([group.size for group in self.groups])
        for groups, total in zip(blocks, totals, strict=True):
            for _ in range(total - min(totals)):
                share = np.where(width[groups] > least[groups], width[groups] / size[groups], 0)
                if share.max() == 0:
                    raise self._unequal(blocks, {group.name: int(width[i]) for i, group in enumerate(self.groups)})
                width[groups[share.argmax()]] -= 1
        return True

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Raises ``WidthError`` unless ``widths`` names every group once, in range, and no fixed group narrower."""
        unknown = [name for name in widths if name not in self.sizes]
        missing = [name for name in self.sizes if name not in widths]
        if unknown or missing:
            raise WidthError(
                f"a width plan names each of the {len(self.groups)} channel groups once; "
                f"missing: {missing[:3] or 'none'}, unknown: {unknown[:3] or 'none'} (see graph.summary())"
            )
        for group in self.groups:
            width, least = widths[group.name], _least(group)
            if not least <= width <= group.size:
                why = f" (the group is fixed: {group.fixed})" if group.fixed else ""
                raise WidthError(
                    f"width {width} of group '{group.name}' is outside of [{least}, {group.size}]{why}; a student has "
                    "at most the teacher's channels, and all of a fixed group"
                )

    def check_plan(self, widths: Mapping[str, int]) -> None:
        """Raises ``WidthError`` unless a plan is legal: see ``check_widths``; and blocks side by side equally wide."""
        self.check_widths(widths)
        places = occupied(self, widths)
        for channels, blocks in zip(self._blocked_axes, self._blocked_groups, strict=True):
            lengths = places[channels].sum(1)
            if (lengths != lengths[0]).any():
                raise self._unequal(blocks, widths)

    @cached_property
    def _blocked_axes(self) -> list[np.ndarray]:
        """Channels ``[blocks, length]`` of every axis that has several blocks; heads are blocks as well."""
        parts = (*self.axes, *self.norms, *self.attentions)
        return [part.channels for part in parts if len(part.channels) > 1]

    @cached_property
    def _blocked_groups(self) -> list[list[np.ndarray]]:
        """Indices of the groups in each block of each of ``_blocked_axes``."""
        return [[np.unique(self.group_of_channel[block]) for block in channels] for channels in self._blocked_axes]

    def _unequal(self, blocks: list[np.ndarray], widths: Mapping[str, int]) -> WidthError:
        """The error of blocks of different lengths; ``blocks`` are indices of the groups in each."""
        lengths = [sum(widths[group.name] for group in self._members(block)) for block in blocks]
        names = [" + ".join(f"'{group.name}'" for group in self._members(block)) for block in blocks]
        narrow, wide = int(np.argmin(lengths)), int(np.argmax(lengths))
        least = max(sum(_least(group) for group in self._members(block)) for block in blocks)
        most = min(sum(group.size for group in self._members(block)) for block in blocks)
        return WidthError(
            "convolution groups, heads and blocks of a norm side by side are equally wide, but "
            f"{names[wide]} would get {lengths[wide]} channels and {names[narrow]} beside it {lengths[narrow]}; legal "
            f"is the same width for each of the {len(blocks)}, from {least} to {most} (graph.balanced gives the "
            "nearest plan, where there is one)"
        )

    def _members(self, block: np.ndarray) -> Iterator[ChannelGroup]:
        return (self.groups[index] for index in block)


def _least(group: ChannelGroup) -> int:
    return group.size if group.fixed else 1


def occupied(graph: ChannelGraph, widths: Mapping[str, int]) -> np.ndarray:
    """Whether a student of these widths has a channel in each channel's place, shape ``[num_channels]``.

    Example: a group of channels ``0..3`` at width 2 keeps the places ``0`` and ``1``.
    """
    width_of_group = np.array([widths[group.name] for group in graph.groups])
    return graph.rank_in_group < width_of_group[graph.group_of_channel]
