"""A trial of networks whose own code splits or reorders channels (chunk, split, shuffle): does it follow other widths?

A shell of uneven widths is built, its code adapted (`adapt_code` in `surgery/rebuild.py`), and traced: the code is
right for its widths exactly when every position of every axis receives the channel that belongs there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from ..errors import GraphError, WidthError
from .channel_graph import ChannelGraph
from .modules import Attention, ChannelNorm
from .plans import balanced, occupied_places
from .surgery.shell import shell, student_axis

Numbers = Mapping[str, list[float]]
"""The numbers that each module's own code multiplies by."""
Follow = Callable[[nn.Module], tuple[ChannelGraph, Numbers]]


class MovementError(GraphError):
    """Code that splits or reorders channels in a way that does not follow other widths."""


def tried(
    model: nn.Module, graph: ChannelGraph, movements: Mapping[str, str], numbers: Numbers, follow: Follow
) -> ChannelGraph:
    """Builds a trial shell with uneven widths and traces it.

    Args:
        model: not changed.
        graph: its channel graph.
        movements: operator per module that splits or reorders channels, as the tracer recorded it.
        numbers: of the network.
        follow: returns the channel graph of a network and its numbers, without making this check in turn.

    Returns:
        The graph, which now knows whether the scale of each attention follows the size of its heads.

    Raises:
        MovementError: the network's code does not follow other widths; the message says where, and what is needed.
    """
    try:
        widths = _uneven_plan(graph)
        found, others = follow(shell(model, graph, widths))
        reason = _mismatch(found, graph, widths)
    except (GraphError, WidthError) as error:
        reason = str(error)
    if reason is not None:
        raise _movement_error(movements, reason)
    occupied = occupied_places(graph, widths)
    attentions = [
        replace(attention, scale_follows=attention.scale_follows or _follows(attention, occupied, numbers, others))
        for attention in graph.attentions
    ]
    return replace(graph, attentions=tuple(attentions))


def _follows(attention: Attention, occupied: np.ndarray, numbers: Numbers, others: Numbers) -> bool:
    """Whether what a module multiplies by changes as `head size ** -0.5` does in a narrower copy."""
    before, after = numbers.get(attention.module, []), others.get(attention.module, [])
    size, width = attention.channels.shape[1], int(occupied[attention.channels[0]].sum())
    if len(before) != len(after) or size == width:
        return False
    changes = np.array([b / a for b, a in zip(after, before, strict=True)])
    passes = 2  # the numbers are those of a pass in training and one in evaluation
    return bool(np.isclose(changes.prod() ** (1 / passes), (width / size) ** -0.5))


def _mismatch(found: ChannelGraph, graph: ChannelGraph, widths: Mapping[str, int]) -> str | None:
    """Why a narrower network does not have the planned channels in their positions; `None` if it does."""
    occupied = occupied_places(graph, widths)
    reduced = {reduction.module: reduction.channels for reduction in found.reductions}
    pairs = [
        np.stack([reduction.channels[occupied[reduction.channels]], reduced[reduction.module]])
        for reduction in graph.reductions
        if reduction.module in reduced  # a reduction over a single channel is not recorded
    ]
    for tie in graph.ties:
        if (other := found.ties_by_key.get(tie.key)) is not None:
            pairs.append(np.stack([student_axis(tie.axis, occupied).reshape(-1), other.channels.reshape(-1)]))
    for records, others in ((graph.attentions, found.attentions), (graph.norms, found.norms)):
        blocks = _blocks_by_module(others)
        for module, planned in _blocks_by_module(records, occupied).items():
            if [len(block) for block in planned] != [len(block) for block in blocks.get(module, planned)]:
                return f"'{module or 'the network itself'}' of a narrower copy has other heads, or groups"
            pairs += [np.stack(pair) for pair in zip(planned, blocks.get(module, ()), strict=False)]
    different = np.unique(np.concatenate(pairs, axis=1), axis=1)
    one_to_one = all(len(side) == len(np.unique(side)) for side in different)
    return None if one_to_one else "a narrower copy sends channels to other positions"


def _blocks_by_module(
    records: Iterable[Attention | ChannelNorm], occupied: np.ndarray | None = None
) -> dict[str, list[np.ndarray]]:
    """Channels of each head, or of what is normalised together, by module; those that a copy has, if `occupied`."""
    found: dict[str, list[np.ndarray]] = {}
    for record in records:
        blocks = [block if occupied is None else block[occupied[block]] for block in record.channels]
        found.setdefault(record.module, []).extend(blocks)
    return found


def _uneven_plan(graph: ChannelGraph) -> dict[str, int]:
    """A plan with different ratios for different producers, so that code that needs equal ratios fails.

    As few groups as possible are narrowed to one channel: a convolution of one channel is both depthwise and dense,
    and queries, keys and values of one channel per head can be each other's.
    """
    plans = []
    for ratios in _RATIOS:
        plans.append(_plan_of_ratios(graph, ratios))
        if not _narrowed_to_one(graph, plans[-1]):
            break
    return min(plans, key=lambda plan: _narrowed_to_one(graph, plan))


_RATIOS = ((0.4, 0.6, 0.5), (0.6, 0.75, 0.7))


def _plan_of_ratios(graph: ChannelGraph, ratios: Sequence[float]) -> dict[str, int]:
    producers: dict[str, int] = {}
    widths = {}
    for group in graph.groups:
        producer = group.name.partition("[")[0].partition(":")[0]
        ratio = ratios[producers.setdefault(producer, len(producers)) % len(ratios)]
        widths[group.name] = group.size if group.fixed else max(min(2, group.size), round(group.size * ratio))
    return balanced(graph, widths)


def _narrowed_to_one(graph: ChannelGraph, plan: Mapping[str, int]) -> int:
    return sum(plan[group.name] == 1 < group.size for group in graph.groups)


def _movement_error(movements: Mapping[str, str], reason: str) -> MovementError:
    moves = [f"'{operator}' in '{module or 'the network itself'}'" for module, operator in movements.items()]
    more = f" and {len(moves) - 3} more" if len(moves) > 3 else ""
    return MovementError(
        "the network's own code takes channels apart or reorders them at positions that do not follow its widths "
        f"({', '.join(moves[:3])}{more}): {reason}. Index buffers can stand in for code that does nothing but move "
        "channels between the modules that it calls, each with one tensor in and one out; put the moves into a module "
        "of their own"
    )
