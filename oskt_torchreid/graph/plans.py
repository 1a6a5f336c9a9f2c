"""Width plans of a channel graph: made from a user's request, adjusted until legal, and checked.

A plan gives each group a width. It is legal where every width lies in its group's range (fixed groups stay whole), and
where blocks of one axis (convolution groups, heads, blocks of a norm) are equally wide.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import Protocol

import numpy as np

from ..errors import WidthError
from ..on_demand import integrate_if_installed
from ..registry import nearest
from .channel_graph import ChannelGraph, ChannelGroup

Width = float | str | Mapping[str, float]
"""A ratio of a network's channels, the name of a preset, or a width or ratio per group name or pattern."""
logger = logging.getLogger(__name__)


class Preset(Protocol):
    """Published widths of one architecture."""

    @property
    def family(self) -> str:
        """The networks it was published for."""

    def plan(self, graph: ChannelGraph) -> dict[str, int] | None:
        """Width per channel group; `None` for a graph of another architecture."""


PRESETS: dict[str, Preset] = {}
"""Presets by name, registered by the modules that know the architectures."""


def register_presets(presets: Mapping[str, Preset]) -> None:
    """Makes names of presets known as widths."""
    PRESETS.update(presets)


def check_preset(name: str) -> None:
    """Raises `WidthError` for an unknown name of a width, before there is a network that it would be of."""
    if name not in PRESETS:
        integrate_if_installed()  # it registers this package's own
    if name not in PRESETS:
        presets = f", or a preset: {', '.join(PRESETS)}" if PRESETS else ""
        raise WidthError(f"unknown width '{name}'{nearest(name, PRESETS)}; give a ratio such as 0.5{presets}")


def preset_plan(name: str, graph: ChannelGraph) -> dict[str, int]:
    """Width per channel group of a preset.

    Raises:
        WidthError: an unknown name, or a preset of another architecture.
    """
    check_preset(name)
    plan = PRESETS[name].plan(graph)
    if plan is None:
        raise WidthError(
            f"preset '{name}' belongs to {PRESETS[name].family}, whose channel groups this network does not have; give "
            "a ratio such as 0.5"
        )
    return plan


def full_plan(graph: ChannelGraph, width: Width) -> dict[str, int]:
    """A width for every group.

    If heads, or the blocks of a grouped convolution, would get unequal widths, the wider ones are lowered and a warning
    names them.

    Args:
        graph: the teacher's channel graph.
        width: a ratio of the teacher's channels, the name of a preset, or a width per group name (the others keep the
            teacher's). A name may be a pattern (`"layer4.*"`; later entries win); whole numbers are widths, fractions
            are ratios of the group's channels.

    Raises:
        WidthError: out of range, an unknown preset, or a group that does not exist.
    """
    if isinstance(width, str):
        asked = preset_plan(width, graph)
    elif isinstance(width, Mapping):
        asked = _named(graph, width)
    elif isinstance(width, Real) and not isinstance(width, bool):
        asked = rounded_down(graph, float(width))
    else:
        raise WidthError(f"width is {width!r:.100}; give a ratio such as 0.5, a preset, or widths by group name")
    check_widths(graph, asked)
    plan = balanced(graph, asked)
    report_lowered(asked, plan)
    return plan


def report_lowered(asked: Mapping[str, int], plan: Mapping[str, int]) -> None:
    """Warns of the groups whose widths were lowered to make a plan legal."""
    lowered = [f"'{name}' {asked[name]} -> {plan[name]}" for name in asked if plan[name] != asked[name]]
    if lowered:
        more = f" and {len(lowered) - 5} more" if len(lowered) > 5 else ""
        logger.warning(
            "widths lowered to the next legal ones, for heads and convolution groups are equally wide: %s%s",
            ", ".join(lowered[:5]),
            more,
        )


def _named(graph: ChannelGraph, widths: Mapping[str, float]) -> dict[str, int]:
    """Widths by group name or pattern; patterns skip groups that keep their width."""
    plan = dict(graph.sizes)
    fixed = {group.name for group in graph.groups if group.fixed}
    for key, width in widths.items():
        if not isinstance(key, str):
            raise WidthError(f"a width plan names {key!r:.100}; give names of channel groups, see graph.summary()")
        names = [key] if key in plan else [name for name in plan if fnmatchcase(name, key) and name not in fixed]
        if not names:
            raise WidthError(
                f"a width plan names channel group '{key}', which this network does not have{nearest(key, plan)}; "
                f"unknown: {[key]} (see graph.summary())"
            )
        for name in names:
            plan[name] = _width(name, width, graph.sizes[name])
    return plan


