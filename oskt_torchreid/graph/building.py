"""From a trace of a network to its channel graph: united ids, equal signatures, groups, coverage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..errors import GraphError
from .channel_graph import Axis, ChannelGraph, Tie
from .grouping import OUTPUT, fix_lengths, fix_modules, fix_products, fixed_reasons, named_groups, signature_classes
from .modules import Route
from .notes import RecordedTie
from .recording import Recording
from .records import records_of
from .shadows import compact
from .sizes import PLAIN, Reading


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
    state = model.state_dict(keep_vars=True)
    _tie_kept(recording, state)
    channel_of = united(recording)
    recorded = [*recording.ties.values(), *_elementwise_ties(recording, channel_of)]
    channel_of, num_channels = _renumbered(channel_of, recorded)
    ties = _interned(recorded, channel_of)
    records = records_of(recording, recorded, channel_of, routes, reading)
    fixed = fixed_reasons(recording, ties, channel_of, num_channels, reading)
    fix_modules(model, ties, fixed)
    fix_lengths(recording, records.attentions, channel_of, fixed)
    fix_products(records, ties, fixed)
    records = records.without_parts(fixed != "")
    gates = [(channel_of[gate], channel_of[fine]) for gate, fine in recording.gates]
    axes = [axis.channels for axis in dict.fromkeys(tie.axis for tie in ties)]
    groups = named_groups(
        signature_classes([*axes, *records.axes], gates, fixed, num_channels), ties, recording.matrices, fixed
    )
    _check_coverage(recording, ties, {name: tuple(t.shape) for name, t in state.items() if t.is_floating_point()})
    rows = {tie.tensor: tie for tie in ties if tie.role == "row"}
    scores = recording.scores & recording.matrices & rows.keys()
    heads = frozenset(name for name in scores if all(fixed[rows[name].channels].ravel() == OUTPUT))
    unused = tuple(name for name, t in state.items() if t.dim() > 0 and name not in recording.touched)
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    matrices, size = frozenset(recording.matrices), tuple(input_size)
    kept = {"keep": tuple(sorted(recording.keeping.modules)), "kept": tuple(recording.keeping.parts.values())}
    feature = _feature(recording, channel_of, [tie for tie in ties if tie.tensor in heads])
    found = {**records._asdict(), **kept, "parameters": parameters, "feature": feature}
    return ChannelGraph(tuple(ties), groups, matrices, heads, unused, size, **found)


def united(recording: Recording) -> np.ndarray:
    """Smallest united id per provisional id: ids grow with execution, so channels come out in the network's order."""
    smallest = np.arange(recording.num_ids)
    if not recording.unions:
        return smallest
    pairs = np.concatenate([np.stack(pair) for pair in recording.unions], 1)
    among = np.zeros(recording.num_ids, bool)  # most ids of a large bare parameter are in no pair
    among[pairs] = True
    met, pairs = np.flatnonzero(among), (np.cumsum(among) - 1)[pairs]
    links = coo_matrix((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(len(met), len(met)))
    count, component = connected_components(links, directed=False)
    first = np.full(count, recording.num_ids)
    np.minimum.at(first, component, met)
    smallest[met] = first[component]
    return smallest


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
    if layers:
        channel_of = united(recording)
        fixed = _among(channel_of, (ids for ids, _ in recording.fixed))
        for name in layers:
            if fixed[channel_of[recording.elementwise[name].numpy()]].any():
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
    """A bare parameter's one axis of channels, read off its elements' ids; one with several is fixed.

    One that meets no channels of a layer has none itself.
    """
    of_layers = _among(channel_of, (tie.ids for tie in recording.ties.values()))
    for name, ids in recording.elementwise.items():
        channels = channel_of[ids.numpy()]
        if not of_layers[channels].any():
            continue
        varying = [axis for axis in range(channels.ndim) if (channels != channels.take([0], axis)).any()]
        if len(varying) > 1:
            recording.fixed.append((channels.reshape(-1), f"'{name}' differs along several axes"))
        elif varying:
            along = np.moveaxis(ids.numpy(), varying[0], 0).reshape(channels.shape[varying[0]], -1)[:, 0]
            yield RecordedTie(name, varying[0], "row", along.reshape(1, -1))


def _among(channel_of: np.ndarray, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Whether each united id is the channel of one of some provisional ids, a mask of `channel_of`'s length."""
    found = np.zeros(len(channel_of), bool)
    for ids in parts:
        found[channel_of[ids]] = True
    return found


def _renumbered(channel_of: np.ndarray, recorded: list[RecordedTie]) -> tuple[np.ndarray, int]:
    """Consecutive numbers for the channels that appear in a tie; -1 for ids that appear in none."""
    used = np.flatnonzero(_among(channel_of, (tie.ids for tie in recorded)))
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


def _feature(recording: Recording, channel_of: np.ndarray, of_heads: list[Tie]) -> np.ndarray:
    """Channel per position of what the last pass returned, or of what the classifier was given that returned it.

    None of a feature whose parts are normalised one by one: merged channels count once in a part's length, and a
    student's parts have other shares of the feature than its teacher's.
    """
    if len(recording.results) != 1 or recording.results[0].dim() != 2:
        return np.empty(0, np.int64)
    (result,) = recording.results
    shadow, length = recording.shadow(result), result.shape[1]
    if shadow is None:
        return np.full(length, -1)
    channels = channel_of[compact(shadow)[0].expand(length).numpy()]
    normalised = [values for ids, values in recording.lengths if np.isin(channel_of[ids], channels).any()]
    if any(values != length for values in normalised):
        return np.empty(0, np.int64)
    scored = [tie.tensor for tie in of_heads if tie.role == "row" and np.array_equal(tie.channels[0], channels)]
    read = [tie.channels[0] for tie in of_heads if tie.role == "column" and tie.tensor in scored]
    return read[0] if read else channels if not scored else np.empty(0, np.int64)


def _check_coverage(recording: Recording, ties: list[Tie], shapes: dict[str, tuple[int, ...]]) -> None:
    """Checks that every tensor that took part has ties of the right lengths; the image's own columns need none."""
    tied: dict[str, set[str]] = {}
    for tie in ties:
        tied.setdefault(tie.tensor, set()).add(tie.role)
        length, expected = shapes[tie.tensor][tie.dimension], tie.shaped(tie.channels.shape[1])
        if length != expected:
            raise GraphError(f"axis {tie.dimension} of '{tie.tensor}' has {length} positions, its tie {expected}")
    for name in sorted((recording.touched & shapes.keys()) - (recording.untied - tied.keys())):
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
