"""The channel graph of a network: of a trace, each way of understanding its code is tried until one is right.

What none makes right stays whole: the channels that code moves, of as few modules as possible, or else those modules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from ..networks import DEFAULT_INPUT_SIZE, unwrapped
from .building import build_graph
from .channel_graph import ChannelGraph
from .keeping import Keep, Keeping, Kept, check_unknown, modules_to_keep, recorded_keep, ways_out
from .probing import find_routes
from .recording import Recording
from .sizes import readings
from .surgery.rebuild import rebuild
from .tracer import Tracer, check_model, run
from .trial import MovementError, tried

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

    def follow(other: nn.Module) -> tuple[ChannelGraph, dict[str, list[float]]]:
        recording = run_both(other, input_size, Keeping(asked, strict))
        return build_graph(other, recording, input_size), recording.numbers

    def read() -> ChannelGraph:
        """The graph of the first way of understanding the numbers in the code that is right."""
        errors = []
        for reading in readings(tracer):
            graph = build_graph(twin, tracer, input_size, routes, reading)
            if not (tracer.movements or graph.splits or graph.reductions or graph.attentions or graph.parts):
                return graph
            try:
                return tried(twin, graph, tracer.movements, tracer.numbers, follow)
            except MovementError as error:
                errors.append(error)
        raise errors[0]

    try:
        return read()
    except MovementError as error:
        if strict:
            part = next((part for part, _ in tracer.moved.values()), Kept(next(iter(_suspects(tracer)), "")))
            place = f" ({part.place})" if part.place else ""
            raise MovementError(f"{error}{place}; {ways_out(part.module, part.operator, True)}") from error
        logger.debug("channels that code moves: %s", error)
        try:
            if tracer.moved:
                return _with_movers_whole(twin, tracer, {route.module for route in routes}, read)
        except MovementError as other:
            logger.debug("whole channels are not enough: %s", other)
        modules = _suspects(tracer)
        if not modules:
            raise
        return trace_module(model, input_size, [*asked, *modules])


def _suspects(recording: Recording) -> list[str]:
    """Modules whose own code moves channels, or, where none does, in whose code numbers of channels may stand."""
    if any(recording.moved):
        return [name for name in recording.moved if name]
    named = [place[0] for places in (recording.parts, recording.splits, recording.named_lengths) for place in places]
    named += [*(product.module for product in recording.attentions), *recording.reductions]
    return [name for name in dict.fromkeys(named) if name]


def _with_movers_whole(
    model: nn.Module, tracer: Tracer, routed: set[str], read: Callable[[], ChannelGraph]
) -> ChannelGraph:
    """The graph in which channels that code moves stay whole, of as few modules as possible.

    Modules of one class move channels alike. Those of each class alone are tried first, then all whose code no index
    buffers can stand in for, then all.

    Args:
        model: not changed.
        tracer: its trace, to which the fixed channels are added.
        routed: names of the modules that index buffers can stand in for.
        read: gives the graph, or raises `MovementError` if the network's code does not follow it.
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
            return read()
        except MovementError as error:
            logger.debug("%s whole is not enough: %s", movers, error)
            tracer.take_back(before)
            tracer.keeping.parts = parts
    tracer.keep_movements(tracer.moved)
    return read()


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
