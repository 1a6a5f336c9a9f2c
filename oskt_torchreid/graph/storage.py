"""A channel graph as arrays and a JSON-able description, for a chain file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..errors import GraphError
from ..files.checks import is_possible_image
from .channel_graph import Axis, ChannelGraph, ChannelGroup, Tie
from .keeping import Kept
from .modules import Attention, ChannelNorm, Parts, Reduction, Route, SplitPoint

_NOTHING = np.empty(0, np.int32)


def to_arrays(graph: ChannelGraph) -> tuple[dict[str, np.ndarray], dict]:
    """Splits a graph into arrays and a JSON-able description.

    Returns:
        `arrays`: `axes` (every distinct channel array, flattened and joined), `groups` (the groups' channels),
        `splits`, `routes`, `reductions`, `norms`, `attentions`, `parts` (theirs, in order), `attended`
        (positions of queries and keys) and `feature`; `description`: everything else, with the length of each part.
    """
    number = {axis: index for index, axis in enumerate(graph.axes)}
    arrays = {
        "axes": _join(axis.channels.reshape(-1) for axis in graph.axes),
        "groups": _join(group.channels for group in graph.groups),
        "splits": _join(part for split in graph.splits for part in split.parts),
        "routes": _join(part for route in graph.routes for part in (*route.sources, *route.orders)),
        "reductions": _join(reduction.channels for reduction in graph.reductions),
        "norms": _join(norm.channels.reshape(-1) for norm in graph.norms),
        "attentions": _join(attention.channels.reshape(-1) for attention in graph.attentions),
        "parts": _join(parts.channels.reshape(-1) for parts in graph.parts),
        "attended": _join(part for attention in graph.attentions for part in attention.positions.values()),
        "feature": _join([graph.feature]),
    }
    description = {
        "axes": [list(axis.channels.shape) for axis in graph.axes],
        "ties": [[*tie.key, number[tie.axis]] for tie in graph.ties],
        "groups": [[group.name, group.size, group.fixed] for group in graph.groups],
        "matrices": sorted(graph.matrices),
        "heads": sorted(graph.heads),
        "unused": list(graph.unused),
        "input_size": list(graph.input_size),
        "splits": [[s.module, s.attribute, _lengths(s.parts)] for s in graph.splits],
        "routes": [
            [r.module, list(r.calls), [list(reads) for reads in r.reads], _lengths(r.sources), _lengths(r.orders)]
            for r in graph.routes
        ],
        "reductions": [[r.module, r.operator, len(r.channels)] for r in graph.reductions],
        "norms": [[norm.module, *norm.channels.shape] for norm in graph.norms],
        "attentions": [
            [a.module, *a.channels.shape, a.scale_follows, {name: len(part) for name, part in a.positions.items()}]
            for a in graph.attentions
        ],
        "parameters": dict(graph.parameters),
        "parts": [[parts.module, *parts.channels.shape] for parts in graph.parts],
        "keep": list(graph.keep),
        "kept": [[part.module, part.operator, part.why] for part in graph.kept],
    }
    return arrays, description


def from_arrays(arrays: Mapping[str, np.ndarray], description: Mapping) -> ChannelGraph:
    """Inverse of `to_arrays`; raises `GraphError` if sizes and ids do not agree."""
    try:
        _check_arrays(arrays)
        shapes = [(int(blocks), int(length)) for blocks, length in description["axes"]]
        channels = _cut(arrays["axes"], [blocks * length for blocks, length in shapes])
        axes = [Axis(part.reshape(shape)) for part, shape in zip(channels, shapes, strict=True)]
        ties = tuple(
            Tie(str(name), int(number), role, axes[index]) for name, number, role, index in description["ties"]
        )
        members = _cut(arrays["groups"], [int(size) for _, size, _ in description["groups"]])
        groups = tuple(
            ChannelGroup(str(name), channels, str(fixed))
            for (name, _, fixed), channels in zip(description["groups"], members, strict=True)
        )
        graph = ChannelGraph(
            ties,
            groups,
            frozenset(description["matrices"]),
            frozenset(description["heads"]),
            tuple(description["unused"]),
            tuple(int(size) for size in description["input_size"]),
            _splits(arrays["splits"], description["splits"]),
            _routes(arrays["routes"], description["routes"]),
            _reductions(arrays["reductions"], description["reductions"]),
            _norms(arrays["norms"], description["norms"]),
            _attentions(arrays["attentions"], arrays["attended"], description["attentions"]),
            {str(name): int(count) for name, count in description.get("parameters", {}).items()},
            _parts(arrays.get("parts", _NOTHING), description.get("parts", [])),
            tuple(str(name) for name in description.get("keep", ())),
            tuple(Kept(str(module), str(by), "", str(why)) for module, by, why in description.get("kept", ())),
            arrays.get("feature", _NOTHING),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, IndexError) as error:
        raise GraphError(f"the stored channel graph is damaged ({type(error).__name__}: {error})") from error
    if not is_possible_image(graph.input_size):
        raise GraphError(f"the stored channel graph is damaged (its images are {graph.input_size})")
    _check_ids(graph)
    for route in graph.routes:
        _check_route(route)
    for attention in graph.attentions:
        _check_attention(graph, attention)
    return graph


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype != np.int32 or array.ndim != 1:
            raise ValueError(f"'{name}' is a {array.ndim}-dimensional array of {array.dtype}, not a list of int32")


def _splits(joined: np.ndarray, entries: list) -> tuple[SplitPoint, ...]:
    parts = iter(_cut(joined, [int(length) for _, _, lengths in entries for length in lengths]))
    return tuple(
        SplitPoint(str(module), str(attribute), tuple(next(parts) for _ in lengths))
        for module, attribute, lengths in entries
    )


def _routes(joined: np.ndarray, entries: list) -> tuple[Route, ...]:
    lengths = [int(length) for *_, sources, orders in entries for length in (*sources, *orders)]
    parts = iter(_cut(joined, lengths))
    return tuple(
        Route(
            str(module),
            tuple(str(call) for call in calls),
            tuple(next(parts) for _ in sources),
            tuple(tuple(int(source) for source in part) for part in reads),
            tuple(next(parts) for _ in orders),
        )
        for module, calls, reads, sources, orders in entries
    )


def _reductions(joined: np.ndarray, entries: list) -> tuple[Reduction, ...]:
    parts = _cut(joined, [int(length) for _, _, length in entries])
    return tuple(
        Reduction(str(module), str(operator), channels)
        for (module, operator, _), channels in zip(entries, parts, strict=True)
    )


def _norms(joined: np.ndarray, entries: list) -> tuple[ChannelNorm, ...]:
    parts = _cut(joined, [int(blocks) * int(length) for _, blocks, length in entries])
    return tuple(
        ChannelNorm(str(module), channels.reshape(int(blocks), int(length)))
        for (module, blocks, length), channels in zip(entries, parts, strict=True)
    )


def _parts(joined: np.ndarray, entries: list) -> tuple[Parts, ...]:
    cut = _cut(joined, [int(count) * int(length) for _, count, length in entries])
    return tuple(
        Parts(str(module), channels.reshape(int(count), int(length)))
        for (module, count, length), channels in zip(entries, cut, strict=True)
    )


def _attentions(joined: np.ndarray, attended: np.ndarray, entries: list) -> tuple[Attention, ...]:
    heads = _cut(joined, [int(blocks) * int(length) for _, blocks, length, *_ in entries])
    parts = iter(_cut(attended, [int(length) for *_, lengths in entries for length in lengths.values()]))
    return tuple(
        Attention(
            str(module),
            channels.reshape(int(blocks), int(length)),
            {str(name): next(parts) for name in lengths},
            bool(follows),
        )
        for (module, blocks, length, follows, lengths), channels in zip(entries, heads, strict=True)
    )


def _check_ids(graph: ChannelGraph) -> None:
    everything = np.sort(_join(group.channels for group in graph.groups))
    if not np.array_equal(everything, np.arange(len(everything))):
        raise GraphError("the stored channel graph is damaged (its groups do not hold each channel exactly once)")
    for tie in graph.ties:
        if tie.role not in ("row", "column") or tie.dimension < 0:
            raise GraphError(f"the stored channel graph is damaged ('{tie.tensor}': {tie.role}, axis {tie.dimension})")
    named = [(tie.tensor, tie.channels) for tie in graph.ties]
    named += [(split.module, part) for split in graph.splits for part in split.parts]
    named += [(route.module, part) for route in graph.routes for part in route.sources]
    named += [(reduction.module, reduction.channels) for reduction in graph.reductions]
    named += [(norm.module, norm.channels) for norm in graph.norms]
    named += [(attention.module, attention.channels) for attention in graph.attentions]
    named += [(parts.module, parts.channels) for parts in graph.parts]
    named += [("the feature", graph.feature[graph.feature != -1])]
    for name, channels in named:
        if channels.size and not 0 <= channels.min() <= channels.max() < len(everything):
            raise GraphError(f"the stored channel graph is damaged ('{name}' names unknown channels)")


def _check_route(route: Route) -> None:
    """Checks that each step reads sources that exist by then, at valid places."""
    steps = len(route.calls) + 1
    sound = len(route.sources) == len(route.reads) == len(route.orders) == steps
    for number in range(steps if sound else 0):
        reads, order = route.reads[number], route.orders[number]
        known = len(reads) > 0 and all(0 <= source <= number for source in reads)
        length = sum(len(route.sources[source]) for source in reads) if known else 0
        sound = sound and known and len(order) > 0 and 0 <= order.min() <= order.max() < length
    if not sound:
        raise GraphError(f"the stored channel graph is damaged (the route of '{route.module}' leads nowhere)")


def _check_attention(graph: ChannelGraph, attention: Attention) -> None:
    """Checks that its positions lie on axes of rows."""
    for name, positions in attention.positions.items():
        tie = graph.row_ties.get(name)
        if tie is None or len(positions) == 0 or not 0 <= positions.min() <= positions.max() < tie.channels.size:
            raise GraphError(f"the stored channel graph is damaged ('{name}' has no such queries and keys)")


def _lengths(parts: Iterable[np.ndarray]) -> list[int]:
    return [len(part) for part in parts]


def _join(parts: Iterable[np.ndarray]) -> np.ndarray:
    parts = list(parts)
    return np.concatenate(parts).astype(np.int32) if parts else np.empty(0, np.int32)


def _cut(joined: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    if len(joined) != sum(lengths) or min(lengths, default=0) < 0:
        raise ValueError(f"{len(joined)} entries where {sum(lengths)} were announced")
    return np.split(joined, np.cumsum(lengths)[:-1]) if lengths else []
