"""From one forward pass of a network to its channel graph: united ids, equal signatures, groups, coverage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from ..errors import GraphError
from ..networks import DEFAULT_INPUT_SIZE, unwrapped
from .channel_graph import Axis, ChannelGraph, ChannelGroup, Tie
from .modules import Attention, ChannelNorm, Parts, Reduction, Route, SplitPoint
from .probing import find_routes
from .recording import RecordedAttention, RecordedTie, Recording
from .sizes import PLAIN, Reading, readings
from .surgery.rebuild import rebuild
from .tracer import Tracer, check_model, run
from .trial import tried


def trace_module(model: nn.Module, input_size: tuple[int, ...] = DEFAULT_INPUT_SIZE) -> ChannelGraph:
    """Follows every channel of a network through a forward pass in training and one in evaluation.

    Args:
        model: any module that maps an image batch to features or class scores; not changed.
        input_size: `(channels, height, width)` of the image to run it on; it only affects speed, unless the network is
            made for one size.

    Returns:
        The channel graph; `print(graph.summary())` shows it.

    Raises:
        GraphError: an operator without a rule, a reduction over channels, weights that are computed on the fly, or code
            that splits channels at fixed positions; the message says where and what to do.
    """
    model = unwrapped(model)
    check_model(model)
    twin = twin_of(model)
    tracer = run_both(twin, input_size)
    routes = find_routes(twin, tracer.frames.passages) if tracer.movements else []
    graph = build_graph(twin, tracer, input_size, routes)
    if not (tracer.movements or graph.splits or graph.reductions or graph.attentions):
        return graph

    def follow(other: nn.Module) -> tuple[ChannelGraph, dict[str, list[float]]]:
        recording = run_both(other, input_size)
        return build_graph(other, recording, input_size), recording.numbers

    errors = []
    for reading in readings(tracer):
        graph = build_graph(twin, tracer, input_size, routes, reading)
        try:
            return tried(twin, graph, tracer.movements, tracer.numbers, follow)
        except GraphError as error:
            errors.append(error)
    raise errors[0]


def twin_of(model: nn.Module) -> nn.Module:
    """A copy that shares a network's parameters: whatever its code changes while it runs, the network stays as it is.

    Raises:
        GraphError: a module that keeps something which cannot be copied.
    """
    own = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    state = model.state_dict(keep_vars=True)
    return rebuild(model, {name: own[name] if name in own else tensor.detach() for name, tensor in state.items()})


def run_both(model: nn.Module, input_size: tuple[int, ...]) -> Tracer:
    """Traces a pass in training and one in evaluation: parts of a network that run in one mode alone are seen too."""
    return run(model, input_size, run(model, input_size), training=False)


def build_graph(
    model: nn.Module,
    recording: Recording,
    input_size: tuple[int, ...],
    routes: Sequence[Route] = (),
    reading: Reading = PLAIN,
) -> ChannelGraph:
    """Turns a trace into a graph; `routes` are in the recording's provisional ids.

    A channel is a connected component of united ids. Two channels belong to one group if they have the same signature:
    the same ties equally often, in the same convolution groups, under the same gates, fixed for the same reason.

    Raises:
        GraphError: a tensor that took part in the forward pass has an axis of unknown channels.
    """
    channel_of = united(recording)
    recorded = [*recording.ties.values(), *_elementwise_ties(recording, channel_of)]
    channel_of, num_channels = _renumbered(channel_of, recorded)
    ties = _interned(recorded, channel_of)
    fixed = _fixed_reasons(recording, ties, channel_of, num_channels)
    for ids, module in recording.kept if reading.perhaps else ():
        fixed[channel_of[ids][channel_of[ids] >= 0]] = f"mixed in '{module}'"
    _fix_modules(model, ties, fixed)
    attentions = _attentions(recording, recorded, channel_of)
    replaced = {route.module for route in routes}
    parts = _parts(recording, channel_of, replaced, reading)
    _fix_lengths(recording, attentions, channel_of, fixed)
    blocked = [Parts(tie.tensor.rpartition(".")[0], tie.channels) for tie in ties if tie.blocks > 1]
    norms = _norms(recording, channel_of)
    blocked += [Parts(norm.module, norm.channels) for norm in norms]
    _fix_products(attentions, parts, blocked, fixed)
    parts = tuple(part for part in parts if (fixed[part.channels] == "").any())
    gates = [(channel_of[gate], channel_of[fine]) for gate, fine in recording.gates]
    reductions = _reductions(recording, channel_of)
    axes = [axis.channels for axis in dict.fromkeys(tie.axis for tie in ties)]
    axes += [reduction.channels[None] for reduction in reductions]
    axes += [norm.channels for norm in norms]
    axes += [attention.channels for attention in attentions]
    axes += [part.channels for part in parts]
    labels = _signature_classes(axes, gates, fixed, num_channels)
    state = model.state_dict(keep_vars=True)
    _check_coverage(recording, ties, {name: tuple(t.shape) for name, t in state.items() if t.is_floating_point()})
    rows = {tie.tensor: tie for tie in ties if tie.role == "row"}
    scores = recording.scores & recording.matrices & rows.keys()
    heads = frozenset(name for name in scores if all(fixed[rows[name].channels].ravel() == OUTPUT))
    unused = tuple(name for name, t in state.items() if t.dim() > 0 and name not in recording.touched)
    groups = _named_groups(labels, ties, recording.matrices, fixed)
    routes = _routes(routes, channel_of)
    splits = _splits(recording, channel_of, replaced, reading)
    matrices = frozenset(recording.matrices)
    size = tuple(input_size)
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    records = (splits, routes, reductions, norms, attentions, parameters, parts)
    return ChannelGraph(tuple(ties), groups, matrices, heads, unused, size, *records)


OUTPUT = "output of the network"


def united(recording: Recording) -> np.ndarray:
    """Smallest united id per provisional id: ids grow with execution, so channels come out in the network's order."""
    count = recording.num_ids
    pairs = (
        np.concatenate([np.stack(pair) for pair in recording.unions], 1) if recording.unions else np.empty((2, 0), int)
    )
    links = coo_matrix((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(count, count))
    _, component = connected_components(links, directed=False)
    smallest = np.full(component.max(initial=-1) + 1, count)
    np.minimum.at(smallest, component, np.arange(count))
    return smallest[component]


def graph_channels(recording: Recording, graph: ChannelGraph) -> np.ndarray:
    """Channel of a network's graph per provisional id of another trace of it, found through ties; -1 for others."""
    channel_of = united(recording)
    found = np.full(recording.num_ids + 1, -1)
    for tie in graph.ties:
        recorded = recording.ties.get(tie.key)
        if recorded is not None:
            found[channel_of[recorded.ids.reshape(-1)]] = tie.channels.reshape(-1)
    return found[channel_of]


def _elementwise_ties(recording: Recording, channel_of: np.ndarray) -> Iterable[RecordedTie]:
    """A bare parameter's one axis of channels, read off its elements' ids; one with several is fixed.

    One that meets no channels of a layer has none itself.
    """
    of_layers = np.unique(np.concatenate([np.empty(0, int), *(channel_of[t.ids].ravel() for t in recording.ties.values())]))
    for name, ids in recording.elementwise.items():
        channels = channel_of[ids.numpy()]
        if not np.isin(channels, of_layers).any():
            continue
        varying = [axis for axis in range(channels.ndim) if (channels != channels.take([0], axis)).any()]
        if len(varying) > 1:
            recording.fixed.append((channels.reshape(-1), f"'{name}' differs along several axes"))
        elif varying:
            along = np.moveaxis(ids.numpy(), varying[0], 0).reshape(channels.shape[varying[0]], -1)[:, 0]
            yield RecordedTie(name, varying[0], "row", along.reshape(1, -1))


def _renumbered(channel_of: np.ndarray, recorded: list[RecordedTie]) -> tuple[np.ndarray, int]:
    """Consecutive numbers for the channels that appear in a tie; -1 for ids that appear in none."""
    used = np.unique(np.concatenate([channel_of[tie.ids].reshape(-1) for tie in recorded]))
    number = np.full(len(channel_of) + 1, -1)
    number[used] = np.arange(len(used))
    return number[channel_of], len(used)


def _interned(recorded: list[RecordedTie], channel_of: np.ndarray) -> list[Tie]:
    """Ties; those over equal channels share an axis, so that index arithmetic is done once for all of them."""
    axes: dict[tuple, Axis] = {}
    ties = []
    for tie in recorded:
        channels = channel_of[tie.ids]
        axis = axes.setdefault((channels.shape, channels.tobytes()), Axis(channels))
        ties.append(Tie(tie.tensor, tie.dimension, tie.role, axis))
    return ties


def _splits(
    recording: Recording, channel_of: np.ndarray, routed: set[str], reading: Reading
) -> tuple[SplitPoint, ...]:
    """Split points of known channels, except those of modules whose own code will not run in a student."""
    found = [(*place, parts) for *place, parts in recording.splits]
    found += [(*place, lengths[:1]) for place, lengths in reading.lengths_of(recording).items()]
    return tuple(
        SplitPoint(module, attribute, tuple(channel_of[part] for part in parts))
        for module, attribute, parts in found
        if module not in routed and all((channel_of[part] >= 0).all() for part in parts)
    )


def _parts(recording: Recording, channel_of: np.ndarray, routed: set[str], reading: Reading) -> tuple[Parts, ...]:
    """Parts of known channels that differ, except those of modules whose own code will not run in a student."""
    found = {}
    named = [(module, np.stack(lengths)) for (module, _), lengths in reading.lengths_of(recording).items()]
    for module, ids in (*recording.parts, *named, *(recording.perhaps if reading.perhaps else ())):
        channels = channel_of[ids]
        channels = channels[sorted(np.unique(channels, axis=0, return_index=True)[1])]
        alike = (np.sort(channels, 1) == np.sort(channels[:1], 1)).all()
        if module not in routed and (channels >= 0).all() and not alike:
            found[channels.shape, channels.tobytes()] = Parts(module, channels)
    return tuple(found.values())


def _routes(routes: Sequence[Route], channel_of: np.ndarray) -> tuple[Route, ...]:
    """Routes of known channels."""
    return tuple(
        replace(route, sources=tuple(channel_of[source] for source in route.sources))
        for route in routes
        if all((channel_of[source] >= 0).all() for source in route.sources)
    )


def _reductions(recording: Recording, channel_of: np.ndarray) -> tuple[Reduction, ...]:
    reductions = []
    for module, (operator, ids) in recording.reductions.items():
        channels = channel_of[ids.numpy()]
        if (channels < 0).any():
            raise GraphError(f"'{operator}' in module '{module}' reduces over channels that no layer produces")
        reductions.append(Reduction(module, operator, channels))
    return tuple(reductions)


def _norms(recording: Recording, channel_of: np.ndarray) -> tuple[ChannelNorm, ...]:
    """Norms over channels that some layer produces."""
    found = {}
    for module, ids in recording.norms:
        channels = channel_of[ids]
        if (channels >= 0).all():
            found.setdefault((module, channels.shape, channels.tobytes()), ChannelNorm(module, channels))
    return tuple(found.values())


def _attentions(recording: Recording, recorded: list[RecordedTie], channel_of: np.ndarray) -> tuple[Attention, ...]:
    """Attentions, with the rows of the tensors that a factor on queries and keys can be folded into.

    Provisional ids still distinguish queries, keys and values, which may have been united since. A bare parameter that
    is added to rows has ids of its own, and stands for theirs.
    """
    rows = np.arange(recording.num_ids)
    for bare, others in recording.stands_for:
        rows[bare] = others
    found: dict[tuple, Attention] = {}
    for product in recording.attentions:
        channels = channel_of[product.queries]
        if (channels < 0).any():
            continue  # of parameters alone
        positions: dict[str, np.ndarray] = {}
        if None not in product.makers and not _is_read(recording, product):
            for ids, makers in zip((product.queries, product.keys), product.makers, strict=True):
                for tie in recorded:
                    if tie.role == "row" and tie.tensor in (makers or ()):
                        places = np.flatnonzero(np.isin(rows[tie.ids.reshape(-1)], rows[ids.reshape(-1)]))
                        known = positions.get(tie.tensor, places[:0])
                        positions.update({tie.tensor: np.union1d(known, places)} if len(places) else {})
        key = product.module, channels.shape, channels.tobytes()
        found.setdefault(key, Attention(product.module, channels, positions, product.scale_follows))
    return tuple(found.values())


def _is_read(recording: Recording, product: RecordedAttention) -> bool:
    """Whether anything else reads the queries or keys of a product, which a factor would change."""
    return any(
        not names.isdisjoint(makers or ()) and np.isin(ids, read).any()
        for ids, makers in zip((product.queries, product.keys), product.makers, strict=True)
        for names, read in recording.reads
    )


def _fix_lengths(
    recording: Recording, attentions: Sequence[Attention], channel_of: np.ndarray, fixed: np.ndarray
) -> None:
    """Fixes, in place, channels of which training takes the length; that of queries and keys is made exact."""
    folded = [attention.channels.reshape(-1) for attention in attentions if attention.positions]
    exact = np.concatenate([np.empty(0, int), *folded])
    for ids, module in recording.measured:
        channels = channel_of[ids]
        channels = channels[channels >= 0]
        if not np.isin(channels, exact).all():
            fixed[channels] = f"'{module}' takes the length of all"


def _fix_products(
    attentions: Sequence[Attention], parts: Sequence[Parts], blocked: Sequence[Parts], fixed: np.ndarray
) -> None:
    """Fixes, in place, queries and keys that nothing can be folded into, and what is as wide as fixed channels."""
    for attention in attentions:
        if not attention.positions:
            fixed[attention.channels] = f"no rows make the products of '{attention.module}' exact"
    found = True
    while found:
        found = False
        for part in (*parts, *blocked):
            free = fixed[part.channels] == ""
            some = not free.all() if part in parts else not free.any(1).all()
            if free.any() and some:
                fixed[part.channels[free]] = f"as wide as others in '{part.module}'"
                found = True


def _fix_modules(model: nn.Module, ties: Sequence[Tie], fixed: np.ndarray) -> None:
    """Fixes, in place, the channels that the `fixed_modules` of a network's modules produce (names of their children).

    With this attribute a network excludes channels from narrowing, such as the embedding in front of the first layer.
    """
    for name, module in model.named_modules():
        for child in getattr(module, "fixed_modules", ()):
            inside = f"{name}.{child}." if name else f"{child}."
            for tie in ties:
                if tie.role == "row" and tie.tensor.startswith(inside):
                    fixed[tie.channels] = f"'{child}' is one of the network's fixed_modules"


def _fixed_reasons(recording: Recording, ties: list[Tie], channel_of: np.ndarray, num_channels: int) -> np.ndarray:
    """Why each channel is fixed, an object array `[num_channels]`; empty where it is not.

    An output whose channels some layer consumes is a feature and may be narrowed; one that none consumes is a result.
    """
    reasons = np.full(num_channels, "", dtype=object)
    for ids, reason in recording.fixed:
        channels = channel_of[ids]
        reasons[channels[channels >= 0]] = reason
    consumed = np.zeros(num_channels, bool)
    for tie in ties:
        if tie.role == "column":
            consumed[tie.channels.reshape(-1)] = True
    for ids in recording.outputs:
        channels = channel_of[ids]
        channels = channels[channels >= 0]
        reasons[channels[~consumed[channels]]] = OUTPUT
    return reasons


def _signature_classes(
    axes: Sequence[np.ndarray], gates: list[tuple[np.ndarray, np.ndarray]], fixed: np.ndarray, num_channels: int
) -> np.ndarray:
    """Class per channel, `[num_channels]`: one class is refined by axes, gates and reasons until all agree.

    Axes are the channels `[blocks, length]` of ties, reductions and norms.

    Example with 4 channels: a tie of channels `[0, 1]` and one of `[[1, 2], [3, 3]]` (two convolution groups) give
    the signatures {0: first}, {1: first, block 0}, {2: block 0}, {3: block 1 twice}, hence four classes.
    """
    labels = np.zeros(num_channels, np.int64)
    for channels in axes:
        blocks = np.repeat(np.arange(channels.shape[0]), channels.shape[1])
        keys, counts = np.unique(channels.reshape(-1) * channels.shape[0] + blocks, return_counts=True)
        touched, block = np.divmod(keys, channels.shape[0])
        _refine(labels, touched, block * (counts.max(initial=0) + 1) + counts)
    for gate, fine in gates:
        pairs = np.unique(np.stack([fine, gate]), axis=1)
        _refine(labels, *pairs[:, (pairs >= 0).all(0)])
    reasons, reason = np.unique(fixed.astype(str), return_inverse=True)
    _refine(labels, np.arange(num_channels), reason)
    return labels


def _refine(labels: np.ndarray, channels: np.ndarray, codes: np.ndarray) -> None:
    """Splits classes, in place: a class is split if its channels received different codes, or none."""
    while len(channels):
        unique, first = np.unique(channels, return_index=True)
        pair = labels[unique] * (codes.max() + 1) + codes[first]
        labels[unique] = labels.max() + 1 + np.unique(pair, return_inverse=True)[1]
        rest = np.setdiff1d(np.arange(len(channels)), first)
        channels, codes = channels[rest], codes[rest]


def _named_groups(labels: np.ndarray, ties: list[Tie], matrices: set[str], fixed: np.ndarray) -> tuple:
    """Groups in the order of their first channels, each named after the module that first produces it."""
    producer = np.full(len(labels), "", dtype=object)
    for preferred in (False, True):  # a matrix, where there is one, overrides a vector
        for tie in reversed(ties):
            if tie.role == "row" and (tie.tensor in matrices) == preferred:
                module = tie.tensor.rpartition(".")[0] or tie.tensor
                names = [f"{module}[{block}]" for block in range(tie.blocks)] if tie.blocks > 1 else [module]
                producer[tie.channels] = np.array(names, dtype=object)[:, None]
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    members.sort(key=lambda channels: channels[0])
    names = [producer[channels[0]] for channels in members]
    shared = {name for name, count in Counter(names).items() if count > 1}
    seen: dict[str, int] = {}
    groups = []
    for name, channels in zip(names, members, strict=True):
        seen[name] = seen.get(name, -1) + 1
        groups.append(ChannelGroup(f"{name}:{seen[name]}" if name in shared else name, channels, fixed[channels[0]]))
    return tuple(groups)


def _check_coverage(recording: Recording, ties: list[Tie], shapes: dict[str, tuple[int, ...]]) -> None:
    """Checks that every tensor that took part has ties of the right lengths; the image's own columns need none."""
    tied: dict[str, set[str]] = {}
    for tie in ties:
        tied.setdefault(tie.tensor, set()).add(tie.role)
        length, expected = shapes[tie.tensor][tie.dimension], tie.shaped(tie.channels.shape[1])
        if length != expected:
            raise GraphError(f"axis {tie.dimension} of '{tie.tensor}' has {length} positions, its tie {expected}")
    for name in sorted(recording.touched & shapes.keys()):
        shape = shapes[name]
        depthwise = name in recording.matrices and len(shape) > 2 and shape[1] == 1
        one_sided = depthwise or name in recording.image_inputs or name not in recording.matrices
        unknown = ({"row"} if one_sided else {"row", "column"}) - tied.get(name, set())
        if unknown and int(np.prod(shape)) > 1 and name not in recording.elementwise:
            raise GraphError(
                f"tensor '{name}' of shape {shape} took part in the forward pass, but its "
                f"{' and '.join(sorted(unknown))} channels are unknown; an operator before it "
                "needs a rule (oskt_torchreid.graph.register_rule)"
            )
