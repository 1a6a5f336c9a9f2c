"""What people would use instead of a weight chain: each gives a student of a width plan, to be fine-tuned alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from ..errors import ConfigError
from ..graph import ChannelGraph
from ..registry import nearest
from .scratch import from_scratch
from .selection import select_uniformly

Baseline = Callable[[nn.Module, ChannelGraph, Mapping[str, int]], nn.Module]

BASELINES: dict[str, Baseline] = {"scratch": from_scratch, "slice": select_uniformly}


def make_baseline(name: str, teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """A network of the given widths by the named method; the teacher is left as it is.

    Raises:
        ConfigError: an unknown method.
        WidthError: widths that the graph does not allow.
    """
    if name not in BASELINES:
        raise ConfigError(f"unknown control '{name}'{nearest(name, BASELINES)}; known: {', '.join(BASELINES)}")
    return BASELINES[name](teacher, graph, widths)
