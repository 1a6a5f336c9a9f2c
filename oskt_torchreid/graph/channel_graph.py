"""The channel graph of one network: the channels along every axis of every tensor, and the groups they form.

Example (4 channels): `Linear(3, 4)` followed by `Linear(4, 2)` has the channels `0..3` (the hidden units) and
`4..5` (the outputs). With the axes `hidden = Axis([[0, 1, 2, 3]])` and `output = Axis([[4, 5]])` its ties are::

    Tie("0.weight", dimension=0, role="row",    axis=hidden)
    Tie("0.bias",   dimension=0, role="row",    axis=hidden)
    Tie("1.weight", dimension=1, role="column", axis=hidden)
    Tie("1.weight", dimension=0, role="row",    axis=output)
    Tie("1.bias",   dimension=0, role="row",    axis=output)

and its groups `{0, 1, 2, 3}` and, fixed because it is an output, `{4, 5}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from tabulate import tabulate

from .keeping import Kept
from .modules import Attention, ChannelNorm, Parts, Reduction, Route, SplitPoint

Role = Literal["row", "column"]
"""A tensor's operator produces (or scales) the channels of a row, and consumes those of a column."""


@dataclass(frozen=True, eq=False)
class Axis:
    """A sequence of channels along a dimension of one or several tensors; an axis is equal only to itself.

    Attributes:
        channels: channel per position, shape `[blocks, length]`. There is one block, except for a grouped convolution,
            which has one block per convolution group: consecutive positions along dimension 0, the same positions along
            dimension 1.
    """

    channels: np.ndarray

    @property
    def blocks(self) -> int:
        """Number of convolution groups."""
        return self.channels.shape[0]


@dataclass(frozen=True, eq=False)
class Tie:
    """Dimension `dimension` of state-dict tensor `tensor` is made of the channels of `axis`.

    Attributes:
        tensor: name of the tensor in the state dict.
        dimension: the dimension that the channels lie along.
        role: `row` where the tensor's operator produces (or scales) the channels, `column` where it consumes them.
        axis: the channels; ties over the same ones share it.
    """

    tensor: str
    dimension: int
    role: Role
    axis: Axis

    @property
    def key(self) -> tuple[str, int, Role]:
        """Tensor, dimension and role: unique to each tie of a graph."""
        return self.tensor, self.dimension, self.role

    @property
    def channels(self) -> np.ndarray:
        """Channel per position, shape `[blocks, length]`."""
        return self.axis.channels

    @property
    def blocks(self) -> int:
        """Number of convolution groups along it."""
        return self.axis.blocks

    def shaped(self, length_per_block: int) -> int:
        """Length of the tensor's dimension if every block holds `length_per_block` positions."""
        return length_per_block * self.blocks if self.dimension == 0 else length_per_block


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are clustered together and share one width.

    Attributes:
        name: the module that first produces the group, with `[block]` or `:part` where one module produces several.
        channels: channel ids in increasing order, shape `[size]`.
        fixed: why the group keeps its width, or an empty string where it may be narrowed.
    """

    name: str
    channels: np.ndarray
    fixed: str = ""

    @property
    def size(self) -> int:
        """Number of channels, which is the teacher's width."""
        return len(self.channels)


