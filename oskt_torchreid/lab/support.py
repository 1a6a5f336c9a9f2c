"""What works with which backbone, found by trying, and what its channel graph implies for widths and exactness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from tqdm.auto import tqdm

from ..chain.network import trace
from ..errors import ConfigError, GraphError
from ..graph import ChannelGraph, ChannelGroup
from ..graph.grouping import OUTPUT
from ..graph.keeping import KEPT, in_words
from ..graph.plans import parameters_left, ratio_plan
from ..host import models
from ..models import find_classifier
from ..report.tables import human_count

HEADERS = ("backbone", "parameters", "channels", "groups", "width grid", "students", "BNNeck")
NUM_CLASSES = 751


def support_table(names: Iterable[str]) -> str:
    """A Markdown table: each backbone traced at the size it is made for, and tried with a neck.

    `width grid` and `students` are those of `width_grid` and `exactness`; for a backbone that cannot be traced,
    the first words of the reason. `BNNeck` says whether `oskt_<backbone>` exists.
    """
    rows = [_row(name) for name in tqdm(list(names), disable=None, unit="backbone")]
    return tabulate(rows, headers=HEADERS, tablefmt="github", colalign=("left", *["right"] * 3, *["left"] * 3))


FAMILY_HEADERS = ("network", "parameters", "channels", "groups", "width grid", "students", "in every student")
Family = tuple[Callable[[], nn.Module], tuple[int, int, int]]
"""What builds a network, and the image that it is traced with, `(channels, height, width)`."""


def family_table(families: Mapping[str, Family]) -> str:
    """A Markdown table of networks that are no registered models: each traced and proved, as `support_table`.

    `in every student` is the share of the parameters that make or read channels which cannot be merged.
    """
    items = tqdm(list(families.items()), disable=None, unit="network")
    rows = [_family_row(name, *family) for name, family in items]
    return tabulate(rows, headers=FAMILY_HEADERS, tablefmt="github", colalign=("left", *["right"] * 3, *["left"] * 3))


def _family_row(name: str, build: Callable[[], nn.Module], size: tuple[int, int, int]) -> tuple[str, ...]:
    torch.manual_seed(0)
    model = build()
    params = human_count(sum(parameter.numel() for parameter in model.parameters()))
    try:
        graph = trace(model, size)
    except GraphError as error:
        return name, params, "-", "-", "-", f"none: {str(error).partition(';')[0][:80]}", "-"
    whole = f"{graph.immovable_share:.1%}"
    return name, params, str(graph.num_channels), str(len(graph.groups)), width_grid(graph), exactness(graph), whole


def _row(name: str) -> tuple[str, ...]:
    torch.manual_seed(0)
    model = models.build(name, NUM_CLASSES)
    params = human_count(sum(parameter.numel() for parameter in model.parameters()))
    neck = _neck(model, name)
    try:
        graph = trace(model)
    except GraphError as error:
        return name, params, "-", "-", "-", f"none: {str(error).partition(';')[0][:80]}", neck
    return name, params, str(graph.num_channels), str(len(graph.groups)), width_grid(graph), exactness(graph), neck


def _neck(model: nn.Module, name: str) -> str:
    if getattr(model, "has_neck", False):
        return "has one"
    try:
        find_classifier(model, models.input_size(name))
    except ConfigError:
        return "no: several classifiers"
    return "yes"


# ---- widths ----------------------------------------------------------------------------------------------------------


def width_grid(graph: ChannelGraph) -> str:
    """How finely one ratio for all groups can be chosen: the number of distinct plans, and the coarsest groups.

    A group of `s` channels takes another width at the ratios `1/s, 2/s, ..., 1`. Example: groups of 4 and of 6 channels
    change at 1/6, 1/4, 1/3, 1/2, 2/3, 3/4, 5/6 and 1, which is 7 plans (below 1/3 both have one channel), and the
    coarsest steps are 1/4. Groups of one channel do not change.
    """
    narrowable = [group for group in graph.groups if not group.fixed and group.size > 1]
    if not narrowable:
        return "one width only"
    sizes = {group.size for group in narrowable}
    plans = {Fraction(width, size) for size in sizes for width in range(2, size + 1)}
    least = min(sizes)
    kinds = _kinds(graph)
    coarsest = Counter(kinds.get(group.name, "groups") for group in narrowable if group.size == least)
    what = ", ".join(f"{count} {kind if count > 1 else kind.removesuffix('s')}" for kind, count in coarsest.items())
    return f"{len(plans) + 1} plans; coarsest 1/{least} ({what})"


def _kinds(graph: ChannelGraph) -> dict[str, str]:
    """The operator whose blocks the groups lie in, by group name."""
    kinds: dict[str, str] = {}
    for kind, axes in (("convolution groups", graph.axes), ("norm blocks", graph.norms), ("heads", graph.attentions)):
        for axis in axes:
            if len(axis.channels) > 1:
                kinds.update((group.name, kind) for group in _groups_of(graph, axis.channels))
    return kinds


def _groups_of(graph: ChannelGraph, channels: np.ndarray) -> list[ChannelGroup]:
    return [graph.groups[index] for index in np.unique(graph.group_of_channel[channels])]


# ---- exactness -------------------------------------------------------------------------------------------------------


def exactness(graph: ChannelGraph) -> str:
    """When students compute the same as a teacher with equal rows in each cluster, and what is adapted for it."""
    under = _counted(len(graph.norms), "norm", "over channels")
    folded = sum(bool(attention.positions) for attention in graph.attentions)
    reductions = Counter(reduction.operator for reduction in graph.reductions)
    reasons = (_reason(group) for group in graph.groups if group.fixed and group.fixed != OUTPUT)
    notes = [
        f"exact where slots stand for equally many channels ({under})" if under else "exact",
        _counted(folded, "attention", "folded"),
        _counted(len(graph.attentions) - folded, "attention", "not folded"),
        _counted(len(graph.routes), "module", "routed"),
        _counted(len(graph.splits), "split point", "moved"),
        *(_counted(count, f"channel {operator}", "weighted") for operator, count in reductions.items()),
        *(f"{_counted(count, 'group')} whole: {reason}" for reason, count in Counter(reasons).items()),
    ]
    return "; ".join(note for note in notes if note)


def _reason(group: ChannelGroup) -> str:
    """Why a group is whole, without the place where it is: `gates several channels each in '3.se'` is too long."""
    return group.fixed.removeprefix(KEPT).partition(" in ")[0].partition(" of '")[0]


def _counted(count: int, what: str, done: str = "") -> str:
    """`3, "module", "routed"` -> `3 modules routed`; nothing for none."""
    return f"{count} {what}{'s' if count > 1 else ''} {done}".strip() if count else ""


def unchanging(graph: ChannelGraph) -> str:
    """What no student is rid of: channels that cannot be merged, and parameters that the network never uses."""
    channels = int(graph.immovable.sum())
    notes = [
        f"{channels} of {graph.num_channels} channels",
        f"{graph.immovable_share:.1%} of the parameters make or read them",
        f"half the width leaves {parameters_left(graph, ratio_plan(graph, 0.5)):.1%} of the parameters",
        f"unseen: {', '.join(graph.unseen)}" if graph.unseen else "",
        f"whole ({graph.kept_share:.1%} of the parameters): {in_words(graph.kept)}" if graph.kept else "",
    ]
    return "; ".join(note for note in notes if note)
