"""The table of methods: each makes a student of a width plan from a teacher, and may have its own training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from ..chain.student_record import attach_record
from ..errors import ConfigError, expect
from ..graph import ChannelGraph
from ..host.models import identify
from ..registry import add_baseline_name, nearest, remembered
from ..user_code import IMPORT_HINT
from .depgraph import check_depgraph, prune_by_depgraph
from .kmeans import merge_by_kmeans
from .scratch import from_scratch
from .selection import select_evenly, select_first, select_largest

Maker = Callable[[nn.Module, ChannelGraph, Mapping[str, int]], nn.Module]
"""A teacher, its channel graph and a width per group to a student."""


@dataclass(frozen=True)
class Baseline:
    """One method.

    Attributes:
        make: teacher, graph and widths to a student; the teacher is not changed.
        summary: what it does, in a few words for tables.
        check: raises a typed error if the method does not support a teacher, before anything is trained; its weights do
            not matter.
        distils: whether it is trained under its teacher, by `DistillationEngine`.
        inherits: whether its networks begin with the teacher's weights, and so are the teacher at the teacher's widths.
            Comparisons take all such methods for one there.
    """

    make: Maker
    summary: str
    check: Callable[[nn.Module, ChannelGraph], None] | None = None
    distils: bool = False
    inherits: bool = False


BASELINES: dict[str, Baseline] = {}
"""Registered methods by name."""
_NAME = re.compile(r"[A-Za-z_][\w+]*")
_RESERVED = frozenset({"file", "oskt", "teacher"})  # networks of a run that no baseline makes


@remembered
def register_baseline(name: str, method: Baseline) -> None:
    """Adds a method under a name, which students, controls and their rates may then have in a configuration.

    Example: after `register_baseline("mine", Baseline(make, "my own"))` a YAML file may say `oskt: {students:
    ["mine:width=0.5"], control_lr: {mine: 0.01}}`.

    Raises:
        ConfigError: no method, or a name that is taken or that a configuration cannot have.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        reserved = ", ".join(sorted(_RESERVED))
        raise ConfigError(
            f"name of a baseline is {name!r:.100}; give a word of letters, digits, '_' and '+', other than {reserved}"
        )
    expect(Baseline, method, f"baseline '{name}'", "give a Baseline(make, 'in a few words')")
    if BASELINES.setdefault(name, method) != method:
        raise ConfigError(f"baseline name '{name}' is taken ({BASELINES[name].summary}); choose another name")
    add_baseline_name(name)


def baseline(name: str) -> Baseline:
    """The method of a name.

    Raises:
        ConfigError: an unknown method; the message has the nearest one.
    """
    if name not in BASELINES:
        raise ConfigError(
            f"unknown baseline '{name}'{nearest(name, BASELINES)}; known: {', '.join(BASELINES)}; name the file that "
            f"registers one of your own: {IMPORT_HINT}"
        )
    return BASELINES[name]


def make_baseline(name: str, teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """A network of the given widths by the named method, for `save_student`; the teacher is not changed.

    Random parts (fresh weights, starts of k-means) come from torch's generator.

    Raises:
        ConfigError: an unknown method.
        GraphError: a network that the method does not support.
        WidthError: widths that the graph does not allow.
    """
    student = baseline(name).make(teacher, graph, widths)
    return attach_record(student, graph, identify(teacher))


register_baseline("scratch", Baseline(from_scratch, "fresh weights"))
register_baseline("slice", Baseline(select_evenly, "weight selection: evenly spaced channels", inherits=True))
register_baseline("first", Baseline(select_first, "the first channels", inherits=True))
register_baseline("norm", Baseline(select_largest, "channels with the largest rows", inherits=True))
register_baseline("kmeans", Baseline(merge_by_kmeans, "k-means merge, not refined", inherits=True))
register_baseline(
    "depgraph", Baseline(prune_by_depgraph, "DepGraph pruning, group L2 norm", check=check_depgraph, inherits=True)
)
register_baseline("kd++", Baseline(from_scratch, "fresh weights, trained by distillation (KD++)", distils=True))
register_baseline(
    "norm+kd", Baseline(select_largest, "channels with the largest rows, distilled", distils=True, inherits=True)
)
register_baseline("kmeans+kd", Baseline(merge_by_kmeans, "k-means merge, distilled", distils=True, inherits=True))