@dataclass(frozen=True, eq=False, repr=False)
class ChannelGraph:
    """Channels, ties and groups of one network.

    Attributes:
        ties: every tie, in the order in which the forward pass met them. Ties over the same channels share one axis.
        groups: every group, in order of its first channel; together they hold each channel once.
        matrices: names of the tensors that are weights of convolutions or linear layers: their rows are clustered and
            merged; every other tied tensor is a vector over its channels.
        heads: the classifiers: matrices that give an image one number per row, which the network returns as it is.
        unused: tensors that neither training nor evaluation touched; they keep their shape.
        input_size: `(channels, height, width)` of the traced image.
        splits: attributes that follow the widths of the channels they split.
        routes: modules whose own code only moves channels.
        reductions: modules whose own code reduces their input over channels.
        norms: modules that normalise over channels.
        attentions: modules that multiply queries with keys.
        parameters: how many numbers each parameter of the network has; empty in a graph of an earlier version's file.
        parts: channels that modules' own code cuts into equal parts.
        keep: names of the modules that were asked to stay whole.
        kept: every part that stays whole, these modules included.
        feature: channel per position of the feature, `[length]`; -1 for what is in every student. Where evaluation
            returns class scores, the feature is what their classifier is given. Empty where there are several features,
            or none `[batch, length]`, and in a graph of an earlier version's file.
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
    parameters: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[Parts, ...] = ()
    keep: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    feature: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

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
        """Index into `groups` per channel, shape `[num_channels]`."""
        return self._per_channel([np.full(group.size, index) for index, group in enumerate(self.groups)])

    @cached_property
    def rank_in_group(self) -> np.ndarray:
        """Place of each channel within its group, shape `[num_channels]`."""
        return self._per_channel([np.arange(group.size) for group in self.groups])

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """Parameters that neither training nor evaluation touched; students have all of them."""
        return tuple(name for name in self.unused if name in self.parameters)

    @cached_property
    def immovable(self) -> np.ndarray:
        """Whether each channel is in every student, shape `[num_channels]`: fixed ones, and those alone in their group.

        Class scores are not among them: they are results, as wide as there are classes.
        """
        stays = np.array([bool(group.fixed) or group.size == 1 for group in self.groups], bool)[self.group_of_channel]
        for name in self.heads:
            stays[self.row_ties[name].channels] = False
        return stays

    @cached_property
    def immovable_share(self) -> float:
        """The share of the parameters that make or read immovable channels, or lie along no channels at all.

        Example: of a matrix of 4 rows and 6 columns, 1 row and 2 columns are immovable: all but `3 * 4` of its 24
        numbers count.
        """
        return self._share(self.immovable, untied=1.0)

    @cached_property
    def whole(self) -> np.ndarray:
        """Whether each channel is one of a part that is kept whole, shape `[num_channels]`."""
        reasons = {part.reason for part in self.kept}
        return np.array([group.fixed in reasons for group in self.groups], bool)[self.group_of_channel]

    @cached_property
    def kept_share(self) -> float:
        """The share of the parameters that are in parts kept whole, or make or read the channels of such parts."""
        return self._share(self.whole, untied=0.0)

    def _share(self, channels: np.ndarray, untied: float) -> float:
        """The share of the parameters that lie along chosen channels, a mask; or along none, of which `untied`."""
        others = dict.fromkeys((tie.tensor for tie in self.ties), 1.0)
        for tie in self.ties:
            others[tie.tensor] *= 1 - float(channels[tie.channels].mean())
        total = sum(self.parameters.values())
        chosen = sum(count * (1 - others.get(name, 1 - untied)) for name, count in self.parameters.items())
        return chosen / total if total else 0.0

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Teacher's width per group name."""
        return {group.name: group.size for group in self.groups}

    @cached_property
    def module_blocks(self) -> dict[str, int]:
        """Heads of each attention, and blocks of each norm over channels: shapes of tensors do not show them."""
        modules: list[ChannelNorm | Attention] = [*self.norms, *self.attentions]
        return {module.module: len(module.channels) for module in modules}

    @cached_property
    def row_ties(self) -> dict[str, Tie]:
        """The tie in the role `row` per tensor: every tied tensor has one."""
        return {tie.tensor: tie for tie in reversed(self.ties) if tie.role == "row"}

    @cached_property
    def column_ties(self) -> dict[str, Tie]:
        """The tie in the role `column` per tensor: matrices have one, unless they are depthwise or read the image."""
        return {tie.tensor: tie for tie in reversed(self.ties) if tie.role == "column"}

    @cached_property
    def ties_by_key(self) -> dict[tuple[str, int, Role], Tie]:
        """Every tie by its `key`."""
        return {tie.key: tie for tie in self.ties}

    def __repr__(self) -> str:
        return f"<ChannelGraph of {self.num_channels} channels in {len(self.groups)} groups, {len(self.ties)} ties>"

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

    @cached_property
    def blocked_axes(self) -> list[np.ndarray]:
        """Channels `[blocks, length]` of every axis that has several blocks; heads and parts are blocks as well."""
        channels = [axis.channels for axis in self.axes]
        channels += [norm.channels for norm in self.norms]
        channels += [attention.channels for attention in self.attentions]
        channels += [parts.channels for parts in self.parts]
        return [blocks for blocks in channels if len(blocks) > 1]

    @cached_property
    def blocked_groups(self) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Per block of each of `blocked_axes`: indices of its groups, and how often it has their channels."""
        return [[self._counted(block) for block in channels] for channels in self.blocked_axes]

    def _counted(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        groups, positions = np.unique(self.group_of_channel[block], return_counts=True)
        _, channels = np.unique(self.group_of_channel[np.unique(block)], return_counts=True)
        return groups, positions // channels
