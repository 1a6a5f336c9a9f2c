"""The control that inherits nothing: the teacher's network at other widths, freshly initialised."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..graph import ChannelGraph, shell
from ..host.models import initialise


def from_scratch(teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """A network of the teacher's class and the given widths with fresh weights (from torch's random generator).

    Raises:
        WidthError: widths that the graph does not allow.
    """
    student = shell(teacher, graph, widths)
    initialise(student)
    return student
