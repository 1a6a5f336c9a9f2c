"""Width plans of a channel graph: of a ratio, made legal, and checked.

A plan gives each group a width. It is legal where every width lies in its group's range (fixed groups stay whole), and
where blocks side by side along one axis (convolution groups, heads, blocks of a norm) get equally many channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from ..errors import WidthError
from .types import Attention, ChannelGroup, ChannelNorm, Tie


class WidthPlans:
    """The part of ``ChannelGraph`` that makes and checks width plans."""

    ties: tuple[Tie, ...]
    groups: tuple[ChannelGroup, ...]
    norms: tuple[ChannelNorm, ...]
    attentions: tuple[Attention, ...]
    sizes: dict[str, int]
    group_of_channel: np.ndarray
    rank_in_group: np.ndarray

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
        axes = (*self.ties, *self.norms, *self.attentions)
        return list({id(axis.channels): axis.channels for axis in axes if len(axis.channels) > 1}.values())

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


def occupied(graph: WidthPlans, widths: Mapping[str, int]) -> np.ndarray:
    """Whether a student of these widths has a channel in each channel's place, shape ``[num_channels]``.

    Example: a group of channels ``0..3`` at width 2 keeps the places ``0`` and ``1``.
    """
    width_of_group = np.array([widths[group.name] for group in graph.groups])
    return graph.rank_in_group < width_of_group[graph.group_of_channel]
