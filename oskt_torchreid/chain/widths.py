"""What a user writes for widths, as a width for every group."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import Protocol

from ..errors import WidthError
from ..graph import ChannelGraph
from ..registry import nearest

Width = float | str | Mapping[str, float]
logger = logging.getLogger(__name__)


class Preset(Protocol):
    """Published widths of one architecture."""

    @property
    def family(self) -> str:
        """The networks that it belongs to."""

    def plan(self, graph: ChannelGraph) -> dict[str, int] | None:
        """Width per channel group; ``None`` for a graph of another architecture."""


PRESETS: dict[str, Preset] = {}
"""Presets by name; who knows architectures registers them."""


def register_presets(presets: Mapping[str, Preset]) -> None:
    """Makes names of presets known as widths."""
    PRESETS.update(presets)


def preset_plan(name: str, graph: ChannelGraph) -> dict[str, int]:
    """Width per channel group of a preset.

    Raises:
        WidthError: an unknown name, or a preset of another architecture.
    """
    if name not in PRESETS:
        presets = f", or a preset: {', '.join(PRESETS)}" if PRESETS else ""
        raise WidthError(f"unknown width '{name}'{nearest(name, PRESETS)}; give a ratio such as 0.5{presets}")
    plan = PRESETS[name].plan(graph)
    if plan is None:
        raise WidthError(
            f"preset '{name}' belongs to {PRESETS[name].family}, whose channel groups this network has not; give a "
            "ratio such as 0.5"
        )
    return plan


def full_plan(graph: ChannelGraph, width: Width) -> dict[str, int]:
    """A width for every group.

    Where heads, or the blocks of a grouped convolution, would get unequal widths, the wider ones are lowered and a
    warning names them.

    Args:
        graph: the teacher's channel graph.
        width: a ratio of the teacher's channels, the name of a preset, or a width per group name (the others keep the
            teacher's). A name may be a pattern (``"layer4.*"``; later entries win); whole numbers are widths, fractions
            are ratios of the group's channels.

    Raises:
        WidthError: out of range, an unknown preset, or a group that does not exist.
    """
    if isinstance(width, str):
        asked = preset_plan(width, graph)
    elif isinstance(width, Mapping):
        asked = _named(graph, width)
    elif isinstance(width, Real):
        asked = graph.rounded_down(float(width))
    else:
        raise WidthError(f"width is {width!r:.100}; give a ratio such as 0.5, a preset, or widths by group name")
    graph.check_widths(asked)
    plan = graph.balanced(asked)
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
    """Widths by group name or pattern; groups that keep their width are passed over by patterns."""
    plan = dict(graph.sizes)
    fixed = {group.name for group in graph.groups if group.fixed}
    for key, width in widths.items():
        names = [key] if key in plan else [name for name in plan if fnmatchcase(name, key) and name not in fixed]
        if not names:
            raise WidthError(
                f"a width plan names channel group '{key}', which the network has not{nearest(key, plan)}; unknown: "
                f"{[key]} (see graph.summary())"
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