def _width(name: str, width: float, size: int) -> int:
    whole = isinstance(width, Integral) and not isinstance(width, bool)
    if isinstance(width, bool) or not (whole or (isinstance(width, Real) and 0 < width <= 1)):
        raise WidthError(
            f"width of group '{name}' is {width!r}; give a whole number up to {size}, or a ratio above 0 and up to 1.0"
        )
    return int(width) if whole else max(1, int(width * size + 1e-6))


def show_ratio(ratio: float) -> str:
    """A width ratio with four digits, rounded up: no group gets narrower when it is typed in. 1/3 -> '0.3334'."""
    return f"{math.ceil(1e4 * ratio - 1e-6) / 1e4:g}"


# ---- legal plans -----------------------------------------------------------------------------------------------------


def ratio_plan(graph: ChannelGraph, ratio: float, least: Mapping[str, int] | None = None) -> dict[str, int]:
    """Width plan of a width ratio: rounded down in every group, then `balanced` if blocks would get unequal lengths.

    Args:
        graph: a network's channel graph.
        ratio: share of the channels to keep.
        least: a legal plan that no group goes below, such as a chain's widths.
    """
    return balanced(graph, rounded_down(graph, ratio, least), least)


def rounded_down(graph: ChannelGraph, ratio: float, least: Mapping[str, int] | None = None) -> dict[str, int]:
    """`floor(ratio * size)` channels of each group, at least one; fixed groups whole. The plan may not be legal.

    With `least`, at least that many.

    Rounding down is what the stock families do (`mid_channels // 16` gates), so that a ratio of 0.25 of
    `osnet_x1_0` gives exactly the widths of `osnet_x0_25`.

    Raises:
        WidthError: a ratio outside of (0, 1].
    """
    if not isinstance(ratio, Real) or not 0 < ratio <= 1:
        raise WidthError(f"width ratio {ratio!r:.100} is outside of (0, 1]; give the share of the channels to keep")
    if least:
        check_widths(graph, least)
    widths = {g.name: g.size if g.fixed else max(1, int(ratio * g.size + 1e-6)) for g in graph.groups}
    return {name: max(width, least[name]) for name, width in widths.items()} if least else widths


def balanced(graph: ChannelGraph, widths: Mapping[str, int], least: Mapping[str, int] | None = None) -> dict[str, int]:
    """The nearest legal widths below: lowered where blocks of one axis would get different lengths.

    In every block that is wider than the narrowest, the groups with the largest share of their channels are lowered,
    one channel at a time, until all axes agree. Example: blocks of 27 + 26 and 26 + 27 channels at widths 14 + 13 and
    13 + 13 become 13 + 13 each.

    Args:
        graph: a network's channel graph.
        widths: width per group name.
        least: narrowest width per group name; by default one channel, and fixed groups whole.

    Raises:
        WidthError: a width out of range, or a block that cannot be as narrow as another one of the same axis.
    """
    check_widths(graph, widths)
    width = np.array([widths[group.name] for group in graph.groups])
    lowest = np.array([least[group.name] if least else _least(group) for group in graph.groups])
    while sum(_lower(graph, blocks, width, lowest) for blocks in graph.blocked_groups):
        pass  # lowering one axis may make it necessary to lower others
    return {group.name: int(value) for group, value in zip(graph.groups, width, strict=True)}


def parameters_left(graph: ChannelGraph, widths: Mapping[str, int]) -> float:
    """The share of a network's parameters that a student of these widths has."""
    occupied = occupied_places(graph, widths)
    left = dict.fromkeys(graph.parameters, 1.0)
    for tie in graph.ties:
        if tie.tensor in left:
            left[tie.tensor] *= float(occupied[tie.channels].mean())
    return sum(graph.parameters[name] * share for name, share in left.items()) / max(1, sum(graph.parameters.values()))


Blocks = list[tuple[np.ndarray, np.ndarray]]
"""Indices of the groups in each block of an axis, and how often it has each of their channels."""


