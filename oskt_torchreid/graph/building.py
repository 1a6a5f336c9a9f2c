"""From one forward pass of a network to its channel graph: united ids, equal signatures, groups, coverage."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..errors import GraphError
from ..networks import DEFAULT_INPUT_SIZE, unwrapped
from .channel_graph import Axis, ChannelGraph, ChannelGroup, Tie
from .keeping import Keep, Keeping, check_unknown, modules_to_keep, recorded_keep, ways_out
from .modules import Attention, ChannelNorm, Reduction, Route, SplitPoint
from .probing import find_routes
from .recording import RecordedTie, Recording
from .surgery.rebuild import rebuild
from .tracer import Tracer, check_model, run
from .trial import MovementError, check_movements

logger = logging.getLogger(__name__)
_KINDS = 4  # classes of modules, at most, that are tried one by one


def trace_module(
    model: nn.Module,
    input_size: tuple[int, ...] = DEFAULT_INPUT_SIZE,
    keep: Keep = (),
    unknown: str = "keep",
) -> ChannelGraph:
    """Follows every channel of a network through a forward pass in training and one in evaluation.

    Args:
        model: any module that maps an image batch to features or class scores; not changed.
        input_size: `(channels, height, width)` of the image to run it on; it only affects speed, unless the network is
            made for one size.
        keep: modules that stay whole, with the channels that they are given and give: modules of the network, their
            names, or patterns of names such as `"layer4.*.se"`. In a student by default those that its teacher kept.
        unknown: what becomes of channels where it cannot be followed what code does to them, as where an operator has
            no rule. `keep`: they stay whole; `refuse`: an error.

    Returns:
        The channel graph; `print(graph.summary())` shows it, and its `kept` says what stays whole.

    Raises:
        ConfigError: `keep` names what the network does not have, or an `unknown` that there is not.
        GraphError: with `unknown="refuse"` an operator without a rule, a reduction over channels, weights that are
            computed on the fly, or code that splits channels at fixed positions; in any case a network that fails, or
            whose copies would use its own weights. The message says where and what to do.
    """
    model = unwrapped(model)
    check_model(model)
    check_unknown(unknown)
    asked, strict = modules_to_keep(model, keep) or recorded_keep(model), unknown == "refuse"
    twin = twin_of(model)
    tracer = run_both(twin, input_size, Keeping(asked, strict))
    routes = find_routes(twin, tracer.frames.passages) if tracer.movements else []

    def follow(other: nn.Module, size: tuple[int, ...]) -> ChannelGraph:
        return build_graph(other, run_both(other, size, Keeping(asked, strict)), size)

    def tried() -> ChannelGraph:
        graph = build_graph(twin, tracer, input_size, routes)
        if tracer.movements or graph.splits or graph.reductions:
            check_movements(twin, graph, tracer.movements, follow)
        return graph

    try:
        return tried()
    except MovementError as error:
        if not tracer.moved:
            raise
        if strict:
            part, _ = next(iter(tracer.moved.values()))
            raise MovementError(f"{error} ({part.place}); {ways_out(part.module, part.operator)}") from error
        logger.debug("channels that code moves: %s", error)
        try:
            return _with_movers_whole(twin, tracer, {route.module for route in routes}, tried)
        except MovementError:
            movers = [name for name in tracer.moved if name]
            if not movers:
                raise
            return trace_module(model, input_size, [*asked, *movers])


def _with_movers_whole(
    model: nn.Module, tracer: Tracer, routed: set[str], tried: Callable[[], ChannelGraph]
) -> ChannelGraph:
    """The graph in which channels that code moves stay whole, of as few modules as possible.

    Modules of one class move channels alike. Those of each class alone are tried first, then all whose code no index
    buffers can stand in for, then all.

    Args:
        model: not changed.
        tracer: its trace, to which the fixed channels are added.
        routed: names of the modules that index buffers can stand in for.
        tried: gives the graph, or raises `MovementError` if the network's code does not follow it.
    """
    kinds: dict[type, list[str]] = {}
    for name in tracer.moved:
        kinds.setdefault(type(model.get_submodule(name)), []).append(name)
    alone = list(kinds.values()) if 1 < len(kinds) <= _KINDS else []
    unrouted = [name for name in tracer.moved if name not in routed]
    for movers in filter(None, (*alone, unrouted)):
        before, parts = tracer.lengths_now(), dict(tracer.keeping.parts)
        tracer.keep_movements(movers)
        try:
            return tried()
        except MovementError as error:
            logger.debug("%s whole is not enough: %s", movers, error)
            tracer.take_back(before)
            tracer.keeping.parts = parts
    tracer.keep_movements(tracer.moved)
    return tried()


def twin_of(model: nn.Module) -> nn.Module:
    """A copy that shares a network's parameters: whatever its code changes while it runs, the network stays as it is.

    Raises:
        GraphError: a module that keeps something which cannot be copied.
    """
    own = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    state = model.state_dict(keep_vars=True)
    return rebuild(model, {name: own[name] if name in own else tensor.detach() for name, tensor in state.items()})


def run_both(model: nn.Module, input_size: tuple[int, ...], keeping: Keeping | None = None) -> Tracer:
    """Traces a pass in training and one in evaluation: parts of a network that run in one mode alone are seen too."""
    return run(model, input_size, run(model, input_size, Tracer(model, keeping)), training=False)


def build_graph(
    model: nn.Module, recording: Recording, input_size: tuple[int, ...], routes: Sequence[Route] = ()
) -> ChannelGraph:
    """Turns a trace into a graph; `routes` are in the recording's provisional ids.

    A channel is a connected component of united ids. Two channels belong to one group if they have the same signature:
    the same ties equally often, in the same convolution groups, under the same gates, fixed for the same reason.

    Raises:
        GraphError: a tensor that took part in the forward pass has an axis of unknown channels.
    """
    state = model.state_dict(keep_vars=True)
    _tie_kept(recording, state)
    channel_of = united(recording)
    recorded = [*recording.ties.values(), *_elementwise_ties(recording, channel_of)]
    channel_of, num_channels = _renumbered(channel_of, recorded)
    ties = _interned(recorded, channel_of)
    reductions = _reductions(recording, channel_of)
    attentions = _attentions(recording, recorded, channel_of)
    fixed = _fixed_reasons(recording, ties, channel_of, num_channels)
    _fix_modules(model, ties, fixed)
    gates = [(channel_of[gate], channel_of[fine]) for gate, fine in recording.gates]
    norms = _norms(recording, channel_of)
    axes = [axis.channels for axis in dict.fromkeys(tie.axis for tie in ties)]
    axes += [reduction.channels[None] for reduction in reductions]
    axes += [norm.channels for norm in norms]
    axes += [attention.channels for attention in attentions]
    labels = _signature_classes(axes, gates, fixed, num_channels)
    _check_coverage(recording, ties, {name: tuple(t.shape) for name, t in state.items() if t.is_floating_point()})
    rows = {tie.tensor: tie for tie in ties if tie.role == "row"}
    scores = recording.scores & recording.matrices & rows.keys()
    heads = frozenset(name for name in scores if all(fixed[rows[name].channels].ravel() == OUTPUT))
    unused = tuple(name for name, t in state.items() if t.dim() > 0 and name not in recording.touched)
    groups = _named_groups(labels, ties, recording.matrices, fixed)
    routes = _routes(routes, channel_of)
    splits = _splits(recording, channel_of, {route.module for route in routes})
    matrices = frozenset(recording.matrices)
    size = tuple(input_size)
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    kept = tuple(recording.keeping.parts.values())
    parts = (splits, routes, reductions, norms, attentions, parameters, tuple(sorted(recording.keeping.modules)), kept)
    return ChannelGraph(tuple(ties), groups, matrices, heads, unused, size, *parts)


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


def _tie_kept(recording: Recording, state: Mapping[str, Tensor]) -> None:
    """Fixes the channels of tensors that stay whole; one that no layer has tied gets a channel per entry of axis 0.

    A layer's weight that is also combined directly with activations, in a way that fixes an element, is one of them.
    """
    layers = {tie.tensor for tie in recording.ties.values()} & recording.elementwise.keys()
    for name in layers if recording.fixed else ():
        fixed, channel_of = np.concatenate([ids for ids, _ in recording.fixed]), united(recording)
        if np.isin(channel_of[recording.elementwise[name].numpy()], channel_of[fixed]).any():
            recording.keeping.tensors.setdefault(name, f"'{name}' is not a layer's alone")
    for name, reason in recording.keeping.names_inside(state).items():
        tensor, known = state[name], [tie for tie in recording.ties.values() if tie.tensor == name]
        for ids in [torch.from_numpy(tie.ids) for tie in known]:
            recording.fix(ids, reason)
        if (elements := recording.elementwise.get(name)) is not None:
            recording.fix(elements, reason)
        if not known and tensor.dim() > 0 and tensor.is_floating_point():
            recording.elementwise.pop(name, None)
            recording.matrices.discard(name)
            rows = recording.fresh(len(tensor))
            recording.tie(tensor, 0, "row", rows)
            recording.fix(rows, reason)


def _elementwise_ties(recording: Recording, channel_of: np.ndarray) -> Iterable[RecordedTie]:
    """A bare parameter's one axis of channels, read off its elements' ids; one with several is fixed."""
    for name, ids in recording.elementwise.items():
        channels = channel_of[ids.numpy()]
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


def _splits(recording: Recording, channel_of: np.ndarray, routed: set[str]) -> tuple[SplitPoint, ...]:
    """Split points of known channels, except those of modules whose own code will not run in a student."""
    return tuple(
        SplitPoint(module, attribute, tuple(channel_of[part] for part in parts))
        for module, attribute, parts in recording.splits
        if module not in routed and all((channel_of[part] >= 0).all() for part in parts)
    )


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
        if (channels >= 0).all():
            reductions.append(Reduction(module, operator, channels))
        else:  # some are a constant's, and cannot be weighted
            recording.fix(ids, f"reduced with a constant in '{module}'")
    return tuple(reductions)


def _norms(recording: Recording, channel_of: np.ndarray) -> tuple[ChannelNorm, ...]:
    """Norms over channels that some layer produces."""
    found = (ChannelNorm(module, channel_of[ids]) for module, ids in recording.norms.items())
    return tuple(norm for norm in found if (norm.channels >= 0).all())


def _attentions(recording: Recording, recorded: list[RecordedTie], channel_of: np.ndarray) -> tuple[Attention, ...]:
    """Attentions, with the rows that produced the ids of their queries and keys.

    Provisional ids still distinguish queries, keys and values, which have been united since. Rows are given if linear
    layers produce them and no other tensor (a norm of the queries) lies between these and the product.
    """
    attentions = []
    for module, product in recording.attentions.items():
        ids = np.concatenate([product.queries.reshape(-1), product.keys.reshape(-1)])
        positions = {}
        for tie in recorded:
            if tie.role == "row":
                found = np.flatnonzero(np.isin(tie.ids.reshape(-1), ids))
                positions.update({tie.tensor: found} if len(found) else {})
        linear = {name.rpartition(".")[0] for name in positions if name in recording.matrices}
        if any(name.rpartition(".")[0] not in linear for name in positions):
            positions = {}
        channels = channel_of[product.queries]
        if (channels < 0).any():
            recording.fix(torch.from_numpy(ids), f"multiplied with a constant in '{module}'")
            continue
        attentions.append(Attention(module, channels, positions, product.scale_follows))
    return tuple(attentions)


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
        known = (fine >= 0) & (gate >= 0)
        pairs = np.unique(fine[known] * num_channels + gate[known])
        _refine(labels, *np.divmod(pairs, max(1, num_channels)))
    reasons, reason = np.unique(fixed.astype(str), return_inverse=True)
    _refine(labels, np.arange(num_channels), reason)
    return labels


def _refine(labels: np.ndarray, channels: np.ndarray, codes: np.ndarray) -> None:
    """Splits classes, in place: a class is split if its channels received different codes, or none.

    Each code has a random number, and the sum of its numbers stands for the codes of a channel, whatever their order:
    two different ones agree with a probability of `2 ** -64`.
    """
    if not len(channels):
        return
    touched, place = np.unique(channels, return_inverse=True)
    different, code = np.unique(codes, return_inverse=True)
    numbers = np.random.default_rng(0).integers(0, 2**64, len(different), np.uint64)
    sums = np.zeros(len(touched), np.uint64)
    np.add.at(sums, place, numbers[code])
    order = np.lexsort((sums, labels[touched]))
    first, second = labels[touched][order], sums[order]
    begins = np.r_[True, (first[1:] != first[:-1]) | (second[1:] != second[:-1])]
    labels[touched[order]] = labels.max() + np.cumsum(begins)


def _named_groups(labels: np.ndarray, ties: list[Tie], matrices: set[str], fixed: np.ndarray) -> tuple:
    """Groups in the order of their first channels, each named after the module that first produces it.

    Channels of a part that is kept whole are produced by none: they are named after the module that reads them.
    """
    producer = np.full(len(labels), "", dtype=object)
    for tie in reversed(ties):
        if tie.role == "column":
            producer[tie.channels] = f"{tie.tensor.rpartition('.')[0] or tie.tensor}.input"
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