def _lower(graph: ChannelGraph, blocks: Blocks, width: np.ndarray, least: np.ndarray) -> bool:
    """Lowers widths, `[groups]`, in place, until the blocks of one axis agree; returns whether it had to."""
    totals = [int(width[groups] @ times) for groups, times in blocks]
    if max(totals) == min(totals):
        return False
    size = np.array([group.size for group in graph.groups])
    for (groups, times), total in zip(blocks, totals, strict=True):
        while total > min(totals):
            share = np.where(width[groups] > least[groups], width[groups] / size[groups], 0)
            if share.max() == 0:
                raise _unequal(graph, blocks, {group.name: int(width[i]) for i, group in enumerate(graph.groups)})
            chosen = share.argmax()
            width[groups[chosen]] -= 1
            total -= int(times[chosen])
    return True


def check_widths(graph: ChannelGraph, widths: Mapping[str, int]) -> None:
    """Raises `WidthError` unless `widths` names every group once, in range, and no fixed group narrower."""
    if not isinstance(widths, Mapping):
        raise WidthError(f"a width plan is {widths!r:.100}; give a whole number per channel group, see graph.summary()")
    unknown = [name for name in widths if name not in graph.sizes]
    missing = [name for name in graph.sizes if name not in widths]
    if unknown or missing:
        raise WidthError(
            f"a width plan names each of the {len(graph.groups)} channel groups once; "
            f"missing: {missing[:3] or 'none'}, unknown: {unknown[:3] or 'none'} (see graph.summary())"
        )
    for group in graph.groups:
        width, least = widths[group.name], _least(group)
        if not isinstance(width, Integral) or isinstance(width, bool):
            raise WidthError(f"width of group '{group.name}' is {width!r:.100}; give a whole number of channels")
        if not least <= width <= group.size:
            why = f" (the group is fixed: {group.fixed})" if group.fixed else ""
            raise WidthError(
                f"width {width} of group '{group.name}' is outside of [{least}, {group.size}]{why}; a student has "
                "at most the teacher's channels, and all of a fixed group"
            )


def check_plan(graph: ChannelGraph, widths: Mapping[str, int]) -> None:
    """Raises `WidthError` unless a plan is legal: see `check_widths`, and blocks of one axis equally wide."""
    check_widths(graph, widths)
    occupied = occupied_places(graph, widths)
    for channels, blocks in zip(graph.blocked_axes, graph.blocked_groups, strict=True):
        lengths = occupied[channels].sum(1)
        if (lengths != lengths[0]).any():
            raise _unequal(graph, blocks, widths)


def _unequal(graph: ChannelGraph, blocks: Blocks, widths: Mapping[str, int]) -> WidthError:
    """The error of blocks of different lengths."""
    members = [([graph.groups[index] for index in groups], times) for groups, times in blocks]
    lengths = [sum(widths[g.name] * int(n) for g, n in zip(*block, strict=True)) for block in members]
    names = [_some(f"'{group.name}'" for group in groups) for groups, _ in members]
    narrow, wide = int(np.argmin(lengths)), int(np.argmax(lengths))
    least = max(sum(_least(g) * int(n) for g, n in zip(*block, strict=True)) for block in members)
    most = min(sum(g.size * int(n) for g, n in zip(*block, strict=True)) for block in members)
    return WidthError(
        "convolution groups, heads and blocks of a norm along one axis must be equally wide, but "
        f"{names[wide]} would get {lengths[wide]} channels and {names[narrow]} beside it {lengths[narrow]}; legal "
        f"is the same width for each of the {len(blocks)}, from {least} to {most} "
        "(oskt_torchreid.graph.balanced gives the nearest plan, where there is one)"
    )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return " + ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _least(group: ChannelGroup) -> int:
    return group.size if group.fixed else 1


def occupied_places(graph: ChannelGraph, widths: Mapping[str, int]) -> np.ndarray:
    """Whether a student of these widths has a channel in each channel's place, shape `[num_channels]`.

    Example: a group of channels `0..3` at width 2 keeps the places `0` and `1`.
    """
    width_of_group = np.array([widths[group.name] for group in graph.groups])
    return graph.rank_in_group < width_of_group[graph.group_of_channel]
